"""What the check of a model finds out before a fleet trains it."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import FLOAT, INT64, attending, linear, model, node, normal

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import load_model
from edge_attention.graphs.models.model_checks import check_model


def small(nodes: list, values: dict[str, np.ndarray]) -> bytes:
    return model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 3])}, values)


@pytest.mark.parametrize("file", [linear(), attending()])
def test_a_sound_model_passes(file: bytes) -> None:
    assert check_model(load_model(file, loss=LossSpec("cross_entropy", "logits"))) < 0.01


def test_kinks_are_no_reason_to_refuse() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Mul", ["r", "v"], ["y"])]
    loaded = load_model(small(nodes, {"w": normal(1, 4, 3), "v": normal(2, 3)}), loss=LossSpec("l1"))
    for seed in range(5):
        check_model(loaded, 8, seed=seed)


def test_an_operator_without_a_derivative_is_noticed() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Round", ["h"], ["r"]), node("Mul", ["r", "v"], ["y"])]
    values = {"w": 30 * normal(1, 4, 3), "v": normal(2, 3)}
    with pytest.raises(InvalidGraph, match=r"gradient of 'w' at .* finite differences miss it"):
        check_model(load_model(small(nodes, values), loss=LossSpec("mse")), 64)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Log", ["h"], ["y"])]
    with pytest.raises(InvalidGraph, match="the loss is nan on a random batch"):
        check_model(load_model(small(nodes, {"w": normal(1, 4, 3)}), loss=LossSpec("mse")))


def test_a_gradient_that_is_not_finite_is_refused_with_the_parameters_name() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "zero"], ["z"]), node("Sqrt", ["z"], ["y"])]
    values = {"w": np.abs(normal(1, 4, 3)), "zero": np.zeros(3, np.float32)}
    loaded = load_model(small(nodes, values), loss=LossSpec("l1"), parameters=["w"])
    with pytest.raises(InvalidGraph, match=r"the gradient of 'w' is not finite"):
        check_model(loaded, feeds={"x": np.abs(normal(0, 4, 4))})


def test_a_row_of_padding_alone_is_no_reason_to_refuse() -> None:
    """Integers are tried with 0 and 1: where 0 is padding, a row may have nothing else."""
    nodes = [
        node("Cast", ["ids"], ["numbers"], to=FLOAT),
        node("ReduceMax", ["numbers", "last"], ["any"], keepdims=1),
        node("Log", ["any"], ["seen"]),
        node("Add", ["seen", "w"], ["y"]),
    ]
    values = {"w": normal(1, 3), "last": np.array([1], np.int64)}
    file = model(nodes, {"ids": (INT64, ["n", 2])}, {"y": (FLOAT, ["n", 3])}, values)
    loaded = load_model(file, loss=LossSpec("mse"))
    for seed in range(10):
        assert check_model(loaded, seed=seed) < 0.01
    with pytest.raises(InvalidGraph, match="the loss is inf"):
        check_model(loaded, feeds={"ids": np.zeros((4, 2), np.int64)})


def test_feeds_take_the_place_of_random_data() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Log", ["h"], ["y"])]
    loaded = load_model(small(nodes, {"w": np.abs(normal(1, 4, 3)) + 1}), loss=LossSpec("mse"))
    assert check_model(loaded, feeds={"x": np.abs(normal(0, 4, 4)) + 1}) < 0.01
    with pytest.raises(InvalidGraph, match="no input 'z'; there are"):
        check_model(loaded, feeds={"z": normal(0, 4, 4)})
