"""Who is asked in a round, and the deadlines that follow from what nodes took."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, Unavailable
from edge_attention.core.messages.federated import SelectionSpec
from edge_attention.core.rounds.selection import select, share_of
from edge_attention.core.rounds.timings import ENOUGH, KEPT, Timings

NAMES = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.56, 25, 14), (0.1, 30, 3), (0.5, 5, 3), (1.0, 5, 5), (0.01, 5, 1), (0.3, 10, 3), (1 / 3, 3, 1)],
)
def test_a_share_is_rounded_up_and_not_by_a_rounding_error(share, count, expected):
    assert share_of(share, count) == expected


@given(NAMES, st.floats(0.01, 1.0), st.integers(1, 20), st.integers(0, 99), st.randoms())
def test_a_selection_is_a_sorted_sample_that_order_does_not_change(names, fraction, minimum, seed, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    rules = SelectionSpec(fraction=fraction, minimum=minimum)
    if len(names) < minimum:
        with pytest.raises(Unavailable, match=rf"at least {minimum} nodes, there are {len(names)};"):
            select(names, rules, seed, 1)
        return
    chosen = select(names, rules, seed, 1)
    assert chosen == select(shuffled, rules, seed, 1)
    assert chosen == tuple(sorted(set(chosen)))
    assert set(chosen) <= names
    assert len(chosen) == max(minimum, share_of(fraction, len(names)))


def test_everybody_is_asked_unless_the_job_says_otherwise():
    assert select({"b", "a", "c"}, SelectionSpec(), 0, 1) == ("a", "b", "c")


def test_each_node_is_asked_about_equally_often():
    names, rules = [f"edge-{i}" for i in range(10)], SelectionSpec(fraction=0.3)
    rounds = [select(names, rules, 7, number) for number in range(2000)]
    counts = np.array([sum(name in chosen for chosen in rounds) for name in names])
    # Binomial(2000, 0.3): 600 with a standard deviation of 20.5.
    assert np.all(np.abs(counts - 600) < 5 * 20.5), counts
    assert rounds != [select(names, rules, 8, number) for number in range(2000)]


@given(NAMES, st.integers(0, 50), st.integers(1, 5))
def test_a_node_that_leaves_changes_only_its_own_place(names, number, count):
    count = min(count, len(names))
    before = select(names, SelectionSpec(fraction=1e-6, minimum=count), 0, number)
    gone = before[0]
    if len(names) > count:
        after = select(names - {gone}, SelectionSpec(fraction=1e-6, minimum=count), 0, number)
        assert set(before) - {gone} <= set(after)


@pytest.mark.parametrize("rules", [SelectionSpec(fraction=0.0), SelectionSpec(fraction=1.5),
                                   SelectionSpec(fraction=math.nan), SelectionSpec(minimum=0)])  # fmt: skip
def test_selections_that_are_none(rules):
    with pytest.raises(InvalidArgument, match="selection: "):
        select(["a"], rules, 0, 1)


def timings(**seconds):
    found = Timings()
    for node, times in seconds.items():
        for time in times:
            found.add(node, time)
    return found


def test_there_is_no_deadline_before_there_is_a_history():
    assert timings(a=[10.0] * (ENOUGH - 1)).deadline(2.0) is None
    assert timings(a=[10.0] * (ENOUGH - 1), b=[10.0]).deadline(2.0) is not None


@given(st.lists(st.floats(5, 500), min_size=ENOUGH, max_size=KEPT), st.floats(0, 10))
def test_the_deadline_is_the_median_plus_k_deviations(seconds, k):
    median = sorted(seconds)[len(seconds) // 2] if len(seconds) % 2 else None
    middle = sorted(seconds)[len(seconds) // 2 - 1 : len(seconds) // 2 + 1]
    median = median if median is not None else sum(middle) / 2
    gaps = sorted(abs(s - median) for s in seconds)
    half = len(gaps) // 2
    deviation = 1.4826 * (gaps[half] if len(gaps) % 2 else (gaps[half - 1] + gaps[half]) / 2)
    expected = max(median + k * deviation, 1.5 * median)
    assert timings(a=seconds).deadline(k) == pytest.approx(expected, rel=1e-12)


def test_a_slow_node_does_not_move_the_deadline_that_is_there_for_it():
    calm = timings(a=[9.0, 10.0, 11.0] * 2, b=[9.0, 10.0, 11.0] * 2, c=[10.0] * 6)
    slowed = timings(a=[9.0, 10.0, 11.0] * 2, b=[9.0, 10.0, 11.0] * 2, c=[100.0] * 6)
    assert calm.deadline(3.0) == pytest.approx(15.0)  # 1.5 medians: half of the times are 10 exactly
    assert slowed.deadline(3.0) < 20.0


def test_a_deadline_has_a_floor_and_forgets_what_was_long_ago():
    assert timings(a=[0.01] * ENOUGH).deadline(2.0) == 1.0
    assert timings(a=[1000.0] * 50 + [10.0] * KEPT).deadline(2.0) == 15.0
    assert timings(a=[math.nan, math.inf, -1.0] * ENOUGH).deadline(2.0) is None
