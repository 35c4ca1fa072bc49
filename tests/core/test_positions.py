"""Positions against a plain list of them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.positions import Positions, joined

stretches = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12
)  # positions left out, positions taken


def built(parts, first=0):
    """Positions as appends make them, and the list of them."""
    positions, plain, at = None, [], first
    for gap, count in parts:
        taken = range(at + gap, at + gap + count)
        positions = Positions.of(taken) if positions is None else positions.and_(taken)
        plain += taken
        at = taken.stop
    return positions, plain


@given(stretches, st.sampled_from([0, 2**40]))
def test_they_are_what_was_appended(parts, first):
    positions, plain = built(parts, first)
    assert len(positions) == positions.count == len(plain)
    assert positions.hull == range(plain[0], plain[-1] + 1)
    assert [p for stretch in positions.stretches for p in stretch] == plain
    assert positions.number == len(positions.stretches) == len(positions.bounds) // 2
    assert all(a.stop < b.start for a, b in itertools.pairwise(positions.stretches))
    assert positions.bounds == tuple(edge for s in positions.stretches for edge in (s.start, s.stop))
    again = Positions.from_json(json.loads(json.dumps(positions.to_json())))
    assert again.stretches == positions.stretches


@given(stretches, st.lists(st.integers(0, 80) | st.just(2**63 - 1), max_size=8))
def test_how_many_are_before_and_which_is_stored_where(parts, asked):
    positions, plain = built(parts)
    before = positions.before(np.array(asked, np.int64))
    assert before.tolist() == [sum(p < a for p in plain) for a in asked]
    for start in range(len(plain)):
        for stop in (start, start + 1, len(plain)):
            assert positions.at(range(start, stop)).tolist() == plain[start:stop]


@given(stretches, st.integers(0, 6))
def test_coarse_ones_leave_out_only_what_is_wide_enough(parts, gap):
    positions, plain = built(parts)
    coarse = [p for part in positions.coarse(gap) for p in part]
    assert set(plain) <= set(coarse)
    assert all(b.start - a.stop > gap for a, b in itertools.pairwise(positions.coarse(gap)))
    assert positions.coarse(0) == list(positions.stretches)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sets(st.integers(0, 3)))
def test_joined_they_are_the_ranges_of_all(owners, some):
    parts = []
    for owner in some:
        mine = [p for p in range(len(owners)) if owners[p] == owner]
        if mine:
            parts.append(built([(b - a - 1, 1) for a, b in zip([-1, *mine], mine, strict=False)])[0])
    found = joined(parts)
    assert [p for part in found for p in part] == [p for p in range(len(owners)) if owners[p] in some]
    assert all(a.stop < b.start for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("edges", [[], [(3, 3)], [(0, 4), (3, 5)], [(4, 5), (0, 1)], [(-1, 2)]])
def test_what_are_no_positions_is_refused(edges):
    array = np.array(edges, np.int64).reshape(-1, 2)
    with pytest.raises(InvalidArgument):
        Positions(array[:, 0], array[:, 1])


def test_one_range_is_stored_as_releases_before_wrote_it_and_many_are_not_taken_for_one():
    assert Positions.of(range(3, 9)).to_json() == {"tokens": [3, 9]}
    assert "tokens" not in built([(0, 1), (1, 1)])[0].to_json()


def test_what_a_stretch_takes_on_the_disk_is_little():
    positions, _ = built([(1, 1)] * 4096)
    assert len(json.dumps(positions.to_json())) < 4096


@given(stretches, stretches)
def test_those_within_others(some, others):
    mine, listed = built(some)
    seen, listed_too = built(others)
    both = [p for p in listed if p in set(listed_too)]
    if both:
        found = mine.within(seen)
        assert [p for part in found.stretches for p in part] == both
    else:
        with pytest.raises(InvalidArgument):
            mine.within(seen)
