"""Ranges and tiles against one boolean a (query, position)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.positions import Positions
from edge_attention.core.visibility import of_segment, seen_by_any, visible

positions_of = st.lists(
    st.one_of(st.integers(0, 60), st.integers(2**63 - 3, 2**63 - 1)), min_size=1, max_size=5
)
windows = st.none() | st.integers(1, 70) | st.integers(2**63 - 3, 2**63 - 1)


def mask(tokens: int, positions: list[int], causal: bool, window: int | None) -> np.ndarray:
    """bool [queries, tokens], each pair on its own, in Python's integers."""
    sees = [
        [
            (p <= at or not (causal or window is not None)) and (window is None or p > at - window)
            for p in range(tokens)
        ]
        for at in positions
    ]
    return np.array(sees, bool).reshape(len(positions), tokens)


@given(st.integers(0, 50), positions_of, st.booleans(), windows)
def test_a_query_sees_what_the_mask_says(tokens, positions, causal, window):
    view = visible(tokens, np.array(positions, np.int64), causal=causal, window=window)
    want = mask(tokens, positions, causal, window)
    have = np.array(
        [[a <= p < b for p in range(tokens)] for a, b in zip(view.start, view.stop, strict=True)], bool
    )
    np.testing.assert_array_equal(have.reshape(want.shape), want)
    assert view.start.dtype == view.stop.dtype == np.int64


@given(
    st.integers(0, 50),
    positions_of,
    st.booleans(),
    windows,
    st.lists(st.integers(0, 50), max_size=4),
    st.integers(1, 9),
)
def test_segments_in_tiles_see_the_same_and_no_more(tokens, positions, causal, window, cuts, tile):
    view = visible(tokens, np.array(positions, np.int64), causal=causal, window=window)
    edges = [0, *sorted(min(c, tokens) for c in cuts), tokens]
    have = np.zeros((len(positions), tokens), bool)
    for a, b in itertools.pairwise(edges):
        part = of_segment(view, Positions.of(range(a, b)), tile) if b > a else None
        if part is None:
            continue
        stored = -(-(b - a) // tile)
        assert 0 <= part.tiles.start < part.tiles.stop <= stored, "tiles the segment has"
        assert part.lo.dtype == part.hi.dtype == np.int64
        assert (part.lo >= 0).all()
        assert (part.hi <= len(part.tiles) * tile).all()
        assert (part.lo <= part.hi).all()
        some = part.hi > part.lo
        assert some.any(), "nothing visible is None, not an empty view"
        # No tile at either end that nobody reads.
        assert part.lo[some].min() < tile
        assert part.hi[some].max() > (len(part.tiles) - 1) * tile
        for query, (lo, hi) in enumerate(zip(part.lo, part.hi, strict=True)):
            if hi > lo:
                first = a + part.tiles.start * tile
                assert first + hi <= b, "not past the segment's end in its last tile"
                have[query, first + lo : first + hi] = True
    np.testing.assert_array_equal(have, mask(tokens, positions, causal, window))


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_a_position_is_refused(window):
    with pytest.raises(InvalidArgument, match="window"):
        visible(10, np.array([3]), window=window)


def test_negative_positions_are_refused():
    with pytest.raises(InvalidArgument, match="-1"):
        visible(10, np.array([3, -1]))


def test_no_queries_see_nothing():
    view = visible(10, np.array([], np.int64), causal=True)
    assert view.start.shape == view.stop.shape == (0,)
    assert of_segment(view, Positions.of(range(0, 10)), 4) is None


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=50),
    positions_of,
    st.booleans(),
    windows,
    st.integers(1, 9),
)
def test_segments_appended_to_in_turn_see_the_same_and_no_more(owners, positions, causal, window, tile):
    """Token i belongs to segment owners[i]: whatever the turns, each sees one range of what it stores."""
    tokens = len(owners)
    view = visible(tokens, np.array(positions, np.int64), causal=causal, window=window)
    have = np.zeros((len(positions), tokens), bool)
    for owner in set(owners):
        mine = [p for p in range(tokens) if owners[p] == owner]
        segment = Positions.of(range(mine[0], mine[0] + 1))
        for p in mine[1:]:
            segment = segment.and_(range(p, p + 1))
        part = of_segment(view, segment, tile)
        for query in range(len(positions) if part is not None else 0):
            first = part.tiles.start * tile
            stored = range(first + part.lo[query], first + part.hi[query])
            assert stored.stop <= len(mine) or not stored
            have[query, [mine[i] for i in stored]] = True
    np.testing.assert_array_equal(have, mask(tokens, positions, causal, window))


@given(positions_of, windows, st.booleans(), st.integers(1, 60))
def test_what_any_query_sees(positions, window, causal, tokens):
    view = visible(tokens, np.array(positions, np.int64), causal=causal, window=window)
    seen = {p for lo, hi in zip(view.start.tolist(), view.stop.tolist(), strict=True) for p in range(lo, hi)}
    found = seen_by_any(view)
    if found is None:
        assert not seen
        return
    assert [p for part in found.stretches for p in part] == sorted(seen)
    assert all(a.stop < b.start for a, b in itertools.pairwise(found.stretches))
