"""Models as exporters write them, cut by every plan: the parts' gradients are those of the whole model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import pytest

from edge_attention.graphs.axes.model_axes import Axes
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of
from tests.graphs.backward.training_cases import TrainingCase, case_of, loss_for, run_cut

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
