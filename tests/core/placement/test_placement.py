"""Placement: every token once on as many nodes as asked, within the rooms, the loads level."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import OutOfMemory, Unavailable
from edge_attention.core.placement.tokens import Candidate, OpenSegment, place

candidates_of = st.lists(
    st.tuples(st.integers(0, 300), st.one_of(st.integers(0, 60), st.integers(0, 2000))),
    min_size=1,
    max_size=7,
).map(lambda nodes: [Candidate(f"n{i}", held, room) for i, (held, room) in enumerate(nodes)])


@st.composite
def situations(draw):
    nodes = draw(candidates_of)
    replicas = draw(st.integers(1, len(nodes)))
    tile = draw(st.sampled_from([1, 4, 16]))
    holders = draw(st.permutations([c.name for c in nodes]))[:replicas]
    segment = draw(st.none() | st.builds(OpenSegment, st.just(tuple(holders)), st.integers(0, 70)))
    return draw(st.integers(0, 1500)), nodes, segment, replicas, tile


@given(situations())
def test_every_token_is_placed_on_distinct_nodes_with_room_or_refused(situation):
    tokens, nodes, segment, replicas, tile = situation
    rooms = {c.name: c.room for c in nodes}
    try:
        pieces = place(tokens, nodes, segment, replicas=replicas, tile=tile, segment_limit=64)
    except OutOfMemory:
        # A token is on a node once, and on `replicas` nodes: that many tokens fit, and no more (Hall).
        assert sum(min(room, tokens) for room in rooms.values()) < tokens * replicas or segment is not None
        return
    assert sum(p.tokens for p in pieces) == tokens
    used = dict.fromkeys(rooms, 0)
    for piece in pieces:
        assert piece.tokens > 0
        assert len(piece.holders) == len(set(piece.holders)) == replicas
        for name in piece.holders:
            used[name] += piece.tokens
    assert all(used[name] <= rooms[name] for name in rooms)
    assert [p.extends for p in pieces] == sorted((p.extends for p in pieces), reverse=True)
    assert sum(p.extends for p in pieces) <= 1
    for piece in pieces:
        if piece.extends:
            assert segment is not None
            assert piece.holders == segment.holders


@given(st.integers(1, 5000), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 16, 64]))
def test_with_room_for_all_loads_end_level_in_whole_tiles(tokens, count, replicas, tile):
    replicas = min(replicas, count)
    nodes = [Candidate(f"n{i}", 0, 10**6) for i in range(count)]
    pieces = place(tokens, nodes, None, replicas=replicas, tile=tile, segment_limit=64)
    loads = dict.fromkeys((c.name for c in nodes), 0)
    for piece in pieces:
        for name in piece.holders:
            loads[name] += piece.tokens
    # In whole tiles, nobody has two more than anybody else; the last tile may be a part of one.
    tiles = math.ceil(tokens / tile) * replicas
    assert max(loads.values()) <= math.ceil(tiles / count) * tile
    assert min(loads.values()) > (math.floor(tiles / count) - 1) * tile
    assert all(p.tokens % tile == 0 for p in pieces[:-1])
    assert len(pieces) <= count + replicas


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6), st.integers(0, 6000), st.sampled_from([1, 16]))
def test_what_nodes_hold_already_is_made_up_for(held, tokens, tile):
    nodes = [Candidate(f"n{i}", h, 10**6) for i, h in enumerate(held)]
    loads = {c.name: c.held for c in nodes}
    for piece in place(tokens, nodes, None, tile=tile, segment_limit=64):
        loads[piece.holders[0]] += piece.tokens
    grown = [loads[c.name] for c in nodes if loads[c.name] > c.held]
    if grown:
        # Whoever got tokens is not above anybody by more than two tiles: those above were let be.
        assert max(grown) <= min(loads.values()) + 2 * tile


def test_a_node_with_little_room_does_not_get_the_average():
    nodes = [Candidate("small", 0, 10), Candidate("b", 0, 1000), Candidate("c", 0, 1000)]
    pieces = place(900, nodes, None, replicas=2, tile=16, segment_limit=4096)
    assert sum(p.tokens for p in pieces if "small" in p.holders) <= 10
    assert sum(p.tokens for p in pieces) == 900


@pytest.mark.parametrize("replicas", [1, 2])
def test_token_by_token_the_open_segment_grows(replicas):
    nodes = [Candidate(f"n{i}", 0, 1000) for i in range(3)]
    (first,) = place(1, nodes, None, replicas=replicas, tile=16, segment_limit=64)
    assert not first.extends
    size = first.tokens
    for _ in range(63):
        (piece,) = place(
            1, nodes, OpenSegment(first.holders, size), replicas=replicas, tile=16, segment_limit=64
        )
        assert piece.extends
        size += piece.tokens
    held = [Candidate(c.name, 64 if c.name in first.holders else 0, 1000) for c in nodes]
    (full,) = place(1, held, OpenSegment(first.holders, size), replicas=replicas, tile=16, segment_limit=64)
    assert not full.extends, "past its limit a segment is closed where another node holds less"
    assert full.holders != first.holders


def test_a_node_alone_has_one_segment_however_long():
    node = Candidate("a", 500, 10**6)
    (piece,) = place(5000, [node], OpenSegment(("a",), 500), tile=16, segment_limit=64)
    assert (piece.tokens, piece.extends) == (5000, True)


def test_a_segment_whose_holder_is_away_is_not_extended():
    nodes = [Candidate("a", 0, 100), Candidate("b", 0, 100)]
    (piece,) = place(1, nodes, OpenSegment(("a", "gone"), 3), replicas=2, tile=16, segment_limit=64)
    assert not piece.extends


def test_a_large_append_fills_the_open_tile_and_spreads_the_rest():
    nodes = [Candidate("a", 10, 10**4), Candidate("b", 0, 10**4)]
    first, *rest = place(1000, nodes, OpenSegment(("a",), 10), tile=16, segment_limit=4096)
    # What falls to the holder grows its segment: 6 to the tile's end, and a share of the rest.
    assert first.extends
    assert (10 + first.tokens) % 16 == 0
    assert [p.holders for p in rest] == [("b",)]
    assert abs(10 + first.tokens - rest[0].tokens) <= 16


def test_the_last_room_of_an_open_segment_can_be_filled():
    nodes = [Candidate("a", 60, 4), Candidate("b", 60, 4)]
    (piece,) = place(4, nodes, OpenSegment(("a", "b"), 60), replicas=2, tile=16, segment_limit=64)
    assert (piece.tokens, piece.extends) == (4, True)


def test_rooms_smaller_than_a_tile_are_used_when_they_must_be():
    (piece,) = place(5, [Candidate("a", 0, 5)], None, tile=16, segment_limit=64)
    assert piece.tokens == 5


def test_nothing_to_place_is_no_piece():
    assert place(0, [Candidate("a", 0, 0)], None, tile=16, segment_limit=64) == ()


def test_too_few_nodes_and_too_little_room_are_told_apart():
    with pytest.raises(Unavailable, match=r"1 live nodes.*2 holders"):
        place(1, [Candidate("a", 0, 10)], None, replicas=2, tile=16, segment_limit=64)
    with pytest.raises(OutOfMemory, match=r"room for 30 tokens.*31 were to be stored"):
        place(31, [Candidate("a", 0, 10), Candidate("b", 0, 20)], None, tile=4, segment_limit=64)
    with pytest.raises(OutOfMemory, match="2 nodes each"):
        place(
            20, [Candidate("a", 0, 10), Candidate("b", 0, 2000)], None, replicas=2, tile=4, segment_limit=64
        )


def test_a_node_over_its_limit_gets_nothing():
    pieces = place(40, [Candidate("a", 0, -7), Candidate("b", 500, 100)], None, tile=16, segment_limit=64)
    assert {p.holders for p in pieces} == {("b",)}
