"""What a step takes, by its parts' links and computing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.trips import (
    StepErrand,
    shared_seconds,
    trip_seconds,
    unshared_seconds,
)


def test_an_answer_over_a_slow_link_holds_up_no_other() -> None:
    """It is begun first, and its bytes come all along: the aggregator takes others' meanwhile."""
    boxes = [ComputeBox("near", 1e9), ComputeBox("far", 1e9)]
    links = BoxLinks(
        {"near": BoxLink(0.0, 1e7, 1e7), "far": BoxLink(0.0, 1e6, 1e6)},
        BoxLink(0.0, 1e7, 1e7),
        byte_seconds=0.0,
        call_seconds=0.0,
        trip_seconds=0.0,
    )
    far = StepErrand(boxes[1], 0.1, 0.0, 100_000)
    for first in (0.0999, 0.1001):  # whichever ends first
        took = trip_seconds([StepErrand(boxes[0], first, 0.0, 100_000), far], links)
        assert took == pytest.approx(0.2, abs=1e-3)


FREE = BoxLinks(byte_seconds=0.0, call_seconds=0.0, trip_seconds=0.0)


def test_who_waited_long_takes_up_an_answer_late() -> None:
    """Thirteen short steps are less late than their computing in one would be thirteen times."""
    links = replace(FREE, of={"a": BoxLink(cold=1e-3)})
    late = [trip_seconds([StepErrand(ComputeBox("a", 1.0), s, 0, 0)], links) - s for s in (0, 1e-3, 1e-2, 1)]
    assert late == sorted(late)
    assert late[0] == pytest.approx(0.0, abs=1e-9)
    assert late[1] == pytest.approx(0.2e-3)
    assert late[3] == pytest.approx(1e-3, rel=0.01)


def test_boxes_of_one_machine_share_it_while_both_are_at_work() -> None:
    # Two computers for one and a half of them: the first is done at 1 / 0.75, then the other goes on alone.
    assert shared_seconds([3.0, 1.0], 1.5) == pytest.approx([1 / 0.75 + 2.0, 1 / 0.75])
    assert shared_seconds([3.0, 1.0], 2.0) == [3.0, 1.0]
    assert shared_seconds([1.0, 2.0, 3.0], 1.0) == pytest.approx([3.0, 5.0, 6.0])
    assert shared_seconds([], 1.0) == []


@given(st.lists(st.floats(0.1, 5.0), max_size=5), st.floats(1.0, 4.0))
def test_what_ran_side_by_side_took_alone_what_it_would_have(alone: list[float], cores: float):
    spans = [(0.0, end) for end in shared_seconds(alone, cores)]
    assert unshared_seconds(spans, cores) == pytest.approx(alone, rel=1e-9)


def test_what_ran_one_after_another_had_the_machine_to_itself():
    assert unshared_seconds([(0.0, 1.0), (1.0, 3.0), (3.0, 4.0)], 1.0) == [1.0, 2.0, 1.0]
    assert unshared_seconds([(0.0, 2.0), (1.0, 3.0)], 1.0) == [1.5, 1.5]
    assert unshared_seconds([(1.0, 1.0), (0.0, 2.0)], 1.0) == [0.0, 2.0]
    assert unshared_seconds([], 1.0) == []


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.floats(1, 6), st.floats(0, 5))
def test_none_ends_before_it_would_alone_nor_all_after_one_by_one(
    alone: list[float], cores: float, more: float
) -> None:
    ended = shared_seconds(alone, cores)
    for end, seconds in zip(ended, alone, strict=True):
        assert seconds - 1e-9 <= end <= sum(alone) + 1e-9
    assert max(ended) >= sum(alone) / cores - 1e-9
    longer = shared_seconds([alone[0] + more, *alone[1:]], cores)
    assert all(after >= before - 1e-9 for after, before in zip(longer, ended, strict=True))


def test_what_has_one_way_at_a_time_is_shared_by_all_calls_and_takes_answers_after_them() -> None:
    boxes = [ComputeBox("a", 1e9), ComputeBox("b", 1e9)]
    wire = replace(FREE, hub=BoxLink(0.0, 1e6, 1e6))
    air = replace(FREE, hub=BoxLink(0.0, 1e6, 1e6, 1e6))
    # Over a wire a has its call first, and computes from then on; in the air both have theirs at 2 s.
    errands = [StepErrand(boxes[0], 5.0, 1e6, 1e6), StepErrand(boxes[1], 0.0, 1e6, 1e6)]
    assert trip_seconds(errands, wire) == pytest.approx(7.0)
    assert trip_seconds(errands, air) == pytest.approx(8.0)
    errands = [StepErrand(boxes[0], 0.0, 1e5, 1e6), StepErrand(boxes[1], 0.0, 2e6, 0.0)]
    assert trip_seconds(errands, wire) == pytest.approx(2.1)
    assert trip_seconds(errands, air) == pytest.approx(3.1)
