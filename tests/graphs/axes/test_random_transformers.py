"""The random transformers are models that run, and are what they say."""

import numpy as np
import onnxruntime
import pytest

from tests.graphs.axes.random_transformers import OPTIONS, feeds_of, recipe_of, transformer


def answers(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_they_run_and_answer_something(seed):
    recipe = recipe_of(seed)
    found = answers(transformer(recipe), feeds_of(recipe, 0))
    other = answers(transformer(recipe), feeds_of(recipe, 1))
    assert found
    for name, array in found.items():
        assert np.isfinite(array).all()
        assert 1e-3 < np.abs(array).max() < 100
        assert np.abs(array - other[name]).max() > 1e-3


def test_every_option_is_drawn_where_it_can_be():
    drawn = [recipe_of(seed) for seed in range(300)]
    for name, values in OPTIONS.items():
        if name != "alike":
            assert {getattr(recipe, name) for recipe in drawn} >= set(values), name


@pytest.mark.parametrize("seed", range(10))
def test_dynamic_ones_take_other_sizes(seed):
    recipe = recipe_of(seed, dynamic=True, source="ids", memory=0)
    for array in answers(transformer(recipe), feeds_of(recipe, 0, batch=5, tokens=9)).values():
        assert array.shape[0] == 5
