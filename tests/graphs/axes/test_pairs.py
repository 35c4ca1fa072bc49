"""The article's case: 12 layers of 12 heads over 20 units."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edge_attention.core.schedule.pairs import plan_of_pairs
from edge_attention.core.schedule.saved_plan import dumps_plan, loads_plan
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.in_process import InProcess
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of, transformer
from tests.graphs.axes.test_random_cuts import analysed, layers_in, whole

LAYERS = HEADS = 12
UNITS = 20
RECIPE = TransformerRecipe(layers=LAYERS, key_heads=HEADS, dim=2, value_dim=2, wide=40, tokens=4, bias=True)


def ran(recipe, each=None):
    model, axes = analysed(recipe)
    heads = {name: axes.size(name) for name in axes.named if name.startswith("heads")}
    assert list(heads.values()) == [HEADS] * LAYERS
    plan = plan_of_pairs(layers_in(axes), heads, UNITS, each)
    assert loads_plan(dumps_plan(plan), layers_in(axes)) == plan
    emitted = cut(axes, plan)
    run = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece
    ).run(feeds_of(recipe, 0))
    return plan, emitted.schedule, run.results


def pairs_of(plan):
    ranges = plan.stages[0].ranges
    return [sum(ranges[name][unit][1] - ranges[name][unit][0] for name in ranges) for unit in range(UNITS)]


def test_144_pairs_over_20_units_are_the_whole_model():
    plan, schedule, results = ran(RECIPE)
    assert sorted(set(pairs_of(plan))) == [7, 8]
    assert sum(pairs_of(plan)) == 144
    assert (schedule.coverage, schedule.lacking) == (1.0, "")
    wanted = whole(RECIPE, feeds_of(RECIPE, 0))["hidden"]
    assert np.abs(results["hidden"] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_20_times_5_pairs_cover_100_of_144_and_the_schedule_says_so():
    """The answer is then the model's without the 44 pairs that nobody has: heads 4 on of the ninth layer."""
    plan, schedule, results = ran(RECIPE, each=5)
    assert pairs_of(plan) == [5] * UNITS
    assert schedule.coverage == pytest.approx(100 / 144)
    assert schedule.lacking == (
        "nobody does 8 of 12 of heads.8, 12 of 12 of heads.9, 12 of 12 of heads.10, 12 of 12 of heads.11"
    )
    wanted = without_heads(RECIPE, {8: 4, 9: 0, 10: 0, 11: 0})
    assert np.abs(results["hidden"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    right = whole(RECIPE, feeds_of(RECIPE, 0))["hidden"]
    assert np.abs(results["hidden"] - right).max() > 1e-3 * np.abs(right).max()


def without_heads(recipe, first_without):
    """The whole model's answer where of these layers the heads from a number on add nothing."""
    model = transformer(recipe)
    for tensor in model.graph.initializer:
        for layer, first in first_without.items():
            if tensor.name == f"decoder.{layer}.out.weight":
                array = numpy_helper.to_array(tensor).copy()
                array[first * recipe.value_dim :] = 0
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return onnx_answer(model, feeds_of(recipe, 0))


def onnx_answer(model: onnx.ModelProto, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0]
