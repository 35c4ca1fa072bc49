"""Small models as each exporter writes them, cut by every plan: equal to the whole, and really shared.

`python -m tools.exports tests/graphs/axes/exports --fixtures` makes them, in an environment with PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, sizes_of
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, plan_of, try_plan, whole_answer

EXPORTS = Path(__file__).with_name("exports")
NAMES = sorted(path.stem for path in EXPORTS.glob("*.onnx"))
PARTS = 3
SHARED = 0.75
"""Of 3 parts the largest has 4 of 7 shares; what looks at its neighbours (convolutions) is done by all."""
SHARED_LESS = {
    # One new token a text: what is shared are the keys and values that were there before.
    ("gpt2_cached", "tokens"): 1.0,
    ("llama_cached", "tokens"): 1.0,
    ("qwen3_cached", "tokens"): 1.0,
    ("llama_genai", "tokens"): 1.0,
    ("llama_genai_int4", "tokens"): 1.0,
    # Few layers in parts of unlike sizes, the one with the product by the vocabulary the largest; past its
    # last attention a model that classifies has one token left, and its later layers are next to nothing.
    **{(name, "layers"): 0.95 for name in NAMES},
    # Weights in blocks of 4 bits are not cut within a block.
    ("llama_genai_int4", "heads"): 0.95,
}


ROUNDED = {("llama_genai_int4", plan) for plan in PLANS if plan not in ("replicate", "layers")}
"""Products that round activations to int8 make 1e-2 of a difference of 1e-7: the answers say so."""

CASES = [(name, plan, 0) for name in NAMES for plan in PLANS]
CASES += [(name, plan, 1) for name in NAMES for plan in ("tokens, gather", "heads")]


@dataclass(frozen=True, eq=False)
class Bound:
    model: OpenModel
    axes: Axes
    feeds: dict[str, Array]
    expected: dict[str, Array]


@cache
def bound(name: str, length: int) -> Bound:
    path = EXPORTS / f"{name}.onnx"
    model = open_model(path)
    feeds = feeds_for(model.model.graph, LENGTHS[length])
    forms = {name: TensorForm(str(value.dtype), value.shape) for name, value in feeds.items()}
    return Bound(model, analyse(model, sizes_of(model, forms)), feeds, whole_answer(path, feeds))


def test_there_are_exports_of_every_kind() -> None:
    assert len(NAMES) == 25


@pytest.mark.parametrize(("name", "plan", "length"), CASES)
def test_parts_together_answer_what_the_whole_does(name: str, plan: str, length: int) -> None:
    one = bound(name, length)
    found = try_plan(one.model, one.axes, plan_of(plan, one.axes, PARTS), one.feeds, one.expected)
    assert found.error is not None, found.why
    if (name, plan) in ROUNDED:
        assert "round activations to int8" in found.why
        assert found.error < 0.1
        return
    assert not found.why
    # A merge is of attention, which is float32 in these models.
    assert found.error <= (0 if "int8" in name and plan != "tokens, merge" else 1e-5)
    if plan != "replicate":
        assert found.share <= SHARED_LESS.get((name, plan.partition(",")[0]), SHARED)


@pytest.mark.parametrize("name", NAMES)
def test_what_its_axes_are_does_not_change_with_the_length(name: str) -> None:
    first, second = (bound(name, length).axes for length in range(len(LENGTHS)))
    # An axis of one element is none: the second has one text, and the first, of some, one new token.
    assert _of_model(first) == _of_model(second)


def _of_model(axes: Axes) -> dict[str, int]:
    return {name: axes.size(name) for name in axes.named if name.split(".")[0] not in ("batch", "tokens")}
