"""A trained model run on rows that are here: what it is given, and what is refused in which words."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_attention.client.predictions import CHUNK, Prediction, joined, predicted
from edge_attention.client.runs import IDS, AsyncRun
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages.training import PredictResponse


def model(inputs=None):
    """y = a/x + the row's number b/n, or what `inputs` says; b may be absent."""
    inputs = inputs or {"a/x": TensorProto.FLOAT, "b/n": TensorProto.INT64, "b/present": TensorProto.FLOAT}
    shapes = {"a/x": ["batch", 2], "b/n": ["batch", 1], "a/present": ["batch"], "b/present": ["batch"]}
    nodes = [
        helper.make_node("Cast", ["b/n"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a/x", "n"], ["sum"]),
        helper.make_node("Unsqueeze", ["b/present", "axis"], ["there"]),
        helper.make_node("Add", ["sum", "there"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, kind, shapes[name]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def test_rows_run_in_pieces_and_come_back_in_order():
    count = 2 * CHUNK + 3
    rows = {"a": {"x": np.zeros((count, 2))}, "b/n": np.arange(count)[:, None]}
    found = predicted(model(), rows)["y"]
    np.testing.assert_array_equal(found, 1 + np.repeat(np.arange(count)[:, None], 2, axis=1))


def test_a_node_that_is_left_out_lacks_all_samples():
    np.testing.assert_array_equal(predicted(model(), {"a/x": np.ones((3, 2))})["y"], np.ones((3, 2)))


def test_an_input_that_is_no_row_a_sample_is_refused_with_a_way_out():
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(InvalidTensor, match=r"'scale' takes one number for all rows, .*run\.save_onnx"):
        predicted(made.SerializeToString(), {"x": np.ones((2, 2)), "scale": 2.0})


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        ({}, InvalidArgument, "there are no rows; the model takes a/x, b/n"),
        ({"a/y": [[1, 2]]}, InvalidArgument, r"no input 'a/y' \(did you mean 'a/x'\?\); it takes a/x, b/n"),
        ({"b/n": [[1]]}, InvalidArgument, "rows lack a/x, which the model takes besides"),
        ({"a/x": [[1.0]]}, InvalidTensor, r"rows\['a/x'\] is \[1, 1\]; the model takes \[rows, 2\]"),
        ({"a/x": [[1.0, 2.0]], "b/n": [[1.5]]}, InvalidTensor, "not every value of it is int64 exactly"),
        ({"a/x": [[1.0, 2.0]], "b/n": [[1], [2]]}, InvalidTensor, "several numbers of rows"),
        ({"a/x": np.zeros((0, 2))}, InvalidTensor, "the inputs have no rows"),
        ({"a/x": "text"}, InvalidTensor, "rows"),
    ],
)
def test_what_the_model_does_not_take(rows, error, said):
    with pytest.raises(error, match=said):
        predicted(model(), rows)


def test_several_calls_are_one_answer():
    parts = [
        (2, PredictResponse(4, {"y": np.zeros((2, 1))}, {"a": 1.0, "b": 0.0}, {"b": 2})),
        (1, PredictResponse(4, {"y": np.ones((1, 1))}, {"a": 0.4, "b": 0.6})),
    ]
    whole = joined(parts)
    assert whole["y"].tolist() == [[0], [0], [1]]
    assert (whole.version, whole.absent) == (4, {"b": 2})
    assert whole.mass == pytest.approx({"a": 0.8, "b": 0.2})
    assert repr(whole) == "<Prediction of version 4: y [3, 1]>"
    other = PredictResponse(5, {"y": np.ones((1, 1))}, {})
    with pytest.raises(InvalidArgument, match="a new version was committed meanwhile"):
        joined([parts[0], (1, other)])
    assert isinstance(whole, Prediction)


def test_all_calls_ask_the_version_that_answered_first():
    asked = []

    async def unary(method, request, seconds):
        asked.append((request.version, request.best, len(request.ids)))
        return PredictResponse(7, {"y": np.zeros((len(request.ids), 1))}, {})

    connection = SimpleNamespace(caller=SimpleNamespace(unary=unary))
    run = AsyncRun(connection, SimpleNamespace(id="r-1"))
    found = asyncio.run(run.predict([f"P{i}" for i in range(IDS + 1)], "best"))
    assert (found.version, len(found["y"])) == (7, IDS + 1)
    assert asked == [(None, True, IDS), (7, False, 1)]


def with_its_loss():
    """What a class with `forward(x, y) -> {"loss": ..., "z": ...}` becomes: z = 2x, loss = mean(z - y)."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["z"]),
        helper.make_node("Sub", ["z", "y"], ["off"]),
        helper.make_node("ReduceMean", ["off"], ["loss"], keepdims=0),
        helper.make_node("Identity", ["one"], ["always"]),
    ]
    shaped = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "loss",
        [shaped(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"],
        [
            shaped("loss", TensorProto.FLOAT, []),
            shaped("z", TensorProto.FLOAT, ["batch", 2]),
            shaped("always", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()


def test_of_a_model_that_makes_its_loss_rows_need_no_labels():
    x = np.ones((CHUNK + 2, 2), np.float32)
    found = predicted(with_its_loss(), {"x": x})
    assert list(found) == ["z"]
    np.testing.assert_array_equal(found["z"], 2 * x)
    assert list(predicted(with_its_loss(), {"x": x, "y": x})) == ["loss", "z", "always"]
    with pytest.raises(InvalidArgument, match="rows lack x, which the model takes besides, for all that it"):
        predicted(with_its_loss(), {"y": x})
