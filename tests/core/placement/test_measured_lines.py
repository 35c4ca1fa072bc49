"""A line follows what is measured: recovers a known one, never says that more takes less, and forgets."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.placement.cuts.measured_bins import MOST_DOUBLINGS
from edge_attention.core.placement.cuts.measured_lines import FittedLine, MeasuredLine

BEFORE = FittedLine(0.3e-3, 1.0)
amounts = st.floats(0, 1e3) | st.floats(1e-6, 1e-2)
seconds = st.floats(1e-6, 1e3)
points = st.lists(st.tuples(amounts, seconds), max_size=30)


def measured(
    given: list[tuple[float, float]], before: FittedLine = BEFORE, unit: float = 1e-5
) -> MeasuredLine:
    line = MeasuredLine(before, unit)
    for number, point in enumerate(given):
        line.add([point], float(number))
    return line


@given(points, amounts, amounts)
def test_more_is_never_predicted_to_take_less(
    given: list[tuple[float, float]], one: float, other: float
) -> None:
    line = measured(given).line
    assert 0 <= line.fixed < math.inf
    assert 0 <= line.each < math.inf
    assert line.at(min(one, other)) <= line.at(max(one, other))


@given(amounts, seconds)
def test_what_takes_longer_makes_none_of_its_size_quicker(amount: float, took: float) -> None:
    line = measured([(amount, took)] * 3)
    longer = measured([(amount, took)] * 3 + [(amount, 2 * took)])
    assert longer.line.at(amount) >= line.line.at(amount) * (1 - 1e-9)


@given(
    st.floats(1e-4, 2e-3),
    st.floats(0.2, 5.0),
    st.integers(0, 1000),
    st.floats(0.0, 0.1),
)
def test_a_known_line_is_found_of_noisy_points(fixed: float, each: float, seed: int, noise: float) -> None:
    chance = random.Random(seed)
    sizes = [1e-4 * 2**n for n in range(12)]
    given = []
    for _ in range(300):
        size = chance.choice(sizes)
        given.append((size, (fixed + each * size) * math.exp(chance.uniform(-noise, noise))))
    line = measured(given).line
    for size in sizes:
        # Beside the noise what it was taken for before is one point of many.
        assert line.at(size) == pytest.approx(fixed + each * size, rel=0.03 + noise)


def test_what_is_disturbed_for_a_while_changes_little() -> None:
    given = [(0.01 * 2**n, 0.3e-3 + 0.01 * 2**n) for n in range(5)] * 20
    disturbed = measured(given + [(x, 5 * y) for x, y in given[:25]])
    assert disturbed.line.at(0.1) == pytest.approx(measured(given).line.at(0.1), rel=0.1)


def test_what_stays_slower_is_slower_in_the_end() -> None:
    slow = measured([(0.1, 0.1)] * 200)
    for number in range(2000):
        slow.add([(0.1, 0.3)], 200.0 + number)
    assert slow.line.at(0.1) == pytest.approx(0.3, rel=0.1)


def test_of_one_size_all_is_in_proportion_to_it() -> None:
    line = measured([(0.1, 0.05)] * 10).line
    assert line.fixed == pytest.approx(BEFORE.fixed)
    assert line.at(0.1) == pytest.approx(0.05)
    assert line.at(0.2) == pytest.approx(0.1, rel=0.01)
    # What takes less than a call was taken for shows that a call takes less.
    quick = measured([(1e-4, 1e-4)] * 10).line
    assert quick.fixed == pytest.approx(0.5e-4)
    assert quick.at(1e-4) == pytest.approx(1e-4)
    # Of nothing alone, how much more takes is what was thought before.
    nothing = measured([(0.0, 2e-3)] * 3).line
    assert (nothing.fixed, nothing.each) == (pytest.approx(2e-3), BEFORE.each)
    assert measured([]).line == BEFORE
    assert not measured([]).measured


def test_of_a_whole_the_mean_counts_and_no_measure_is_left_out() -> None:
    line = MeasuredLine(BEFORE, 1e-5)
    line.add([(0.1, 0.1), (0.1, 0.1), (0.1, 0.4), (-1.0, 1.0), (0.1, math.nan), (math.inf, 1.0)], 0.0)
    assert line.line.at(0.1) == pytest.approx(0.2)


def test_many_small_ones_do_not_drown_a_large_one() -> None:
    line = measured([(1e-4, 0.4e-3), (2e-4, 0.5e-3)] * 500 + [(0.4, 0.2)] * 20).line
    assert line.at(0.4) == pytest.approx(0.2, rel=0.25)
    assert line.at(1e-4) == pytest.approx(0.4e-3, rel=0.1)


@given(points)
def test_what_is_kept_is_the_same_line_and_bounded(given: list[tuple[float, float]]) -> None:
    line, again = measured(given), MeasuredLine(BEFORE, 1e-5)
    kept = line.saved(100.0)
    assert len(kept) <= MOST_DOUBLINGS
    again.restore(kept, 0.0, 100.0)
    assert again.line.at(0.3) == pytest.approx(line.line.at(0.3))


@pytest.mark.parametrize(
    "bins", [[[1, 2, 3]], [[-1, 0, 1, 0]], [[1, 50, 1, 0]], [[1, 0, 0, 0]], [[1, 0, 1, -1]], [[math.nan] * 4]]
)
def test_what_is_no_line_is_refused(bins: list[list[float]]) -> None:
    line = measured([(0.1, 0.05)])
    with pytest.raises(ValueError, match=r"measure|values"):
        line.restore(bins, 0.0, 0.0)
    assert line.line.at(0.1) == pytest.approx(0.05)


def test_two_sizes_close_together_do_not_say_that_ten_times_as_much_costs_as_little():
    """One is a third off: the line through them would be almost level."""
    line = MeasuredLine(FittedLine(0.3e-3, 1.0), 1e-5, 8.0)
    line.add([(7.5e-3, 10.5e-3)], 0.0)
    line.add([(13e-3, 11e-3)], 0.0)
    assert 0.1 < line.line.at(0.141) < 0.19
    slow = MeasuredLine(FittedLine(0.3e-3, 1.0), 1e-5, 8.0)
    slow.add([(amount, 0.02 + 10 * amount) for amount in (0.001, 0.01, 0.1)], 0.0)
    assert slow.line.fixed == pytest.approx(0.02, rel=0.1)
