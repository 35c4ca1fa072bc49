"""The axes of random small transformers: bound they compute the same, and axes of one size are kept apart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import onnx
import pytest

from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.narrow import narrow_places
from tests.graphs.axes.bound_runs import assert_close, run_bound, run_model
from tests.graphs.axes.random_transformers import (
    TransformerRecipe,
    feeds_of,
    recipe_of,
    sizes_of,
    transformer,
)


@cache
def bound_at(seed: int) -> tuple[TransformerRecipe, onnx.ModelProto, BoundGraph]:
    """The recipe of a seed, its model, and that with its sizes; not to be changed."""
    recipe = recipe_of(seed)
    model = transformer(recipe)
    return recipe, model, bind(model, sizes_of(recipe))


def axes_at(recipe: TransformerRecipe, model: onnx.ModelProto | None = None) -> Axes:
    return axes_of(bind(model or transformer(recipe), sizes_of(recipe)))


@pytest.mark.parametrize("seed", range(60))
def test_what_is_bound_computes_what_the_model_does(seed):
    recipe, model, bound = bound_at(seed)
    assert not bound.unknown
    feeds = feeds_of(recipe, seed)
    tolerance = 0.05 if recipe.quantised else 1e-5  # int8: fusions differ, and rounding jumps
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds), tolerance)


@pytest.mark.parametrize("seed", range(60))
def test_tokens_and_heads_are_found(seed):
    recipe, _, bound = bound_at(seed)
    axes = axes_of(bound)
    sizes = (recipe.tokens, recipe.memory) if recipe.source != "image" else (2, recipe.tokens // 2)
    assert axes.size("tokens") in sizes, axes.named  # those of an image are rows and columns
    heads = [axes.named[name] for name in axes.named if name.startswith("heads")]
    if recipe.heads > 1:
        assert heads
    for found in heads:
        assert axes.sizes[found[0]] in (recipe.key_heads, recipe.group)
    if recipe.batch > 1:
        assert axes.size("batch") == recipe.batch
    named = [axis for found in axes.named.values() for axis in found]
    assert len(named) == len(set(named)), "an axis has two names"


@pytest.mark.parametrize("seed", range(40))
def test_axes_and_layers_do_not_depend_on_the_length(seed):
    recipe = replace(recipe_of(seed), dynamic=True)
    if recipe.source == "image":
        pytest.skip("an image is of one size")
    model = transformer(recipe)
    found = []
    for tokens, memory in ((4, 6), (7, 9)):
        at = replace(recipe, tokens=tokens, memory=memory if recipe.memory else 0)
        axes = axes_at(at, model)
        found.append((sorted(axes.named), [place.before for place in narrow_places(axes)]))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(30))
def test_axes_of_one_size_are_not_taken_for_each_other(seed):
    """Batch, tokens, heads, their width and that of the feed-forward layers are all 4."""
    axes = axes_at(recipe_of(seed, alike=True, source="ids"))
    plain = axes_at(
        recipe_of(seed, alike=False, source="ids", batch=2, tokens=7, key_heads=5, dim=6, wide=11)
    )
    names = [name for name in axes.named if name != "tokens.1"]
    assert {name.partition(".")[0] for name in names} == {
        name.partition(".")[0] for name in plain.named if name != "tokens.1"
    }
    owners = {axis: name for name, found in axes.named.items() for axis in found}
    assert len(owners) == sum(map(len, axes.named.values()))
