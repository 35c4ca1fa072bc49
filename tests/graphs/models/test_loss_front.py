"""A Softmax or Sigmoid in front of a loss: seen as exporters write it, and the loss is of its logits."""

from __future__ import annotations

import losses_in_float64 as reference
import numpy as np
import pytest
from onnx import NodeProto
from small_models import FLOAT, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import Model, gradient_graph, load_model

ROWS, WIDTH, CLASSES = 5, 4, 3
Z = node("MatMul", ["x", "w"], ["z"])
ONE = {
    "one": np.array(1.0, np.float32),
    "last": np.array([-1], np.int64),
    "column": np.array([-1, 1], np.int64),
    "low": np.array(-3e38, np.float32),
}


def file(nodes: list[NodeProto], *shape: int, **extra: np.ndarray) -> bytes:
    return model(
        [Z, *nodes],
        {"x": (FLOAT, ["n", WIDTH])},
        {"logits": (FLOAT, ["n", *shape])},
        {"w": normal(1, WIDTH, int(np.prod(shape))), **extra},
    )


SOFTMAX: dict[str, list[NodeProto]] = {
    "whole": [node("Softmax", ["z"], ["logits"], axis=-1)],
    "axis counted from the front": [node("Softmax", ["z"], ["logits"], axis=1)],
    "identity behind it": [node("Softmax", ["z"], ["p"], axis=1), node("Identity", ["p"], ["logits"])],
    "a dropout that is off behind it": [
        node("Softmax", ["z"], ["p"], axis=1),
        node("Dropout", ["p"], ["logits"]),
    ],
    "cast there and back": [
        node("Cast", ["z"], ["wide"], to=11),
        node("Softmax", ["wide"], ["p"]),
        node("Cast", ["p"], ["logits"], to=FLOAT),
    ],
    "clipped": [
        node("Softmax", ["z"], ["p"]),
        node("Clip", ["p", "little", "one"], ["logits"]),
    ],
    "taken apart": [
        node("ReduceMax", ["z", "last"], ["most"], keepdims=1),
        node("Sub", ["z", "most"], ["shifted"]),
        node("Exp", ["shifted"], ["e"]),
        node("ReduceSum", ["e", "last"], ["sum"], keepdims=1),
        node("Div", ["e", "sum"], ["logits"]),
    ],
    "taken apart as JAX does": [
        node("ReduceMax", ["z", "last"], ["least"], keepdims=0),
        node("Max", ["low", "least"], ["most"]),
        node("Reshape", ["most", "column"], ["most_column"]),
        node("Shape", ["z"], ["size"]),
        node("Expand", ["most_column", "size"], ["most_wide"]),
        node("Sub", ["z", "most_wide"], ["shifted"]),
        node("Exp", ["shifted"], ["e"]),
        node("ReduceSum", ["e", "last"], ["sum"], keepdims=0),
        node("Reshape", ["sum", "column"], ["sum_column"]),
        node("Expand", ["sum_column", "size"], ["sum_wide"]),
        node("Div", ["e", "sum_wide"], ["logits"]),
    ],
    "taken apart, not shifted": [
        node("Exp", ["z"], ["e"]),
        node("ReduceSum", ["e", "last"], ["sum"], keepdims=1),
        node("Div", ["e", "sum"], ["logits"]),
    ],
    "logarithm": [node("LogSoftmax", ["z"], ["logits"])],
    "logarithm of it": [node("Softmax", ["z"], ["p"]), node("Log", ["p"], ["logits"])],
}


@pytest.mark.parametrize("how", SOFTMAX)
def test_cross_entropy_is_of_what_a_softmax_takes(how: str) -> None:
    loaded = load_model(
        file(SOFTMAX[how], CLASSES, little=np.float32(1e-7), **ONE), loss=LossSpec("cross_entropy")
    )
    # So far apart that a probability is 0 in float32, whose logarithm is not finite.
    x, y = 100 * normal(2, ROWS, WIDTH), np.array([0, 1, 2, 1, 0])
    check_cross_entropy(loaded, x, y)
    assert bool(loaded.notes) == ("logarithm" not in how)
    if loaded.notes:
        assert "'logits' is made by Softmax" in loaded.notes[0]


def check_cross_entropy(loaded: Model, x: np.ndarray, y: np.ndarray) -> None:
    w = loaded.parameters["w"]
    found = run(gradient_graph(loaded, len(x)), {"x": x, "labels": y, "x/0": w})
    wide = x.astype(np.float64)
    p = np.exp(reference.log_softmax(wide @ w.astype(np.float64), -1))
    close(found["loss"], reference.cross_entropy(wide @ w.astype(np.float64), y)[0])
    close(found["grad/0"], wide.T @ (p - np.eye(CLASSES)[y]) / len(x))


def test_a_softmax_says_which_axis_has_the_classes() -> None:
    nodes = [
        node("Reshape", ["z", "shape"], ["deep"]),
        node("Softmax", ["deep"], ["logits"], axis=1),
    ]
    data = file(nodes, CLASSES, 2, shape=np.array([-1, CLASSES, 2], np.int64))
    loaded = load_model(data, loss=LossSpec("cross_entropy"))
    assert loaded.inputs["labels"] == (np.dtype(np.int64), (None, 2))
    with pytest.raises(InvalidGraph, match="over axis 1, and class_axis of the loss is 2"):
        load_model(data, loss=LossSpec("cross_entropy", options={"class_axis": 2}))


def test_reshapes_and_transposes_behind_a_softmax_are_done_to_the_logits() -> None:
    nodes = [
        node("Reshape", ["z", "flat"], ["rows"]),  # [n * 2, 3]
        node("Softmax", ["rows"], ["p"], axis=-1),
        node("Reshape", ["p", "deep"], ["tokens"]),  # [n, 2, 3]
        node("Transpose", ["tokens"], ["logits"], perm=[0, 2, 1]),
    ]
    shapes = {"flat": np.array([-1, CLASSES], np.int64), "deep": np.array([-1, 2, CLASSES], np.int64)}
    # Through a Transpose and then a Reshape no axis is known for sure: said, not guessed.
    turned = load_model(file(nodes, CLASSES, 2, **shapes), loss=LossSpec("cross_entropy"))
    assert turned.inputs["labels"] == (np.dtype(np.int64), (None, CLASSES))
    assert "operators that cannot be followed back" in turned.notes[0]
    straight = load_model(
        file([*nodes[:2], node("Reshape", ["p", "deep"], ["logits"])], 2, CLASSES, **shapes),
        loss=LossSpec("cross_entropy"),
    )
    x, y = 50 * normal(3, ROWS, WIDTH), np.arange(ROWS * 2).reshape(ROWS, 2) % CLASSES
    w = straight.parameters["w"]
    found = run(gradient_graph(straight, ROWS), {"x": x, "labels": y, "x/0": w})
    z = (x.astype(np.float64) @ w.astype(np.float64)).reshape(ROWS, 2, CLASSES)
    close(found["loss"], reference.cross_entropy(z, y)[0])
    nodes = [
        node("Reshape", ["z", "deep"], ["tokens"]),
        node("Softmax", ["tokens"], ["p"], axis=2),
        node("Transpose", ["p"], ["logits"], perm=[0, 2, 1]),
    ]
    loaded = load_model(file(nodes, CLASSES, 2, **shapes), loss=LossSpec("cross_entropy"))
    w = loaded.parameters["w"]
    found = run(gradient_graph(loaded, ROWS), {"x": x, "labels": y, "x/0": w})
    z = (x.astype(np.float64) @ w.astype(np.float64)).reshape(ROWS, 2, CLASSES)
    close(found["loss"], reference.cross_entropy(z, y)[0])


SIGMOID: dict[str, list[NodeProto]] = {
    "whole": [node("Sigmoid", ["z"], ["logits"])],
    "in parts": [
        node("Neg", ["z"], ["minus"]),
        node("Exp", ["minus"], ["e"]),
        node("Add", ["e", "one"], ["below"]),
        node("Div", ["one", "below"], ["logits"]),
    ],
    "reciprocal": [
        node("Neg", ["z"], ["minus"]),
        node("Exp", ["minus"], ["e"]),
        node("Add", ["one", "e"], ["below"]),
        node("Reciprocal", ["below"], ["logits"]),
    ],
}


@pytest.mark.parametrize("how", SIGMOID)
@pytest.mark.parametrize("labels", [1, 2])
def test_binary_cross_entropy_is_of_what_a_sigmoid_takes(how: str, labels: int) -> None:
    loaded = load_model(file(SIGMOID[how], labels, **ONE), loss=LossSpec("binary_cross_entropy"))
    assert "made by Sigmoid" in loaded.notes[0]
    x, w = 60 * normal(2, ROWS, WIDTH), loaded.parameters["w"]
    y = (np.arange(ROWS * labels) % 2).astype(np.float32).reshape(ROWS, labels)
    y = y[:, 0] if labels == 1 else y
    found = run(gradient_graph(loaded, ROWS), {"x": x, "labels": y, "x/0": w})
    z = x.astype(np.float64) @ w.astype(np.float64)
    close(found["loss"], reference.binary_cross_entropy(z, y.astype(np.float64))[0])


@pytest.mark.parametrize(
    ("nodes", "loss", "other"),
    [
        (SIGMOID["whole"], "cross_entropy", "use binary_cross_entropy, which sees the Sigmoid"),
        (SOFTMAX["whole"], "binary_cross_entropy", "use cross_entropy, which sees the Softmax"),
    ],
)
def test_the_other_loss_than_the_output_was_made_for_is_said(
    nodes: list[NodeProto], loss: str, other: str
) -> None:
    loaded = load_model(file(nodes, CLASSES, **ONE), loss=LossSpec(loss))
    assert other in loaded.notes[0]


def test_differences_are_of_the_output_as_it_is() -> None:
    loaded = load_model(file(SOFTMAX["whole"], CLASSES, **ONE), loss=LossSpec("mse"))
    assert loaded.notes == ()


def test_a_softmax_over_the_batch_is_refused_as_that() -> None:
    with pytest.raises(InvalidGraph, match=r"made by Softmax '.*' over axis 0, which is the batch"):
        load_model(
            file([node("Softmax", ["z"], ["logits"], axis=0)], CLASSES), loss=LossSpec("cross_entropy")
        )


@pytest.mark.parametrize(
    ("inner", "outer"), [([-1, 6], [-1, 2, 3]), ([-1, 2, 3], [-1, 6]), ([-1, 3], [-1, 6])]
)
def test_a_softmax_whose_axis_is_cut_or_joined_behind_it_is_not_taken_for_another(
    inner: list[int], outer: list[int]
) -> None:
    """Six classes that share one probability are no two times three, nor the other way round."""
    nodes = [
        node("Reshape", ["z", "inner"], ["made"]),
        node("Softmax", ["made"], ["p"], axis=-1),
        node("Reshape", ["p", "outer"], ["logits"]),
    ]
    data = file(nodes, *outer[1:], inner=np.array(inner), outer=np.array(outer))
    (note,) = load_model(data, loss=LossSpec("cross_entropy")).notes
    assert "trains on the output as if it were logits" in note


def test_an_old_softmax_over_all_axes_but_the_batch_is_not_one_over_the_last() -> None:
    """Before opset 13 Softmax flattened from its axis on, which was 1."""
    nodes = [node("Reshape", ["z", "deep"], ["made"]), node("Softmax", ["made"], ["logits"])]
    data = model(
        [Z, *nodes],
        {"x": (FLOAT, ["n", WIDTH])},
        {"logits": (FLOAT, ["n", 2, CLASSES])},
        {"w": normal(1, WIDTH, 2 * CLASSES), "deep": np.array([-1, 2, CLASSES])},
        11,
    )
    (note,) = load_model(data, loss=LossSpec("cross_entropy")).notes
    assert "trains on the output as if it were logits" in note
