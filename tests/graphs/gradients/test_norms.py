"""Gradients through the mean and the variance of a batch norm that has none stored."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import FLOAT, close, model, node, normal, run

from edge_attention.graphs.gradients.gradients import differentiate

SHAPE = (3, 2, 5)
AXES = (0, 2)
EPSILON = 1e-3


def forward(given: set[str]) -> bytes:
    """`given`: which of mean and variance are stored."""
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        node("ReduceMean", ["x", "axes"], ["middle"], keepdims=1),
        node("Sub", ["x", "middle"], ["off"]),
        node("Mul", ["off", "off"], ["squares"]),
        node("ReduceMean", ["squares", "axes"], ["variance"], keepdims=0),
        node("BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["y"], epsilon=EPSILON),
    ]
    values = {name: 1 + np.abs(normal(2, 2)) for name in given} | {"axes": np.array(AXES, np.int64)}
    inputs = {"x": (FLOAT, SHAPE), "scale": (FLOAT, [2]), "bias": (FLOAT, [2])}
    made = [one for one in nodes if one.output[0] not in given]
    return model(made, inputs, {"y": (FLOAT, SHAPE)}, values)


@pytest.mark.parametrize("given", [set(), {"mean"}, {"variance"}, {"mean", "variance"}])
def test_what_is_computed_carries_it(given: set[str]) -> None:
    """Of sum(dy * y), by central differences in float64."""
    point = {"x": normal(1, *SHAPE), "scale": normal(3, 2), "bias": normal(4, 2)}
    dy = normal(5, *SHAPE)
    stored = 1 + np.abs(normal(2, 2)).astype(np.float64)

    def total(at: dict[str, np.ndarray]) -> float:
        x = at["x"]
        mean = stored if "mean" in given else x.mean(AXES)
        variance = stored if "variance" in given else x.var(AXES)
        parts = [each[:, None] for each in (mean, variance, at["scale"], at["bias"])]
        return float((dy * ((x - parts[0]) / np.sqrt(parts[1] + EPSILON) * parts[2] + parts[3])).sum())

    model_ = onnx.load_model_from_string(forward(given))
    graph = differentiate(model_, SHAPE[0], wrt={name: f"d{name}" for name in point}, seeds={"y": "dy"})
    found = run(graph, {**point, "dy": dy})
    for name, value in point.items():
        wanted = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = {each: array.astype(np.float64) for each, array in point.items()}
                moved[name][index] += step
                sides.append(total(moved))
            wanted[index] = (sides[0] - sides[1]) / 2e-5
        close(np.asarray(found[f"d{name}"]), wanted)
