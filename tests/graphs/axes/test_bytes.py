"""Traffic of a layer by each cut, beside the table of DESIGN section 12; measured where the parts run.

`m` is one activation, [tokens, width]; `r` key heads by query heads. A layer is what a model of three layers
sends more than one of two, so that embeddings and the answer are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.traffic import traffic_of
from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_reading import OpenModel
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of, sizes_of, transformer
from tests.graphs.axes.test_random_cuts import layers_in

TOKENS = 36
HEADS = 12
DIM = 32
M = TOKENS * HEADS * DIM * 4
"""Bytes of an activation."""


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer: each part's, by part, and through the aggregator; and trips of a part."""

    received: tuple[int, ...]
    sent: tuple[int, ...]
    trips: tuple[int, ...]

    @property
    def down(self) -> int:
        return sum(self.received)

    @property
    def up(self) -> int:
        return sum(self.sent)


def recipe_for(layers: int, group: int, mask: str) -> TransformerRecipe:
    return TransformerRecipe(
        batch=1,
        tokens=TOKENS,
        layers=layers,
        key_heads=HEADS // group,
        group=group,
        dim=DIM,
        value_dim=DIM,
        wide=48,
        mask=mask,
        bias=True,
        activation="erf",
    )


def traffic(recipe: TransformerRecipe, plan_of) -> tuple[Layer, int]:
    """What a request sends, counted where its parts run; and its steps."""
    model = transformer(recipe)
    axes = axes_of(bind(model, sizes_of(recipe)))
    emitted = cut(axes, plan_of(layers_in(axes)))
    held = OpenModel(None, model, {})
    ran = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, held.piece
    ).run(feeds_of(recipe, 0))
    counted = traffic_of(emitted.schedule)
    assert tuple(part.received for part in counted.parts) == tuple(ran.received.values())
    assert tuple(part.sent for part in counted.parts) == tuple(ran.sent.values())
    trips = tuple(part.trips for part in counted.parts)
    return Layer(tuple(ran.received.values()), tuple(ran.sent.values()), trips), len(emitted.schedule.steps)


def a_layer(cut: Cut, crossing: Crossing, parts: int, group: int = 1, mask: str = "none") -> Layer:
    def plan(layers: int) -> CutPlan:
        return CutPlan((Stage(range(layers), tuple(range(parts)), cut, crossing),))

    (two, _), (three, _) = (traffic(recipe_for(layers, group, mask), plan) for layers in (2, 3))
    return Layer(
        tuple(b - a for a, b in zip(two.received, three.received, strict=True)),
        tuple(b - a for a, b in zip(two.sent, three.sent, strict=True)),
        tuple(b - a for a, b in zip(two.trips, three.trips, strict=True)),
    )


def about(wanted: float) -> object:
    return pytest.approx(wanted, rel=0.05)


CASES = pytest.mark.parametrize(
    ("n", "group", "mask"), [(2, 1, "none"), (3, 1, "row"), (3, 2, "less"), (6, 2, "row")]
)


@pytest.mark.parametrize(("n", "mask"), [(2, "less"), (3, "row"), (6, "none")])
def test_heads_and_feed_forward(n, mask):
    """Two activations each way a part, and N times that through the aggregator; two trips."""
    layer = a_layer(Cut.HEADS, Crossing.GATHER, n, mask=mask)
    for part in range(n):
        assert layer.received[part] == about(2 * M)
        assert layer.sent[part] == about(2 * M)
    assert (layer.down, layer.up) == (about(2 * n * M), about(2 * n * M))
    assert layer.trips == (2,) * n


@CASES
def test_tokens_with_keys_and_values_gathered(n, group, mask):
    """A part sends its own and is sent the others'; one trip, and less the fewer key heads there are."""
    r = 1 / group
    layer = a_layer(Cut.TOKENS, Crossing.GATHER, n, group, mask)
    for part in range(n):
        assert layer.received[part] == about(2 * r * M * (n - 1) / n)
        assert layer.sent[part] == about(2 * r * M / n)
    assert (layer.down, layer.up) == (about(2 * r * (n - 1) * M), about(2 * r * M))
    assert layer.trips == (1,) * n


@CASES
def test_tokens_switched_to_heads_and_back(n, group, mask):
    """What a part moves falls with N, and what the aggregator moves does not grow."""
    r = 1 / group
    layer = a_layer(Cut.TOKENS, Crossing.SWITCH, n, group, mask)
    for part in range(n):
        assert layer.received[part] == about((2 + 2 * r) * M * (n - 1) / n**2)
        assert layer.sent[part] == about((2 + 2 * r) * M * (n - 1) / n**2)
    moved = about((2 + 2 * r) * M * (n - 1) / n)
    assert (layer.down, layer.up) == (moved, moved)
    assert layer.trips == (2,) * n


@CASES
def test_tokens_with_queries_out_and_partials_back(n, group, mask):
    """Queries and merged rows come down, 1 in all; queries of its own and a partial of every row go up.

    Through a star that is N down and N + 1 up, not the 2 (N - 1) each way of parts that merge among
    themselves: the aggregator merges, so no part is sent another's partial.
    """
    layer = a_layer(Cut.TOKENS, Crossing.MERGE, n, group, mask)
    lse = TOKENS * HEADS * 4
    for part in range(n):
        assert layer.received[part] == about(M)
        assert layer.sent[part] == about(M * (1 + 1 / n) + lse)
    assert (layer.down, layer.up) == (about(n * M), about((n + 1) * M + n * lse))
    assert layer.trips == (2,) * n


def test_a_cut_between_layers_passes_one_activation():
    def stages(layers: int, count: int) -> CutPlan:
        ends = [layers * number // count for number in range(count + 1)]
        return CutPlan(tuple(Stage(range(*ends[n : n + 2]), (n,)) for n in range(count)))

    recipe = recipe_for(3, 1, "row")
    one, two, three = (traffic(recipe, lambda layers, n=n: stages(layers, n))[0] for n in (1, 2, 3))
    mask = TOKENS * 8  # a stage that has an attention is sent it
    assert one.up == M  # the answer
    for fewer, more in ((one, two), (two, three)):
        assert more.up - fewer.up == M
        assert more.down - fewer.down in (M, M + mask, M + 2 * mask)


def test_batches_send_ids_and_answers():
    recipe = replace(recipe_for(2, 1, "row"), batch=4)
    found, steps = traffic(
        recipe, lambda layers: CutPlan((Stage(range(layers), (0, 1), Cut.BATCH, shares=(3, 1)),))
    )
    ids = 2 * TOKENS * 8  # and the mask
    assert found == Layer((3 * ids, ids), (3 * M, M), (1, 1))
    assert steps == 1
