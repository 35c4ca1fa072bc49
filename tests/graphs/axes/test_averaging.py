"""Plans by averaging: the mean of parts that each do all."""

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.saved import dumps, loads
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.in_process import InProcess
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of
from tests.graphs.axes.test_random_cuts import analysed, layers_in, whole

RECIPE = TransformerRecipe(layers=2, batch=2, result="both")


def plan_of(axes, parts):
    return CutPlan((Stage(range(layers_in(axes)), tuple(range(parts)), Cut.BATCH),), mean=True)


def test_three_parts_that_do_all_average_to_the_whole():
    model, axes = analysed(RECIPE)
    emitted = cut(axes, plan_of(axes, 3))
    assert loads(dumps(emitted.schedule)) == emitted.schedule
    assert len({id(step) for step in emitted.schedule.steps}) == 1
    run = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece
    ).run(feeds_of(RECIPE, 0))
    for name, wanted in whole(RECIPE, feeds_of(RECIPE, 0)).items():
        np.testing.assert_allclose(run.results[name], wanted, atol=1e-5 * np.abs(wanted).max())


def test_it_is_the_mean_and_no_other():
    """Of parts whose answers differ: here the third has other weights."""
    model, axes = analysed(RECIPE)
    emitted = cut(axes, plan_of(axes, 3))
    run = InProcess(emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece)
    other, _ = analysed(TransformerRecipe(seed=9, layers=2, batch=2, result="both"))
    changed = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, other.piece
    )
    run._sessions[0, 2] = changed._sessions[0, 2]
    feeds = feeds_of(RECIPE, 0)
    one, two = whole(RECIPE, feeds), whole(TransformerRecipe(seed=9, layers=2, batch=2, result="both"), feeds)
    for name, found in run.run(feeds).results.items():
        np.testing.assert_allclose(found, (2 * one[name] + two[name]) / 3, atol=1e-4)


def test_a_plan_by_averaging_has_one_stage():
    _, axes = analysed(RECIPE)
    stages = (Stage(range(1), (0,)), Stage(range(1, layers_in(axes)), (1,)))
    with pytest.raises(InvalidArgument, match="one stage"):
        cut(axes, CutPlan(stages, mean=True))
