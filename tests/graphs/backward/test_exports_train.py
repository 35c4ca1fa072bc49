"""Models as exporters write them, cut by every plan: the parts' gradients are those of the whole model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.reading import read_graph
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of
from tests.graphs.backward.training_cases import TrainingCase, case_of, loss_for, run_cut, session

EXPORTS = Path(__file__).parent.parent / "axes" / "exports"
NAMES = ("distilbert", "llama")


@cache
def case(name: str) -> tuple[TrainingCase, Axes]:
    path = EXPORTS / f"{name}.onnx"
    model = onnx.load(path)
    found = case_of(path.read_bytes(), feeds_for(model.graph, LENGTHS[0]), loss_for(model))
    return found, found.axes()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_parts_are_those_of_the_whole(name: str, plan: str) -> None:
    one, axes = case(name)
    emitted = one.cut(plan_of(plan, axes, 3))
    worst, where = one.worst(run_cut(one, emitted))
    assert worst < 2e-6, where
    for graph in emitted.graphs.values():
        read_graph(graph, "segment")  # as a node reads it, which refuses what it does not know


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_slopes(name: str) -> None:
    """Along a random direction, beside central differences of the loss."""
    one, axes = case(name)
    gradients = run_cut(one, one.cut(plan_of("tokens, merge", axes, 2))).results
    file = one.model.model
    rng = np.random.default_rng(3)
    weights = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer if t.name in one.trained}
    turns = {
        n: (rng.standard_normal(w.shape) * np.abs(w).mean()).astype(np.float32) for n, w in weights.items()
    }
    slope = sum(float((gradients[f"grad:{n}"].astype(np.float64) * turn).sum()) for n, turn in turns.items())
    sides = []
    for step in (1e-3, -1e-3):
        moved = onnx.ModelProto()
        moved.CopyFrom(file)
        for tensor in moved.graph.initializer:
            if tensor.name in turns:
                there = weights[tensor.name] + np.float32(step) * turns[tensor.name]
                tensor.CopyFrom(numpy_helper.from_array(there, tensor.name))
        sides.append(float(session(moved.SerializeToString()).run(["loss"], dict(one.feeds))[0]))
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=0.01, abs=1e-3)
