"""Graphs that once ended a node, blocked it or filled its memory, and their kin, written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from hostile import files
from hostile.files import Hostile, node, value
from hostile.wire import field

T = TensorProto
Array = np.ndarray[Any, Any]
CONTRIB = ("com.microsoft",)


def i32(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def f32(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def of(
    name: str,
    nodes: Sequence[Any],
    feeds: dict[str, Array],
    constants: dict[str, Array] | None = None,
    **more: Any,
) -> Hostile:
    """A graph with output `y`, of these nodes; inputs are as `feeds` are."""
    inputs = [
        value(key, helper.np_dtype_to_tensor_dtype(given.dtype), [None] * given.ndim)
        for key, given in feeds.items()
    ]
    made = files.model(nodes, inputs, [value("y", T.FLOAT, None)], list((constants or {}).items()), **more)
    made.graph.output[0].ClearField("type")
    return Hostile(name, made.SerializeToString(), feeds, ("y",))


def graphs() -> Iterator[Hostile]:
    for kind in (
        integers,
        sizes,
        folds,
        loops,
        sequences,
        texts,
        indexes,
        attention,
        recursions,
        files_whole,
        forms,
    ):
        yield from kind()


def integers() -> Iterator[Hostile]:
    """Division traps on x86: by zero, and the smallest number by -1."""
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32):
        least = np.iinfo(dtype).min
        for op in ("Div", "Mod"):
            for a, b in ((1, 0), (least, 0), *([(least, -1)] if least else [])):
                feeds = {"a": np.array([a], dtype), "b": np.array([b], dtype)}
                yield of(f"{op} {np.dtype(dtype)} {a} by {b}", [node(op, ["a", "b"], ["y"])], feeds)
                yield of(
                    f"{op} {np.dtype(dtype)} {a} by {b} at load", [node(op, ["a", "b"], ["y"])], {}, feeds
                )
    yield of(
        "Mod fmod of infinity", [node("Mod", ["a", "b"], ["y"], fmod=1)], {"a": f32(np.inf), "b": f32(0)}
    )
    yield of(
        "BitShift by 255",
        [node("BitShift", ["a", "b"], ["y"], direction="LEFT")],
        {"a": np.array([1], np.uint32), "b": np.array([255], np.uint32)},
    )
    yield of(
        "Pow of integers",
        [node("Pow", ["a", "b"], ["y"])],
        {"a": i64(0, -1, 10), "b": i64(-1, -(2**63), 400)},
    )
    yield of(
        "Cast of what is no integer",
        [node("Cast", ["a"], ["y"], to=T.INT32)],
        {"a": f32(np.nan, np.inf, -np.inf, 1e30)},
    )
    yield of(
        "Abs and Neg of the smallest",
        [node("Abs", ["a"], ["b"]), node("Neg", ["b"], ["y"])],
        {"a": i32(-(2**31))},
    )
    yield of(
        "QuantizeLinear by zero",
        [node("QuantizeLinear", ["a", "s", "z"], ["y"])],
        {"a": f32(1, np.nan, np.inf), "s": np.float32(0), "z": np.int8(0)},
        opset=13,
    )
    yield of(
        "CumSum of the largest",
        [node("CumSum", ["a", "x"], ["y"])],
        {"a": i64(2**63 - 1, 1), "x": np.array(0)},
    )


def sizes() -> Iterator[Hostile]:
    """What is asked for at run is more than there is."""
    x = {"x": f32(1)}
    for size in (2**29, 2**33, 2**40, 2**62, -1, -(2**63)):
        s = {"s": i64(size)}
        yield of(f"Expand to {size}", [node("Expand", ["x", "s"], ["y"])], x | s)
        yield of(f"Tile by {size}", [node("Tile", ["x", "s"], ["y"])], x | s)
        yield of(f"ConstantOfShape {size}", [node("ConstantOfShape", ["s"], ["y"])], s)
        yield of(f"Reshape to {size}", [node("Reshape", ["x", "s"], ["y"])], x | s)
        yield of(
            f"OneHot depth {size}",
            [node("OneHot", ["i", "s", "v"], ["y"])],
            {"i": i64(2), "v": f32(0, 1)} | s,
        )
        yield of(f"TopK {size}", [node("TopK", ["x", "s"], ["v", "y"])], x | s)
        yield of(f"Pad by {size}", [node("Pad", ["x", "p"], ["y"])], x | {"p": i64(0, size)})
        yield of(
            f"Range to {size}",
            [node("Range", ["a", "b", "c"], ["y"])],
            {"a": np.array(0), "b": np.array(size), "c": np.array(1)},
        )
        yield of(f"Trilu {size}", [node("Trilu", ["m", "k"], ["y"])], {"m": zeros(2, 2), "k": np.array(size)})
        yield of(
            f"Split at {size}",
            [node("Split", ["x", "p"], ["y", "z"])],
            x | {"p": i64(size, -size & 2**62)},
            opset=13,
        )
    yield of("ConstantOfShape that wraps", [node("ConstantOfShape", ["s"], ["y"])], {"s": i64(2**32, 2**32)})
    yield of(
        "Range by zero",
        [node("Range", ["a", "b", "c"], ["y"])],
        {"a": np.array(0.0), "b": np.array(1.0), "c": np.array(0.0)},
    )
    yield of(
        "Range to nothing that is a number",
        [node("Range", ["a", "b", "c"], ["y"])],
        {"a": np.array(0.0), "b": np.array(np.nan), "c": np.array(np.inf)},
    )
    for scale in (1e9, 1e30, np.nan, -1, 0):
        yield of(
            f"Resize by {scale}",
            [node("Resize", ["x", "", "s"], ["y"], mode="nearest")],
            {"x": zeros(1, 1, 2, 2), "s": f32(1, 1, scale, scale)},
        )
    for pads in ((-10, 2**20), (-(2**62), 2**62), (5, 5)):
        for mode in ("reflect", "edge", "constant", "wrap"):
            yield of(
                f"Pad {mode} {pads}",
                [node("Pad", ["x", "p"], ["y"], mode=mode)],
                {"x": f32(1, 2, 3, 4), "p": i64(*pads)},
                opset=19,
            )
    yield of(
        "EyeLike of what is wide",
        [node("ConstantOfShape", ["s"], ["z"]), node("EyeLike", ["z"], ["y"])],
        {"s": i64(2**16, 2**16)},
    )
    yield of(
        "products of columns and rows",
        [node("MatMul", ["a", "b"], ["m"]), node("MatMul", ["m", "m"], ["y"])],
        {"a": zeros(2**15, 1), "b": zeros(1, 2**15)},
    )
    yield of(
        "Einsum of many axes",
        [node("Einsum", ["x"] * 6, ["y"], equation="a,b,c,d,e,f->abcdef")],
        {"x": zeros(64)},
    )
    yield of(
        "Conv that is padded without end",
        [node("Conv", ["x", "w"], ["y"], pads=[2**30] * 4)],
        {"x": zeros(1, 1, 2, 2), "w": zeros(1, 1, 1, 1)},
    )
    yield of(
        "ConvTranspose with strides without end",
        [node("ConvTranspose", ["x", "w"], ["y"], strides=[2**30] * 2)],
        {"x": zeros(1, 1, 2, 2), "w": zeros(1, 1, 1, 1)},
    )
    yield of(
        "DFT of a length without end",
        [node("DFT", ["x", "n", "a"], ["y"])],
        {"x": zeros(1, 4, 1), "n": np.array(2**40), "a": np.array(1)},
        opset=20,
    )
    yield of("a window without end", [node("HannWindow", ["n"], ["y"])], {"n": np.array(2**40)})
    yield of(
        "MelWeightMatrix without end",
        [node("MelWeightMatrix", ["m", "d", "r", "l", "u"], ["y"])],
        {
            "m": np.array(2**30),
            "d": np.array(2**30),
            "r": np.array(16000),
            "l": np.float32(0),
            "u": np.float32(8000),
        },
    )


def folds() -> Iterator[Hostile]:
    """What is constant is computed when a graph is loaded."""
    one, x = f32(1), {"x": f32(1)}
    add = [node("Add", ["c", "x"], ["z"]), node("ReduceMax", ["z"], ["y"], keepdims=0)]
    for size in (2**26, 2**29, 2**32, 2**40):
        yield of(
            f"Expand to {size} at load",
            [node("Expand", ["a", "s"], ["c"]), *add],
            x,
            {"a": one, "s": i64(size)},
        )
        yield of(
            f"Tile by {size} at load", [node("Tile", ["a", "s"], ["c"]), *add], x, {"a": one, "s": i64(size)}
        )
        yield of(
            f"ConstantOfShape {size} at load",
            [node("ConstantOfShape", ["s"], ["c"]), *add],
            x,
            {"s": i64(size)},
        )
        yield of(
            f"Range {size} at load",
            [node("Range", ["a", "b", "d"], ["r"]), node("Cast", ["r"], ["c"], to=1), *add],
            x,
            {"a": np.array(0), "b": np.array(size), "d": np.array(1)},
        )
        yield of(
            f"Pad by {size} at load", [node("Pad", ["a", "p"], ["c"]), *add], x, {"a": one, "p": i64(0, size)}
        )
        yield of(
            f"OneHot {size} at load",
            [node("OneHot", ["i", "s", "v"], ["c"]), *add],
            x,
            {"i": i64(1), "s": i64(size), "v": f32(0, 1)},
        )
    k = 2**15
    yield of(
        "products at load", [node("MatMul", ["a", "b"], ["c"]), *add], x, {"a": zeros(k, 1), "b": zeros(1, k)}
    )
    yield of(
        "sums of columns and rows at load",
        [node("Add", ["a", "b"], ["c"]), *add],
        x,
        {"a": zeros(k, 1), "b": zeros(1, k)},
    )
    doubled = [node("Concat", [f"c{n}", f"c{n}"], [f"c{n + 1}"], axis=0) for n in range(34)]
    yield of("Concat that doubles at load", [*doubled, node("Add", ["c34", "x"], ["y"])], x, {"c0": one})
    many = [node("Expand", ["a", "s"], [f"e{n}"]) for n in range(64)]
    yield of(
        "64 folds of 64 MB",
        [*many, node("Sum", ["x", *(f"e{n}" for n in range(64))], ["y"])],
        x,
        {"a": one, "s": i64(2**24)},
    )
    shape = [node("Cast", ["f"], ["s"], to=T.INT64), node("Expand", ["a", "s"], ["c"]), *add]
    yield of("a size from a Cast at load", shape, x, {"a": one, "f": f32(2.0**31)})


def _loop(nodes: Sequence[Any], carried: Any, out: str) -> Any:
    """The body of a Loop that goes on and carries `v`."""
    return helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), *nodes],
        "body",
        [value("i", T.INT64, []), value("go", T.BOOL, []), carried],
        [value("go_on", T.BOOL, []), helper.make_empty_tensor_value_info(out)],
    )


def loops() -> Iterator[Hostile]:
    go = {"n": np.array(2**62), "k": np.array(True)}
    x = value("v", T.FLOAT, None)
    for name, nodes, v in (
        ("without end", [node("Add", ["v", "v"], ["w"])], f32(1)),
        ("that doubles a tensor", [node("Concat", ["v", "v"], ["w"], axis=0)], f32(1)),
        ("that multiplies", [node("MatMul", ["v", "v"], ["w"])], zeros(512, 512)),
        ("that divides", [node("Div", ["v", "v"], ["w"])], f32(0)),
    ):
        yield of(
            f"Loop {name}", [node("Loop", ["n", "k", "v0"], ["y"], body=_loop(nodes, x, "w"))], go | {"v0": v}
        )
    inner = node("Loop", ["n", "k", "v"], ["w"], body=_loop([node("Add", ["v", "v"], ["w2"])], x, "w2"))
    yield of(
        "Loop in a Loop",
        [node("Loop", ["n", "k", "v0"], ["y"], body=_loop([inner], x, "w"))],
        go | {"v0": f32(1)},
    )
    kept = _loop([node("Identity", ["v"], ["w"]), node("Identity", ["v"], ["all"])], x, "w")
    kept.output.append(helper.make_empty_tensor_value_info("all"))
    yield of(
        "Loop that keeps every step",
        [node("Loop", ["n", "k", "v0"], ["z", "y"], body=kept)],
        go | {"v0": zeros(4096)},
    )
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["t"]), node("Expand", ["e", "big"], ["o"])],
        "scan",
        [value("s", T.FLOAT, None), value("e", T.FLOAT, None)],
        [helper.make_empty_tensor_value_info("t"), helper.make_empty_tensor_value_info("o")],
    )
    yield of(
        "Scan that expands",
        [node("Scan", ["s0", "e0"], ["z", "y"], body=body, num_scan_inputs=1)],
        {"s0": f32(0), "e0": zeros(64, 1), "big": i64(2**24)},
    )
    yield of(
        "Scan over a number of inputs that there is not",
        [node("Scan", ["s0", "e0"], ["z", "y"], body=body, num_scan_inputs=2**31)],
        {"s0": f32(0), "e0": zeros(4, 1), "big": i64(2)},
    )
    endless = [
        node("Greater", ["x", "z"], ["c"]),
        node("Loop", ["", "c", "x"], ["y"], body=_loop([node("Neg", ["v"], ["w"])], x, "w")),
    ]
    yield of("Loop by a condition", endless, {"x": f32(1)}, {"z": f32(0)[0]})


def sequences() -> Iterator[Hostile]:
    q = helper.make_tensor_sequence_value_info("v", T.FLOAT, None)
    go = {"n": np.array(2**40), "k": np.array(True), "x": zeros(1024)}
    body = _loop([node("SequenceInsert", ["v", "x"], ["w"])], q, "w")
    yield of(
        "a sequence that grows",
        [
            node("SequenceEmpty", [], ["q"]),
            node("Loop", ["n", "k", "q"], ["s"], body=body),
            node("SequenceLength", ["s"], ["y"]),
        ],
        go,
    )
    for at in (5, -5, 2**62, -(2**63)):
        yield of(
            f"SequenceAt {at}",
            [node("SequenceConstruct", ["x", "x"], ["q"]), node("SequenceAt", ["q", "i"], ["y"])],
            {"x": f32(1), "i": np.array(at)},
        )
        yield of(
            f"SequenceErase {at}",
            [
                node("SequenceConstruct", ["x", "x"], ["q"]),
                node("SequenceErase", ["q", "i"], ["r"]),
                node("SequenceLength", ["r"], ["y"]),
            ],
            {"x": f32(1), "i": np.array(at)},
        )
    yield of(
        "SplitToSequence in single numbers",
        [node("SplitToSequence", ["x", "s"], ["q"], axis=0), node("SequenceLength", ["q"], ["y"])],
        {"x": zeros(1 << 20), "s": np.array(1)},
    )
    yield of("an output that is no tensor", [node("SequenceConstruct", ["x"], ["y"])], {"x": f32(1)})
    yield of("an optional of nothing", [node("OptionalGetElement", ["x"], ["y"])], {"x": f32(1)})
    yield of(
        "ConcatFromSequence of none",
        [node("SequenceEmpty", [], ["q"]), node("ConcatFromSequence", ["q"], ["y"], axis=0)],
        {},
    )


def texts() -> Iterator[Hostile]:
    cast = node("Cast", ["x"], ["s"], to=T.STRING)
    yield of(
        "text expanded",
        [cast, node("Expand", ["s", "n"], ["e"]), node("Shape", ["e"], ["y"])],
        {"x": f32(1.25), "n": i64(2**27)},
    )
    body = _loop([node("StringConcat", ["v", "v"], ["w"])], value("v", T.STRING, None), "w")
    yield of(
        "text that doubles in a loop",
        [cast, node("Loop", ["n", "k", "s"], ["z"], body=body), node("Shape", ["z"], ["y"])],
        {"x": f32(1.25), "n": np.array(40), "k": np.array(True)},
        opset=20,
    )
    yield of(
        "text as a constant",
        [node("Constant", [], ["s"], value_string="a" * 9), node("Shape", ["s"], ["y"])],
        {},
    )
    yield of(
        "StringSplit",
        [cast, node("StringSplit", ["s"], ["t", "y"], delimiter=".")],
        {"x": f32(1.25)},
        opset=20,
    )
    yield of(
        "RegexFullMatch",
        [cast, node("RegexFullMatch", ["s"], ["y"], pattern="(a*)*b")],
        {"x": f32(1)},
        opset=20,
    )
    yield of(
        "TfIdfVectorizer",
        [
            node(
                "TfIdfVectorizer",
                ["x"],
                ["y"],
                mode="TF",
                min_gram_length=1,
                max_gram_length=2,
                max_skip_count=2**31 - 1,
                ngram_counts=[0, 4],
                ngram_indexes=[2**40, 1, 2, 3],
                pool_int64s=[1, 2, 3, 4, 5, 6, 7, 8],
            )
        ],
        {"x": i64(1, 2, 3, 4)},
    )
    yield of("Cast back from text", [cast, node("Cast", ["s"], ["y"], to=1)], {"x": f32(np.nan)})


def indexes() -> Iterator[Hostile]:
    ends = (2**40, -(2**40), 2**63 - 1, -(2**63), 4, -5)
    x = {"x": f32(1, 2, 3, 4)}
    for at in ends:
        i = {"i": i64(at)}
        yield of(f"Gather {at}", [node("Gather", ["x", "i"], ["y"])], x | i)
        yield of(f"GatherElements {at}", [node("GatherElements", ["x", "i"], ["y"])], x | i)
        yield of(f"GatherND {at}", [node("GatherND", ["x", "i"], ["y"])], x | {"i": i64(at).reshape(1, 1)})
        yield of(
            f"ScatterElements {at}", [node("ScatterElements", ["x", "i", "u"], ["y"])], x | i | {"u": f32(1)}
        )
        yield of(
            f"ScatterND {at}",
            [node("ScatterND", ["x", "i", "u"], ["y"])],
            x | {"i": i64(at).reshape(1, 1), "u": f32(1)},
        )
        yield of(
            f"Slice from {at}",
            [node("Slice", ["x", "i", "e", "a", "s"], ["y"])],
            x | i | {"e": i64(-(2**63)), "a": i64(0), "s": i64(-1)},
        )
        yield of(
            f"Slice by {at}",
            [node("Slice", ["x", "b", "e", "a", "i"], ["y"])],
            x | i | {"b": i64(0), "e": i64(2**63 - 1), "a": i64(0)},
        )
        yield of(
            f"RoiAlign of image {at}",
            [node("RoiAlign", ["m", "r", "i"], ["y"], output_height=2, output_width=2)],
            {"m": zeros(1, 1, 4, 4), "r": zeros(1, 4) + 1} | i,
        )
        yield of(
            f"MaxUnpool to {at}",
            [node("MaxUnpool", ["m", "j"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
            {"m": zeros(1, 1, 2, 2), "j": np.full((1, 1, 2, 2), at, np.int64)},
        )
        yield of(
            f"ReverseSequence of {at}", [node("ReverseSequence", ["m", "i"], ["y"])], {"m": zeros(4, 1)} | i
        )
        yield of(
            f"Compress along {at}",
            [node("Compress", ["x", "c"], ["y"], axis=at)],
            x | {"c": np.array([True])},
        )
        yield of(f"Softmax along {at}", [node("Softmax", ["x"], ["y"], axis=at)], x)
        yield of(f"Transpose by {at}", [node("Transpose", ["x"], ["y"], perm=[at])], x)
    yield of(
        "Resize to boxes without end",
        [
            node(
                "Resize",
                ["m", "r", "", "s"],
                ["y"],
                mode="linear",
                coordinate_transformation_mode="tf_crop_and_resize",
            )
        ],
        {"m": zeros(1, 1, 2, 2), "r": f32(0, 0, -1e30, np.nan, 1, 1, 1e30, np.inf), "s": i64(1, 1, 8, 8)},
    )
    yield of(
        "GridSample far away",
        [node("GridSample", ["m", "g"], ["y"])],
        {"m": zeros(1, 1, 2, 2), "g": np.full((1, 2, 2, 2), 1e30, np.float32)},
    )
    yield of(
        "NonMaxSuppression of no boxes",
        [node("NonMaxSuppression", ["b", "s", "n"], ["y"])],
        {"b": np.full((1, 4, 4), np.nan, np.float32), "s": zeros(1, 1, 4), "n": i64(2**62)},
    )
    yield of(
        "LSTM of a length that there is not",
        [node("LSTM", ["x", "w", "r", "", "n"], ["y"], hidden_size=2)],
        {"x": zeros(2, 1, 2), "w": zeros(1, 8, 2), "r": zeros(1, 8, 2), "n": i32(2**30)},
    )
    yield of(
        "Col2Im of an image without end",
        [node("Col2Im", ["m", "s", "b"], ["y"])],
        {"m": zeros(1, 4, 4), "s": i64(2**31, 2**31), "b": i64(2, 2)},
    )


def attention() -> Iterator[Hostile]:
    """Operators of language models: lengths and positions that index caches."""

    def contrib(name: str, nodes: Sequence[Any], feeds: dict[str, Array]) -> Hostile:
        return of(name, nodes, feeds, domains=CONTRIB)

    names = ["q", "k", "v", "pk", "pv", "sl", "ts"]
    gqa = node(
        "GroupQueryAttention", names, ["y", "ok", "ov"], domain="com.microsoft", num_heads=2, kv_num_heads=2
    )
    for held, total in ((2**30, 5), (-(2**30), 5), (4_000_000, 5), (3, -1), (0, 2**31 - 1), (-1, 0)):
        yield contrib(
            f"GroupQueryAttention of {held} in {total}",
            [gqa],
            {
                "q": zeros(1, 1, 16),
                "k": zeros(1, 1, 16),
                "v": zeros(1, 1, 16),
                "pk": zeros(1, 2, 4, 8),
                "pv": zeros(1, 2, 4, 8),
                "sl": i32(held),
                "ts": i32(total),
            },
        )
    for at in (2**40, -1, -(2**63), 4):
        yield contrib(
            f"RotaryEmbedding at {at}",
            [node("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], domain="com.microsoft")],
            {"x": zeros(1, 1, 16), "p": i64(at).reshape(1, 1), "c": zeros(4, 8), "s": zeros(4, 8)},
        )
    for at in (2**30, -1, -(2**31)):
        yield contrib(
            f"EmbedLayerNormalization of {at}",
            [
                node(
                    "EmbedLayerNormalization",
                    ["i", "", "w", "p", "", "g", "b"],
                    ["y", "m"],
                    domain="com.microsoft",
                )
            ],
            {
                "i": np.array([[at, 1]], np.int32),
                "w": zeros(4, 8),
                "p": zeros(4, 8),
                "g": zeros(8),
                "b": zeros(8),
            },
        )
        yield contrib(
            f"CropAndResize of image {at}",
            [node("CropAndResize", ["x", "r", "i", "s"], ["y"], domain="com.microsoft")],
            {"x": zeros(1, 1, 4, 4), "r": zeros(1, 4) + 1, "i": i32(at), "s": i32(2, 2)},
        )
        yield contrib(
            f"GatherBlockQuantized {at}",
            [node("GatherBlockQuantized", ["d", "i", "s"], ["y"], domain="com.microsoft", block_size=16)],
            {"d": np.zeros((4, 32), np.uint8), "i": i32(at), "s": zeros(4, 2)},
        )
    for bits, block, k, n in ((4, 32, 32, 2), (4, 16, 2**31 - 1, 2**31 - 1), (8, 32, -1, 2), (3, 0, 32, 2)):
        yield contrib(
            f"MatMulNBits of {k} by {n}, {bits} bits",
            [
                node(
                    "MatMulNBits",
                    ["x", "w", "s"],
                    ["y"],
                    domain="com.microsoft",
                    K=k,
                    N=n,
                    bits=bits,
                    block_size=block,
                )
            ],
            {"x": zeros(1, 32), "w": np.zeros((2, 1, 16), np.uint8), "s": zeros(2)},
        )
    for heads in (0, -1, 2**31, 3):
        yield contrib(
            f"MultiHeadAttention of {heads} heads",
            [node("MultiHeadAttention", ["q", "q", "q"], ["y"], domain="com.microsoft", num_heads=heads)],
            {"q": zeros(1, 2, 16)},
        )
        yield of(
            f"Attention of {heads} heads",
            [node("Attention", ["q", "q", "q"], ["y"], q_num_heads=heads, kv_num_heads=heads)],
            {"q": zeros(1, 2, 16)},
            opset=23,
        )


def recursions() -> Iterator[Hostile]:
    """Files whose size says nothing of what they become."""

    def calling(name: str, *functions: Any, first: str) -> Hostile:
        made = files.called(*functions, name=first)
        return Hostile(name, made.SerializeToString(), {"x": f32(1)}, ("y",))

    leaf = files.function("F0", [node("Neg", ["a"], ["b"])])
    yield calling(
        "a function that calls itself",
        files.function("F", [node("F", ["a"], ["b"], domain="local")]),
        first="F",
    )
    twice = [leaf]
    for k in range(1, 60):
        calls = [node(f"F{k - 1}", [a], [b], domain="local") for a, b in (("a", "c"), ("c", "b"))]
        twice.append(files.function(f"F{k}", calls))
    for depth in (20, 31, 60):
        yield calling(f"{depth} functions that each call twice", *twice[:depth], first=f"F{depth - 1}")
    chain = [
        leaf,
        *(files.function(f"F{k}", [node(f"F{k - 1}", ["a"], ["b"], domain="local")]) for k in range(1, 500)),
    ]
    yield calling("500 functions in a chain", *chain, first="F499")
    for depth in (11, 25):
        body = helper.make_graph([node("Neg", ["x"], ["t"])], "b", [], [value("t", T.FLOAT, None)])
        nothing = helper.make_graph([], "e", [], [])
        for _ in range(depth):
            inner = node("If", ["c"], ["t"], then_branch=body, else_branch=nothing)
            body = helper.make_graph([inner], "b", [], [value("t", T.FLOAT, None)])
        yield of(
            f"{depth} graphs within graphs",
            [node("If", ["c"], ["y"], then_branch=body, else_branch=nothing)],
            {"x": f32(1), "c": np.array(True)},
        )


def files_whole() -> Iterator[Hostile]:
    """Large files."""
    for count in (49_000, 60_000, 300_000):
        nodes = [node("Neg", [f"n{k}" if k else "x"], [f"n{k + 1}"]) for k in range(count)]
        yield of(f"{count} nodes in a chain", [*nodes, node("Identity", [f"n{count}"], ["y"])], {"x": f32(1)})
    fan = [node("Neg", ["x"], [f"n{k}"]) for k in range(8_000)]
    yield of(
        "8,000 nodes side by side", [*fan, node("Sum", [f"n{k}" for k in range(8_000)], ["y"])], {"x": f32(1)}
    )
    yield of("one input a million times", [node("Sum", ["x"] * 1_000_000, ["y"])], {"x": f32(1)})
    names = [node("Neg", ["x"], ["y"], name="n" * 1_000_000)]
    yield of("a name of a million characters", names, {"x": f32(1)})
    made = files.linear()
    deep = b""
    for _ in range(2000):
        deep = field(1, field(5, field(6, deep)))
    yield Hostile("2,000 graphs within graphs", files.wrapped(made, deep), {}, ("y",))
    yield Hostile("a million empty nodes", files.wrapped(made, b"\x0a\x00" * 1_000_000), {}, ("y",))
    yield Hostile("six million fields", files.wrapped(made, field(5, b"\x08\x01" * 6_000_000)), {}, ("y",))


def forms() -> Iterator[Hostile]:
    """What is no graph, or one that contradicts itself."""
    for name, data in (
        ("nothing", b""),
        ("text", b"this is not ONNX"),
        ("ONNX Runtime's own format", b"\x1c\x00\x00\x00ORTM" + b"\x00" * 64),
        ("zeros", b"\x00" * 1000),
        ("ones", b"\xff" * 1000),
        ("a graph of nothing", files.wrapped(files.linear(), b"")),
    ):
        yield Hostile(name, data, {}, ("y",))
    x = {"x": f32(1)}
    yield of("a circle", [node("Add", ["x", "z"], ["y"]), node("Neg", ["y"], ["z"])], x)
    yield of("itself", [node("Add", ["x", "y"], ["y"])], x)
    yield of("a value twice", [node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])], x)
    yield of("the wrong order", [node("Neg", ["z"], ["y"]), node("Abs", ["x"], ["z"])], x)
    yield of("an output that is an input", [], {"y": f32(1)})
    yield of("names that a terminal obeys", [node("Neg", ["x"], ["y"], name="\x1b]0;mine\x07\x1b[2J\n")], x)
    yield of(
        "a failure that would be quoted",
        [node("Reshape", ["x", "s"], ["y"], name="\x1b[31m")],
        x | {"s": i64(7)},
    )
    yield of(
        "EPContext",
        [
            node(
                "EPContext",
                ["x"],
                ["y"],
                domain="com.microsoft",
                ep_cache_context="secret.bin",
                embed_mode=0,
                main_context=1,
                source="QNN",
            )
        ],
        x,
        domains=CONTRIB,
    )
    yield of(
        "an operator of Python",
        [node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib", module="os")],
        x,
        domains=["ai.onnx.contrib"],
    )
    yield of(
        "aten",
        [node("ATen", ["x"], ["y"], domain="org.pytorch.aten", operator="load")],
        x,
        domains=["org.pytorch.aten"],
    )
    noted: ModelProto = files.linear()
    for key, said in (
        ("ort_config", '{"session_options": {"inter_op_num_threads": 4096}}'),
        ("session.load_config_format", "ORT"),
    ):
        noted.metadata_props.add(key=key, value=said)
    yield Hostile("options of a session in the file", noted.SerializeToString(), {"x": zeros(2, 4)}, ("y",))
    for kind in (T.COMPLEX64, T.UNDEFINED, 77):
        made = files.linear()
        made.graph.input[0].type.tensor_type.elem_type = kind
        yield Hostile(f"an input of element type {kind}", made.SerializeToString(), {}, ("y",))
    for dims in ([-1], [2**62, 2**62], [0, 2**62], [1] * 200):
        made = files.linear()
        made.graph.initializer[0].dims[:] = dims
        yield Hostile(
            f"a constant of shape {str(dims)[:40]}", made.SerializeToString(), {"x": zeros(2, 4)}, ("y",)
        )
