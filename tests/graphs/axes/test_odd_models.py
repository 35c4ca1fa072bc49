"""Models that are not as most are: other types, graphs inside operators, recurrences. Right, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.graphs.axes.cut import analyse, cut
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

HALF, FLOAT, DOUBLE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
value = helper.make_tensor_value_info
RNG = np.random.default_rng(0)


def attention(dtype: Any = np.float32) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """From x [2, 6, 8] to y0 by two heads."""
    known = {f"w{n}": (RNG.standard_normal((8, 8)) / 3).astype(dtype) for n in "qkvo"}
    known |= {"apart": np.array([0, 0, 2, 4]), "joined": np.array([0, 0, 8]), "scale": np.array(0.5, dtype)}
    nodes = []
    for n in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"w{n}"], [f"{n}0"]),
            helper.make_node("Reshape", [f"{n}0", "apart"], [f"{n}1"]),
            helper.make_node("Transpose", [f"{n}1"], [n], perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["s0"]),
        helper.make_node("Mul", ["s0", "scale"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["m0"]),
        helper.make_node("Transpose", ["m0"], ["m1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["m1", "joined"], ["m"]),
        helper.make_node("MatMul", ["m", "wo"], ["y0"]),
    ]
    return nodes, known


def plans(layers: int) -> Iterator[CutPlan]:
    yield CutPlan(tuple(Stage(range(n, n + 1), (n,)) for n in range(layers)))
    yield CutPlan((Stage(range(layers), (0, 1, 2), Cut.HEADS),))
    yield CutPlan((Stage(range(layers), (0, 1, 2), Cut.BATCH),))
    for crossing in Crossing:
        yield CutPlan((Stage(range(layers), tuple(range(7)), Cut.TOKENS, crossing),))


def check(
    folder: Path,
    nodes: list[onnx.NodeProto],
    known: Mapping[str, np.ndarray],
    kind: int = FLOAT,
    opset: int = 17,
    within: float = 1e-5,
) -> list[str]:
    """Every plan's answer against the whole model's; what was refused, and why."""
    constants = [numpy_helper.from_array(array, name) for name, array in known.items()]
    ends = [[value(name, kind, ["batch", "tokens", 8])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    path = folder / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(made, path)
    x = RNG.standard_normal((2, 6, 8)).astype(helper.tensor_dtype_to_np_dtype(kind))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    model = open_model(path)
    axes = analyse(model, {"batch": 2, "tokens": 6})
    refused = []
    for plan in plans(len(narrow_places(axes)) + 1):
        try:
            emitted = cut(axes, plan)
        except InvalidArgument as error:
            refused.append(error.message)
            continue
        graphs, arrays = emitted.graphs.__getitem__, emitted.constants.__getitem__
        ours = InProcess(emitted.schedule, graphs, arrays, model.piece).run({"x": x}).results["y"]
        assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape)
        assert np.abs(ours.astype(np.float64) - wanted).max() <= within * np.abs(wanted).max(), plan
    return refused


@pytest.mark.parametrize(
    ("kind", "opset", "within"), [(HALF, 17, 5e-3), (HALF, 21, 5e-3), (DOUBLE, 17, 1e-12)]
)
def test_floats_of_other_widths(tmp_path: Path, kind: int, opset: int, within: float) -> None:
    """Partials are of float32: where a plan says to merge, these gather."""
    nodes, known = attention(helper.tensor_dtype_to_np_dtype(kind))
    nodes.append(helper.make_node("Add", ["y0", "x"], ["y"]))
    assert check(tmp_path, nodes, known, kind, opset, within) == []


def test_biases_looked_up_for_tokens_by_tokens_in_a_row(tmp_path: Path) -> None:
    """As BEiT and its kin have them: a row of 36 is 6 by 6, and a range of it is of neither 6."""
    nodes, known = attention()
    at = next(n for n, node in enumerate(nodes) if node.op_type == "Softmax")
    nodes[at].input[0] = "biased"
    nodes[at:at] = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Reshape", ["rows", "square"], ["by_token"]),
        helper.make_node("Transpose", ["by_token"], ["by_head"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["by_head", "first"], ["bias"]),
        helper.make_node("Add", ["s", "bias"], ["biased"]),
    ]
    places = np.arange(6)[:, None] - np.arange(6) + 5
    known |= {"table": RNG.standard_normal((11, 2)).astype(np.float32), "places": places.reshape(-1)}
    known |= {"square": np.array([6, 6, 2]), "first": np.array([0])}
    nodes.append(helper.make_node("Add", ["y0", "x"], ["y"]))
    assert check(tmp_path, nodes, known) == []


@pytest.mark.parametrize("looked_up", [False, True])
def test_places_that_a_table_is_of_are_tokens(tmp_path: Path, looked_up: bool) -> None:
    """As SAM's encoder has biases that follow from queries: a table of 6 by 6 places, or of 11 distances."""
    nodes, known = attention()
    at = next(n for n, node in enumerate(nodes) if node.op_type == "Softmax")
    nodes[at].input[0] = "biased"
    nodes[at:at] = [
        helper.make_node("Einsum", ["q", "table"], ["bias"], equation="bhqc,qkc->bhqk"),
        helper.make_node("Add", ["s", "bias"], ["biased"]),
    ]
    if looked_up:
        nodes.insert(0, helper.make_node("Gather", ["distances", "places"], ["table"]))
        known |= {"distances": RNG.standard_normal((11, 4)).astype(np.float32)}
        known |= {"places": np.arange(6)[:, None] - np.arange(6) + 5}
        known |= {"positions": RNG.standard_normal((1, 6, 8)).astype(np.float32)}  # another weight of places
        nodes.append(helper.make_node("Add", ["y0", "positions"], ["y"]))
    else:
        known |= {"table": RNG.standard_normal((6, 6, 4)).astype(np.float32)}
        nodes.append(helper.make_node("Add", ["y0", "x"], ["y"]))
    assert check(tmp_path, nodes, known) == []


def test_keys_and_values_sliced_out_of_one_weight(tmp_path: Path) -> None:
    """As PyTorch exports attention to another sequence: a head is in two places of the weight."""
    nodes, known = attention()
    nodes = [node for node in nodes if node.output[0][0] not in "kv"]
    nodes[3:3] = [
        helper.make_node("Slice", ["all", "first", "last", "rows"], ["two"]),
        helper.make_node("Transpose", ["two"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["both"]),
        helper.make_node("Reshape", ["both", "by_two"], ["apart2"]),
        helper.make_node("Gather", ["apart2", "zero"], ["k1"], axis=2),
        helper.make_node("Gather", ["apart2", "one"], ["v1"], axis=2),
        helper.make_node("Transpose", ["k1"], ["k"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["v1"], ["v"], perm=[0, 2, 1, 3]),
    ]
    known |= {"all": RNG.standard_normal((24, 8)).astype(np.float32), "by_two": np.array([0, 0, 2, 2, 4])}
    known |= {"first": np.array([8]), "last": np.array([24]), "rows": np.array([0])}
    known |= {"zero": np.array(0), "one": np.array(1)}
    nodes.append(helper.make_node("Add", ["y0", "x"], ["y"]))
    assert check(tmp_path, nodes, known) == []


def behind(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What a node makes of unknown size is given that of x, and multiplied."""
    return [
        node,
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["z", "shape"], ["z1"]),
        helper.make_node("MatMul", ["z1", "wq"], ["z2"]),
        helper.make_node("Add", ["z2", "x"], ["y"]),
    ]


def test_a_loop_whose_own_names_are_those_of_a_segment(tmp_path: Path) -> None:
    nodes, known = attention()
    # c0, t0 and so on are what constants and results are called in segments.
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c0"], ["c1"]),
            helper.make_node("Add", ["t0", "x"], ["t1"]),
            helper.make_node("Mul", ["t1", "scale"], ["x0"]),
        ],
        "body",
        [value("c2", TensorProto.INT64, []), value("c0", TensorProto.BOOL, []), value("t0", FLOAT, None)],
        [value("c1", TensorProto.BOOL, []), value("x0", FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["times", "", "y0"], ["z"], body=body)
    assert check(tmp_path, nodes + behind(loop), known | {"times": np.array(3)}) == []


def test_a_scan_over_tokens_is_refused_by_tokens_alone(tmp_path: Path) -> None:
    nodes, known = attention()
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "row"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body",
        [value("state", FLOAT, [2, 8]), value("row", FLOAT, [2, 8])],
        [value("next", FLOAT, [2, 8]), value("out", FLOAT, [2, 8])],
    )
    scan = helper.make_node(
        "Scan",
        ["first", "y0"],
        ["last", "z"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    first = RNG.standard_normal((2, 8)).astype(np.float32)
    refused = check(tmp_path, nodes + behind(scan), known | {"first": first})
    assert [why.partition(":")[0].split()[-1] for why in refused] == ["batch", *["tokens"] * 3]
    assert all("Scan" in why for why in refused)


def test_a_name_made_twice_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    ends = [[value(name, FLOAT, ["n"])] for name in ("x", "y")]
    made = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(InvalidGraph, match="'y' is made twice, the second time by Neg"):
        open_model(tmp_path / "m.onnx")
