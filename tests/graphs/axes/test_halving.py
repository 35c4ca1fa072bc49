"""Boundaries that pass in float16: gathered ones are rounded and widened by the segments' own graphs."""

import numpy as np
import pytest
from random_transformers import TransformerRecipe, feeds_of
from test_random_cuts import analysed, layers_in, whole

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.saved import dumps, loads
from edge_attention.core.schedule.schedule import Collective
from edge_attention.core.schedule.traffic import halved, traffic_of
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.in_process import InProcess

RECIPE = TransformerRecipe(layers=2, batch=2, result="both")


def cut_by(kind, crossing=Crossing.GATHER, *, halves):
    model, axes = analysed(RECIPE)
    stage = Stage(range(layers_in(axes)), (0, 1, 2), kind, crossing, (3, 2, 1))
    emitted = cut(axes, CutPlan((stage,), halves=halves))
    return model, emitted


@pytest.mark.parametrize(
    ("kind", "crossing"),
    [(Cut.TOKENS, crossing) for crossing in Crossing] + [(Cut.HEADS, Crossing.GATHER)],
    ids=lambda value: value.value,
)
def test_what_is_gathered_is_float16_and_costs_its_rounding(kind, crossing):
    model, emitted = cut_by(kind, crossing, halves=True)
    schedule = emitted.schedule
    assert loads(dumps(schedule)) == schedule
    rounded = {name for name, boundary in schedule.boundaries.items() if boundary.rounded}
    for name, boundary in schedule.boundaries.items():
        gathered = boundary.collective is Collective.GATHER and name not in schedule.results.values()
        assert (name in rounded) <= gathered, name
        assert (boundary.spec.dtype == "float16") == (name in rounded)
        assert not (gathered and boundary.spec.dtype == "float32"), name
    # With what the aggregator converts, the same bytes as if it converted all.
    _, exact = cut_by(kind, crossing, halves=False)
    assert traffic_of(schedule, halves=True) == traffic_of(exact.schedule, halves=True)
    assert halved(schedule) == halved(exact.schedule) - rounded

    run = InProcess(schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece)
    for feeds in (feeds_of(RECIPE, 0), feeds_of(RECIPE, 1)):
        for name, wanted in whole(RECIPE, feeds).items():
            error = np.abs(run.run(feeds).results[name] - wanted).max() / np.abs(wanted).max()
            assert error < 1e-2, name
            assert (error > 1e-6) or not rounded


def test_a_stage_hands_on_in_float16():
    model, axes = analysed(RECIPE)
    layers = layers_in(axes)
    stages = (Stage(range(layers - 1), (0,)), Stage(range(layers - 1, layers), (1,)))
    emitted = cut(axes, CutPlan(stages, halves=True))
    assert any(boundary.rounded for boundary in emitted.schedule.boundaries.values())
    run = InProcess(emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece)
    feeds = feeds_of(RECIPE, 0)
    for name, wanted in whole(RECIPE, feeds).items():
        np.testing.assert_allclose(run.run(feeds).results[name], wanted, atol=1e-2 * np.abs(wanted).max())
