"""Plans by a word: as many parts as nodes, in equal shares, each part held as often as was asked."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.placement import LayerSeconds, by_word, even_layers, even_stages, plan_word, spread
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut


def test_words():
    assert plan_word("") == ("auto", Crossing.GATHER)
    assert plan_word("tokens:switch") == ("tokens", Crossing.SWITCH)
    for bad in ("token", "heads:switch", "tokens:", "tokens:x", "tokens:gather:x"):
        with pytest.raises(InvalidArgument, match="plan"):
            plan_word(bad)


def test_replicate_is_all_of_the_model_everywhere():
    plan, holders = by_word("replicate", Crossing.GATHER, "abc", [1, 1])
    assert [(stage.layers, stage.parts, stage.cut) for stage in plan.stages] == [(range(2), (0,), Cut.NONE)]
    assert holders == {0: ("a", "b", "c")}
    assert by_word("replicate", Crossing.GATHER, "abc", [1], 2)[1] == {0: ("a", "b")}


def test_tokens_are_one_stage():
    plan, holders = by_word("tokens", Crossing.MERGE, "abc", [1, 1])
    (stage,) = plan.stages
    assert (stage.layers, stage.parts) == (range(2), (0, 1, 2))
    assert (stage.cut, stage.crossing) == (Cut.TOKENS, Crossing.MERGE)
    assert holders == {0: ("a",), 1: ("b",), 2: ("c",)}


def test_one_node_has_the_whole_whatever_the_word():
    for word in ("tokens", "heads", "layers", "batch"):
        plan, holders = by_word(word, Crossing.GATHER, "a", [1, 1])
        assert plan.stages[0].cut is Cut.NONE
        assert holders == {0: ("a",)}


def test_too_few_nodes():
    with pytest.raises(FailedPrecondition, match="no node"):
        by_word("tokens", Crossing.GATHER, "", [1])
    with pytest.raises(FailedPrecondition, match="3 replicas need 3"):
        by_word("layers", Crossing.GATHER, "ab", [1], 3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_layers_are_shared_as_evenly_as_can_be(sizes, parts):
    rows = even_layers(sizes, parts)
    assert [layer for row in rows for layer in row] == list(range(len(sizes)))
    assert all(rows)
    assert len(rows) == min(parts, len(sizes))
    assert max(sum(sizes[i] for i in row) for row in rows) == best(sizes, min(parts, len(sizes)))


def best(sizes, parts):
    """The smallest largest sum of `sizes` in `parts` ranges, tried."""
    if parts == 1:
        return sum(sizes)
    cuts = range(1, len(sizes) - parts + 2)
    return min(max(sum(sizes[:at]), best(sizes[at:], parts - 1)) for at in cuts)


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_a_part_is_at_as_many_nodes_as_copies(parts, nodes, data):
    copies = data.draw(st.integers(1, nodes))
    names = [f"n{i}" for i in range(nodes)]
    holders = spread(parts, names, copies)
    assert sorted(holders) == list(range(parts))
    for held in holders.values():
        assert len(set(held)) == len(held) == copies
    if parts <= nodes:
        assert len({held[0] for held in holders.values()}) == parts


TIMES = st.integers(1, 4).flatmap(
    lambda stages: st.tuples(
        st.lists(st.lists(st.integers(1, 9), min_size=6, max_size=6), min_size=stages, max_size=stages),
        st.lists(st.integers(1, 5), min_size=6, max_size=6),
        st.lists(st.integers(5, 30), min_size=stages, max_size=stages),
    )
)


@given(TIMES)
def test_stages_are_as_even_as_can_be_on_boxes_of_any_speed_and_size(drawn):
    times, sizes, memory = drawn
    found, layers, stages = even_stages(times, sizes, memory), len(sizes), len(times)
    tried = []
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        rows = [range(a, b) for a, b in itertools.pairwise((0, *cuts, layers))]
        if all(sum(sizes[i] for i in row) <= room for row, room in zip(rows, memory, strict=True)):
            tried.append(longest(times, rows))
    if not tried:
        assert found is None
        return
    assert [layer for row in found for layer in row] == list(range(layers))
    assert all(found)
    assert all(sum(sizes[i] for i in row) <= room for row, room in zip(found, memory, strict=True))
    assert longest(times, found) == min(tried)


def longest(times, rows):
    return max(sum(each[i] for i in row) for each, row in zip(times, rows, strict=True))


def layers_of(seconds, sizes=(8, 8, 1, 1, 1, 1), **options):
    plan, _ = by_word("layers", Crossing.GATHER, tuple(seconds), sizes, seconds=seconds, **options)
    return [len(stage.layers) for stage in plan.stages]


def took(slowness, memory=math.inf, times=(1.0, 1, 1, 1, 1, 1)):
    return LayerSeconds(tuple(slowness * one for one in times), times, memory)


def test_by_layers_stages_take_as_long_as_each_other_and_not_as_many_bytes():
    assert layers_of({"a": took(1), "b": took(1), "c": took(1)}) == [2, 2, 2]
    assert layers_of({"a": took(1, times=(3, 1, 1, 1, 1, 1)), "b": took(1, times=(3, 1, 1, 1, 1, 1))}) == [
        2,
        4,
    ]
    assert layers_of({"a": took(2), "b": took(1)}) == [2, 4], "a slow box gets less"
    assert layers_of({"a": took(1.05), "b": took(1)}) == [3, 3], "that is how much measures differ anyway"
    assert layers_of({"a": took(1, 9), "b": took(1)}) == [1, 5], "as much as there is room for"
    assert layers_of({"a": took(1, 9), "b": took(1, 9)}) == [1, 5], "none has: as many bytes as can be"


def test_by_layers_a_stage_is_as_long_as_its_slowest_copy_takes():
    assert layers_of({"a": took(1), "b": took(1), "c": took(2), "d": took(1)}, replicas=2) == [2, 4]
