"""Traffic of a layer's backward pass: the forward pass transposed, what went up comes down and the other way.

A layer is what a model of three layers sends more than one of two; gradients of weights are not in it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Schedule, Step
from edge_attention.core.schedule.traffic import traffic_of
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.backward.transpose import GRADIENT
from tests.graphs.axes.random_transformers import feeds_of, transformer
from tests.graphs.axes.test_bytes import HEADS, TOKENS, M, recipe_for
from tests.graphs.axes.test_random_cuts import layers_in
from tests.graphs.backward.bare_models import bare_case

LSE = TOKENS * HEADS * 4
"""Bytes of a number a query and head."""


def without(schedule: Schedule, boundaries: set[str]) -> Schedule:
    """Nothing is contributed to these boundaries."""
    steps = [
        Step(
            tuple(
                replace(s, contributions=tuple(o for o in s.contributions if o.boundary not in boundaries))
                for s in step.segments
            )
        )
        for step in schedule.steps
    ]
    return replace(schedule, steps=tuple(steps))


def a_layer(cut_by: Cut, crossing: Crossing, parts: int, group: int) -> tuple[list[int], list[int], int]:
    """Bytes down and up of the forward pass, of the backward pass, and trips of both."""
    found = []
    for layers in (2, 3):
        recipe = recipe_for(layers, group, "row")
        model = transformer(recipe)
        case = bare_case(model, feeds_of(recipe, 0), model.graph.output[0].name)
        axes = case.axes()
        plan = CutPlan((Stage(range(layers_in(axes)), tuple(range(parts)), cut_by, crossing),))
        forward = traffic_of(cut(axes, plan).schedule)
        trained = case.cut(plan).schedule
        gradients = {b for result, b in trained.results.items() if result.startswith(GRADIENT)}
        both = traffic_of(without(trained, gradients))
        found.append((forward.down, forward.up, both.down, both.up, both.parts[0].trips))
    down, up, all_down, all_up, trips = (b - a for a, b in zip(*found, strict=True))
    return [down, up], [all_down - down, all_up - up], trips


def about(wanted: float) -> object:
    return pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("parts", [2, 3])
def test_heads_sum_and_broadcast(parts: int) -> None:
    forward, back, trips = a_layer(Cut.HEADS, Crossing.GATHER, parts, 1)
    assert forward == [about(2 * parts * M)] * 2
    assert back == [about(2 * parts * M)] * 2
    assert trips == 4


@pytest.mark.parametrize(("parts", "group"), [(2, 1), (3, 2)])
def test_keys_and_values_gathered_are_scattered(parts: int, group: int) -> None:
    forward, back, trips = a_layer(Cut.TOKENS, Crossing.GATHER, parts, group)
    assert forward == [about(2 * (parts - 1) * M / group), about(2 * M / group)]
    assert back == [about(forward[1]), about(forward[0])]
    assert trips == 2


def test_a_switch_is_a_switch() -> None:
    forward, back, trips = a_layer(Cut.TOKENS, Crossing.SWITCH, 3, 1)
    assert forward == [about(4 * M * 2 / 3)] * 2
    assert back == [about(one) for one in forward]
    assert trips == 4


def test_partials_are_sent_the_gradient_of_what_was_merged() -> None:
    """And the merged lse and delta, a number each a query and head; delta comes from who has the row."""
    forward, back, trips = a_layer(Cut.TOKENS, Crossing.MERGE, 3, 1)
    assert forward == [about(3 * M), about(4 * M + 3 * LSE)]
    assert back == [about(4 * M + 2 * 3 * LSE), about(3 * M + LSE)]
    assert trips == 4
