"""Files of opsets that are not read as they are: raised when they are opened, and then as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.whole import whole_graph
from tests.graphs.axes.test_odd_models import attention, check

FLOAT = TensorProto.FLOAT
value = helper.make_tensor_value_info


def older(opset: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """An attention as it was written before MIN_OPSET: what are inputs now were attributes."""
    nodes, known = attention()
    soft = next(node for node in nodes if node.op_type == "Softmax")
    soft.attribute.append(helper.make_attribute("axis", 3))  # 1 is the default, and goes over all behind it
    clip = (
        helper.make_node("Clip", ["y2"], ["y3"], min=-3.0, max=3.0)
        if opset < 11
        else helper.make_node("Clip", ["y2", "least", "most"], ["y3"])
    )
    known |= {"least": np.array(-3, np.float32), "most": np.array(3, np.float32)} if opset >= 11 else {}
    nodes += [
        helper.make_node("Unsqueeze", ["y0"], ["y1"], axes=[1]),
        helper.make_node("Squeeze", ["y1"], ["y2"], axes=[1]),
        clip,
        helper.make_node("ReduceSum", ["y3"], ["total"], axes=[-1 if opset > 10 else 2], keepdims=1),
        helper.make_node("Split", ["y3"], ["left", "right"], axis=2, split=[4, 4]),
        helper.make_node("Concat", ["right", "left"], ["turned"], axis=2),
        helper.make_node("Add", ["turned", "total"], ["y4"]),
        helper.make_node("Dropout", ["y4"], ["y"]),
    ]
    return nodes, known


@pytest.mark.parametrize("opset", range(7, 13))
def test_a_file_of_an_older_opset_is_cut_as_any_other(tmp_path: Path, opset: int) -> None:
    assert check(tmp_path, *older(opset), opset=opset) == []


def saved(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], opset: int) -> None:
    """With constants that are inputs, too, as files of ir_version 3 have them."""
    table = numpy_helper.from_array(np.arange(512, dtype=np.float32).reshape(2, 256) % 7, "table")
    ends = [value("x", FLOAT, shape), value("table", FLOAT, [2, 256])], [value("y", FLOAT, None)]
    graph = helper.make_graph(nodes, "g", *ends, [table])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    onnx.save(made, path)


def test_an_old_softmax_goes_over_all_behind_its_axis(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "table"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    saved(path, nodes, ["n", 3, 2], 9)
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    assert np.allclose(wanted.sum((1, 2)), 1)
    data, weights = whole_graph(open_model(path))
    assert weights == ("table",)  # a default that somebody could give otherwise is the file's own
    model = onnx.load_model_from_string(data)
    assert model.opset_import[0].version == 13
    table = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    (found,) = onnxruntime.InferenceSession(data).run(None, {"x": x, "table": table})
    assert np.abs(found - wanted).max() < 1e-7


def test_what_is_open_may_be_written_as_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    saved(path, [helper.make_node("MatMul", ["x", "table"], ["y"])], [-1, "?", 2], 11)
    (x,) = open_model(path).model.graph.input
    dims = x.type.tensor_type.shape.dim
    assert [dim.WhichOneof("value") for dim in dims] == [None, None, "dim_value"]


def test_graphs_inside_are_raised_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    then = helper.make_graph(
        [helper.make_node("Squeeze", ["z"], ["a"], axes=[1])], "then", [], [value("a", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["b"])], "else", [], [value("b", FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "table"], ["z"]),
        helper.make_node("ReduceMax", ["z"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    saved(path, nodes, ["n", 1, 2], 11)
    x = np.ones((4, 1, 2), np.float32)
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    data, _ = whole_graph(open_model(path))
    table = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    (found,) = onnxruntime.InferenceSession(data).run(None, {"x": x, "table": table})
    assert wanted.shape == found.shape == (4, 256)
    assert np.array_equal(found, wanted)


def test_what_cannot_be_raised_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    saved(path, [helper.make_node("MatMul", ["x", "table"], ["y"])], ["n", 2], 6)
    with pytest.raises(InvalidGraph, match="opset 6 is not supported; export with opset 7 to 26"):
        open_model(path)


def test_an_old_softmax_over_the_last_axis_is_a_plain_one(tmp_path: Path) -> None:
    """Of values whose rank onnx's converter does not know; else parts of keys would not be merged."""
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "table"], ["z"]),
        helper.make_node("Shape", ["z"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["cast"], ["again"], to=TensorProto.INT64),
        helper.make_node("NonZero", ["again"], ["there"]),
        helper.make_node("Squeeze", ["there"], ["places"], axes=[0]),
        helper.make_node("Gather", ["sizes", "places"], ["shape"]),
        helper.make_node("Reshape", ["z", "shape"], ["w"]),
        helper.make_node("Softmax", ["w"], ["y"], axis=2),
    ]
    saved(path, nodes, ["n", 3, 2], 11)
    model = open_model(path)
    assert "Flatten" in [node.op_type for node in model.model.graph.node]
    bound = bind(model.model, {"n": 4}, model.read)
    assert [node.op_type for node in bound.nodes if node.op_type in ("Flatten", "Softmax")] == ["Softmax"]
    assert bound.shape("y") == (4, 3, 256)
