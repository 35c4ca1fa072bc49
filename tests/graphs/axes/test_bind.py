"""Binding: what is computed away, what is refused, what stays unknown and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places
from tests.graphs.axes.bound_runs import assert_close, run_bound, run_model

EXPORTS = Path(__file__).parent / "exports"
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int | None]]],
    outputs: list[str],
    weights: dict[str, Array] | None = None,
    opset: int = 17,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_a_dimension_without_a_size_is_named():
    model = model_of([node("Relu", "x", "y")], {"x": (FLOAT, ["batch", None, 3])}, ["y"])
    with pytest.raises(InvalidArgument, match=r"dimension 0 of input 'x' \(batch\).*say one for 'batch'"):
        bind(model, {})
    with pytest.raises(InvalidArgument, match=r"dimension 1 of input 'x' \(x\.1\)"):
        bind(model, {"batch": 2})
    with pytest.raises(InvalidArgument, match=r"no input has a dimension 'rows'; there are batch, x\.0"):
        bind(model, {"batch": 2, "x.1": 4, "rows": 1})
    with pytest.raises(InvalidArgument, match=r"is to be 4; the model has it at 3"):
        bind(model, {"batch": 2, "x.1": 4, "x.2": 4})
    with pytest.raises(InvalidArgument, match=r"below 2\^31"):
        bind(model, {"batch": 1 << 31, "x.1": 4})
    assert bind(model, {"batch": 2, "x.1": 4}).shape("y") == (2, 4, 3)
    assert bind(model, {"batch": 2, "x.0": 5, "x.1": 4}).shape("x") == (5, 4, 3)


@pytest.mark.parametrize("name", ["bert", "bert_fused", "bert_torchscript17", "distilbert", "gpt2"])
def test_a_text_longer_than_the_positions_of_a_model_is_refused(name):
    """These have 64 positions, in as many ways of writing it."""
    model = onnx.load(EXPORTS / f"{name}.onnx")
    assert not bind(model, {"batch": 1, "sequence": 64}).unknown
    with pytest.raises(InvalidArgument, match=r"sequence = 65 the model does not hold together.*positions"):
        bind(model, {"batch": 1, "sequence": 65})


def test_what_is_empty_adds_nothing_to_what_is_joined():
    """Of heads that are turned by their places as a whole, files of Phi-3 join an empty rest."""
    nodes = [
        node("Relu", "x", "turned"),
        node("Slice", "x end most last", "rest"),
        node("Concat", "turned rest", "y", axis=-1),
    ]
    bounds = {"end": np.array([6]), "most": np.array([1 << 40]), "last": np.array([-1])}
    bound = bind(model_of(nodes, {"x": (FLOAT, ["batch", 6])}, ["y"], bounds), {"batch": 2})
    assert [one.op_type for one in bound.nodes] == ["Relu", "Identity"]
    assert bound.shape("y") == (2, 6)


def test_a_size_that_the_graph_has_fixed_is_not_open_though_the_file_says_so():
    nodes = [node("Relu", "x", "z"), node("Reshape", "z one", "y")]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 6])}, ["y"], {"one": np.array([1, 2, 3])})
    assert bind(model, {"batch": 1}).shape("y") == (1, 2, 3)
    words = r"batch = 4 the model does not hold together: Reshape 'y' makes \[1, 2, 3\] of \[4, 6\].*is open"
    with pytest.raises(InvalidArgument, match=words):
        bind(model, {"batch": 4})


def test_shape_arithmetic_and_what_follows_from_it_is_computed_away():
    """Positions by a Range over a Shape, and their angles by frequencies of the file: rotary positions."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "length", axis=0),
        node("Range", "zero length one", "places"),
        node("Cast", "places", "floats", to=FLOAT),
        node("Unsqueeze", "floats axis", "column"),
        node("Unsqueeze", "frequencies zeroth", "row"),
        node("MatMul", "column row", "angles"),
        node("Cos", "angles", "cos"),
        node("Mul", "x cos", "y"),
    ]
    weights = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis": np.array([1], np.int64),
        "zeroth": np.array([0], np.int64),
        "frequencies": floats(4),
    }
    model = model_of(nodes, {"x": (FLOAT, ["batch", "tokens", 4])}, ["y"], weights)
    bound = bind(model, {"batch": 2, "tokens": 5})
    assert [one.op_type for one in bound.nodes] == ["Mul"]
    assert {name: array.shape for name, array in bound.derived.items()} == {"cos": (5, 4)}
    assert not bound.weights
    feeds = {"x": floats(2, 5, 4)}
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds), 0)


def test_what_follows_from_weights_alone_stays_with_them():
    """A bias that is cast, or scaled, is a weight and a node: it does not become a constant of the sizes."""
    nodes = [node("Cast", "bias", "wide", to=FLOAT), node("Add", "x wide", "y")]
    weights = {"bias": floats(4).astype(np.float16)}
    model = model_of(nodes, {"x": (FLOAT, ["n", 4])}, ["y"], weights)
    bound = bind(model, {"n": 3})
    assert [one.op_type for one in bound.nodes] == ["Cast", "Add"]
    assert bound.weights == {"bias": "bias"}
    assert not bound.derived


def test_each_use_of_a_constant_has_a_name():
    nodes = [
        node("Add", "x w", "a"),
        node("Mul", "a w", "b"),
        node("Mul", "b two", "c"),
        node("Sub", "c two", "y"),
    ]
    weights = {"w": floats(3), "two": np.array(2, np.float32)}
    bound = bind(model_of(nodes, {"x": (FLOAT, [2, 3])}, ["y"], weights), {})
    assert bound.weights == {"w": "w", "w#2": "w"}
    assert set(bound.literals) == {"two", "two#2"}
    assert bound.is_constant("w#2")
    assert bound.constant("two#2") == 2
    assert [list(one.input) for one in bound.nodes] == [
        ["x", "w"],
        ["a", "w#2"],
        ["b", "two"],
        ["c", "two#2"],
    ]


def test_weights_without_data_are_not_missed_and_tables_of_numbers_are_read():
    """A table of position ids larger than what stays in the graph; and a matrix that nobody may read."""
    nodes = [
        node("Shape", "ids", "shape"),
        node("Slice", "shape first second", "length"),
        node("Slice", "table zeroth length first", "places"),
        node("Gather", "positions places", "rows"),
        node("Gather", "words ids", "embedded"),
        node("Add", "embedded rows", "y"),
    ]
    table = np.arange(2000)[None].astype(np.int64)
    weights = {
        "zeroth": np.array([0], np.int64),
        "first": np.array([1], np.int64),
        "second": np.array([2], np.int64),
        "table": table,
        "positions": floats(2000, 8),
        "words": floats(30, 8),
    }
    model = model_of(nodes, {"ids": (INT64, ["batch", "tokens"])}, ["y"], weights)
    for tensor in model.graph.initializer:
        if tensor.name in ("table", "positions", "words"):
            tensor.ClearField("raw_data")
    asked: list[str] = []

    def read(name: str) -> Array:
        asked.append(name)
        return table

    bound = bind(model, {"batch": 2, "tokens": 6}, read)
    assert asked == ["table"]
    (places,) = bound.derived.values()
    assert np.array_equal(places, [[0, 1, 2, 3, 4, 5]])
    assert not bound.unknown
    without = bind(model, {"batch": 2, "tokens": 6})
    assert not without.unknown
    assert without.shape("y") == (2, 6, 8)
    with pytest.raises(InvalidGraph, match=r"initializer 'table' was read with the shape \(3,\)"):
        bind(model, {"batch": 2, "tokens": 6}, lambda name: np.arange(3))


def branches(then: list[onnx.NodeProto], other: list[onnx.NodeProto]) -> dict[str, GraphProto]:
    return {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info("out")])
        for name, nodes in (("then_branch", then), ("else_branch", other))
    }


def test_an_if_that_shapes_decide_is_the_branch_that_is_taken():
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "length", axis=0),
        node("Greater", "length four", "many"),
        node("If", "many", "y", **branches([node("Relu", "x", "out")], [node("Neg", "x", "out")])),
    ]
    weights = {"one": np.array(1, np.int64), "four": np.array(4, np.int64)}
    model = model_of(nodes, {"x": (FLOAT, ["n", "m"])}, ["y"], weights)
    for length, kind in ((5, "Relu"), (3, "Neg")):
        bound = bind(model, {"n": 2, "m": length})
        assert [(one.op_type, *one.output) for one in bound.nodes] == [(kind, "y")]
        feeds = {"x": floats(2, length)}
        assert_close(run_bound(bound, model, feeds), run_model(model, feeds), 0)


def test_what_data_decides_is_unknown_and_says_so():
    nodes = [
        node(
            "If", "flag", "a", **branches([node("Relu", "x", "out")], [node("Concat", "x x", "out", axis=0)])
        ),
        node("MatMul", "a w", "b"),
        node("NonZero", "x", "places"),
        node("Transpose", "places", "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["n", 4]), "flag": (BOOL, [])}, ["b", "y"], {"w": floats(4, 4)})
    bound = bind(model, {"n": 3})
    assert "is decided by data" in bound.unknown["a"]
    assert bound.unknown["b"] == bound.unknown["a"]
    assert "NonZero" in bound.unknown["y"]
    assert "size depends on data" in bound.unknown["y"]
    axes = axes_of(bound)
    assert "decided by data" in axes.refused["tokens"]
    assert narrow_places(axes) == ()
    assert layer_bytes(axes, ()) == (4 * 4 * 4,)


def test_shapes_are_known_again_where_a_node_tells_them():
    nodes = [node("NonZero", "x", "a"), node("Reshape", "a shape", "b"), node("Neg", "b", "y")]
    weights = {"shape": np.array([4, 6], np.int64)}
    bound = bind(model_of(nodes, {"x": (FLOAT, [3, 4])}, ["y"], weights), {})
    assert set(bound.unknown) == {"a"}
    assert bound.shape("y") == (4, 6)


def test_a_dropout_that_is_off_and_functions_are_not_there():
    function = helper.make_function(
        "own", "twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    nodes = [
        node("Dropout", "x ratio off", "kept"),
        helper.make_node("twice", ["kept"], ["z"], domain="own"),
        node("Identity", "z", "y"),
    ]
    weights = {"ratio": np.array(0.5, np.float32), "off": np.array(False)}
    model = model_of(nodes, {"x": (FLOAT, [3, 4])}, ["y"], weights)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    bound = bind(model, {})
    assert [one.op_type for one in bound.nodes] == ["Add", "Identity"]


def test_an_output_that_is_a_constant_is_made_by_a_node():
    nodes = [node("Shape", "x", "y"), node("Relu", "x", "z")]
    model = model_of(nodes, {"x": (FLOAT, ["n", 4])}, ["y", "z"])
    bound = bind(model, {"n": 3})
    assert bound.outputs == ("y", "z")
    assert set(bound.makers) == {"y", "z"}
    feeds = {"x": floats(3, 4)}
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds), 0)


def test_what_is_too_large_is_not_computed():
    """A mask of 8,192 by 8,192 stays an Expand on the nodes."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Concat", "shape shape", "square", axis=0),
        node("Expand", "one square", "mask"),
        node("ReduceSum", "mask", "total", keepdims=0),
        node("Add", "x total", "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["n"])}, ["y"], {"one": np.array(1, np.float32)})
    large, small = bind(model, {"n": 8192}), bind(model, {"n": 8})
    assert [one.op_type for one in large.nodes] == ["Expand", "ReduceSum", "Add"]
    assert [one.op_type for one in small.nodes] == ["Add"]


def test_a_packed_product_of_unlike_sizes_is_taken_apart():
    nodes = [
        node("MatMul", "x w", "p"),
        node("Add", "p b", "qkv"),
        node("Split", "qkv sizes", "q k v", axis=-1),
        node("Relu", "q", "y"),
        node("Mul", "k v", "z"),
    ]
    weights = {"w": floats(6, 16), "b": floats(16), "sizes": np.array([8, 4, 4], np.int64)}
    model = model_of(nodes, {"x": (FLOAT, ["n", 6])}, ["y", "z"], weights)
    bound = bind(model, {"n": 3})
    assert [one.op_type for one in bound.nodes] == ["MatMul", "Add"] * 3 + ["Relu", "Mul"]
    spans = {
        (bound.weights[name], *((s.start, s.stop, s.size) for s in bound.piece(name)))
        for name in bound.pieces
    }
    assert spans == {
        (name, (start, stop, 16)) for name in ("w", "b") for start, stop in ((0, 8), (8, 12), (12, 16))
    }
    feeds = {"x": floats(3, 6)}
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds))


def test_a_packed_product_that_is_read_whole_stays():
    nodes = [
        node("MatMul", "x w", "p"),
        node("Split", "p sizes", "q k", axis=-1),
        node("Relu", "q", "y"),
        node("Softmax", "p", "z"),
        node("Neg", "k", "u"),
    ]
    weights = {"w": floats(6, 12), "sizes": np.array([8, 4], np.int64)}
    bound = bind(model_of(nodes, {"x": (FLOAT, ["n", 6])}, ["y", "z", "u"], weights), {"n": 3})
    assert [one.op_type for one in bound.nodes][:2] == ["MatMul", "Split"]


def test_slices_that_take_all_of_a_product_are_a_split():
    nodes = [
        node("MatMul", "x w", "p"),
        node("Slice", "p a b axis", "q"),
        node("Slice", "p b c axis", "k"),
        node("Relu", "q", "y"),
        node("Neg", "k", "z"),
    ]
    numbers = {name: np.array([n], np.int64) for name, n in (("a", 0), ("b", 8), ("c", 1 << 40), ("axis", 1))}
    model = model_of(nodes, {"x": (FLOAT, ["n", 6])}, ["y", "z"], {"w": floats(6, 12), **numbers})
    bound = bind(model, {"n": 3})
    assert sorted(one.op_type for one in bound.nodes) == ["MatMul", "MatMul", "Neg", "Relu"]
    feeds = {"x": floats(3, 6)}
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds))


@pytest.mark.parametrize("name", ["bert_fused", "bert_opset23", "llama_genai", "llama_genai_int4"])
@pytest.mark.parametrize("past", [0, 6])
def test_fused_operators_kept_compute_what_the_file_does_in_the_same_layers(name, past):
    model = onnx.load(EXPORTS / f"{name}.onnx")
    if past and "genai" not in name:
        pytest.skip("it keeps nothing from before")
    width = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    given = {"batch": 2, "sequence": 9}
    if "genai" in name:
        given = {"batch_size": 2, "sequence_length": 1 if past else 9, "past_sequence_length": past}
        given |= {"total_sequence_length": past + given["sequence_length"], "kv_cache_dim": 16}
    names = {dim.dim_param for dims in width.values() for dim in dims if not dim.HasField("dim_value")}
    sizes = {name: size for name, size in given.items() if name in names}
    kept, plain = bind(model, sizes, fused=True), bind(model, sizes)
    assert not kept.unknown
    assert len(kept.nodes) < len(plain.nodes)
    axes, others = axes_of(kept), axes_of(plain)
    assert len(narrow_places(axes)) == len(narrow_places(others)) > 2
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for name in kept.inputs:
        form = kept.specs[name]
        drawn = rng.standard_normal(form.shape) if form.dtype == "float32" else rng.integers(1, 5, form.shape)
        feeds[name] = (np.ones(form.shape) if "mask" in name else drawn).astype(form.dtype)
    if "token_type_ids" in feeds:
        feeds["token_type_ids"] = np.zeros_like(feeds["token_type_ids"])
    # Attention of ONNX itself is a function to ONNX Runtime, which inlines it as it likes.
    tolerance = 0 if "com.microsoft" in kept.opsets else 1e-6
    assert_close(run_bound(kept, model, feeds), run_model(model, feeds), tolerance)


@pytest.mark.parametrize("stop", [1e12, 1e300])
def test_a_file_cannot_have_large_things_computed(stop):
    """Constants are whoever's the file is: a Range of a tera, a convolution that would take hours."""
    nodes = [
        node("Range", "zero stop one", "r"),
        node("ReduceSum", "r", "s", keepdims=0),
        node("Add", "x s", "y"),
    ]
    weights = {"zero": np.array(0.0), "stop": np.array(stop), "one": np.array(1.0)}
    bound = bind(model_of(nodes, {"x": (TensorProto.DOUBLE, [2])}, ["y"], weights), {})
    assert bound.nodes[0].op_type == "Range"
    wide = {"a": np.array([1, 1, 2000, 1000]), "b": np.array([1, 1, 1000, 500])}
    nodes = [
        node("ConstantOfShape", "a", "image"),
        node("ConstantOfShape", "b", "kernel"),
        node("Conv", "image kernel", "c"),
        node("Add", "x c", "y"),
    ]
    bound = bind(model_of(nodes, {"x": (FLOAT, [1])}, ["y"], wide), {})
    assert [one.op_type for one in bound.nodes] == ["Conv", "Add"]
