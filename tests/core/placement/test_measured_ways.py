"""What a call takes beside computing: a known rule is found, and chance makes no way free of cost."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.placement.cuts.boxes import FORGETTING, forgotten
from edge_attention.core.placement.cuts.measured_ways import FittedWay, MeasuredWays

Point = tuple[float, float, float]
"""Bytes, seconds computed, seconds beside that."""
sizes = st.floats(0, 4e6)
runs = st.floats(0, 1.0)
points = st.lists(st.tuples(sizes, runs, st.floats(1e-6, 10.0)), max_size=30)


def measured(given: list[Point]) -> MeasuredWays:
    ways = MeasuredWays(1e-3)
    for number, point in enumerate(given):
        ways.add([point], float(number))
    return ways


def test_what_waits_forgets_more_the_longer_it_waits() -> None:
    assert forgotten(0.0) == 0.0
    assert forgotten(FORGETTING) == 0.5
    assert forgotten(10.0) == pytest.approx(1.0, abs=1e-3)


@given(st.floats(2e-4, 2e-3), st.floats(0, 3e-8), st.floats(0, 2e-3), st.integers(0, 1000), st.floats(0, 0.1))
def test_a_known_way_is_found_of_noisy_points(
    fixed: float, each: float, cold: float, seed: int, noise: float
) -> None:
    chance, known = random.Random(seed), FittedWay(fixed, each, cold)
    kinds = [(size, run) for size in (0.0, 5e4, 4e5, 1e6) for run in (0.0, 1e-3, 5e-3, 0.1)]
    given = []
    for _ in range(300):
        size, run = chance.choice(kinds)
        given.append((size, run, known.at(size, run) * math.exp(chance.uniform(-noise, noise))))
    fit = measured(given).fit
    for size, run in kinds:
        assert fit.at(size, run) == pytest.approx(known.at(size, run), rel=0.05 + noise)


@given(points, sizes, sizes, runs, runs)
def test_neither_more_bytes_nor_more_computing_is_predicted_to_take_less(
    given: list[Point], one: float, other: float, short: float, long: float
) -> None:
    fit = measured(given).fit
    assert all(0 <= part < math.inf for part in (fit.fixed, fit.each, fit.cold))
    least = fit.at(min(one, other), min(short, long))
    assert least <= fit.at(max(one, other), max(short, long)) * (1 + 1e-12)


alike = st.floats(0.8e-3, 1.6e-3)


@given(st.lists(st.tuples(sizes, st.just(0.0), alike), min_size=1, max_size=30))
def test_where_bytes_hardly_count_none_is_taken_for_quicker_than_all(given: list[Point]) -> None:
    """By chance those of more bytes often take a little less: then an empty call costs no less for it."""
    fit = measured(given).fit
    for size in (0.0, *(size for size, _, _ in given)):
        assert fit.at(size, 0.0) <= 1.25 * max(took for _, _, took in given)
    level = measured([*given, *((size, 0.0, 0.8e-3) for size in (1e6, 2e6, 4e6) for _ in range(20))]).fit
    assert level.at(0.0, 0.0) >= 0.7 * 0.8e-3


@given(st.floats(-1e-3, 1e-3), st.floats(1e-4, 1e-2))
def test_a_link_is_predicted_alike_whether_more_took_a_little_more_or_a_little_less(
    slope: float, took: float
) -> None:
    amounts = [0.0, 5e4, 1e5, 1e6, 2e6]
    up, down = (
        measured([(size, 0.0, took * (1 + one * n)) for n, size in enumerate(amounts)] * 5).fit
        for one in (slope, -slope)
    )
    for size in amounts:
        assert up.at(size, 0.0) == pytest.approx(down.at(size, 0.0), rel=0.02)


def test_short_computing_and_long_are_told_apart() -> None:
    """Thirteen steps of a millisecond are not thirteen times what one call of all of it takes beside."""
    given = [(1e5, 1e-3, 0.9e-3), (5e4, 9e-3, 1.5e-3), (0.0, 12e-3, 1.5e-3), (1e6, 0.0, 1.2e-3)] * 10
    fit = measured(given).fit
    assert fit.at(1e5, 1e-3) == pytest.approx(0.9e-3, rel=0.1)
    assert fit.at(5e4, 9e-3) == pytest.approx(1.5e-3, rel=0.1)


def test_of_one_kind_of_call_all_is_what_it_took() -> None:
    fit = measured([(5e4, 2e-3, 1.3e-3)] * 10).fit
    assert fit.at(5e4, 2e-3) == pytest.approx(1.3e-3, rel=0.02)
    assert 1e-3 < fit.at(0.0, 0.0) < 1.35e-3
    assert MeasuredWays(1e-3).fit == FittedWay(1e-3)
    assert not MeasuredWays(1e-3).measured


def test_what_is_no_measure_is_left_out() -> None:
    ways = MeasuredWays(1e-3)
    ways.add([(-1.0, 0.0, 1.0), (0.0, math.nan, 1.0), (0.0, 0.0, math.inf), (0.0, 0.0, 0.0)], 0.0)
    assert not ways.measured


@given(points)
def test_what_is_kept_is_the_same_and_bounded(given: list[Point]) -> None:
    ways, again = measured(given), MeasuredWays(1e-3)
    kept = ways.saved(100.0)
    assert len(kept) <= 32 * 5
    again.restore(kept, 0.0, 100.0)
    assert again.fit.at(1e5, 2e-3) == pytest.approx(ways.fit.at(1e5, 2e-3))


def test_what_an_earlier_version_kept_is_of_calls_that_forgot_nothing() -> None:
    ways = MeasuredWays(1e-3)
    ways.restore([[0.0, math.log(2e-3), 5.0, 1.0], [1e6, math.log(12e-3), 5.0, 1.0]], 60.0, 100.0)
    assert ways.fit.at(0.0, 0.0) == pytest.approx(2e-3, rel=0.05)
    assert ways.fit.at(1e6, 0.0) == pytest.approx(12e-3, rel=0.05)
    assert ways.saved(100.0)[0][3] == pytest.approx(61.0)


@pytest.mark.parametrize(
    "bins",
    [
        [[1, 2, 3]],
        [[-1, 0, 1, 0, 0]],
        [[1, 50, 1, 0, 0]],
        [[1, 0, 0, 0, 0]],
        [[1, 0, 1, -1]],
        [[1, 0, 1, 0, 2]],
    ],
)
def test_what_is_no_way_is_refused(bins: list[list[float]]) -> None:
    ways = measured([(0.0, 0.0, 2e-3)])
    with pytest.raises(ValueError, match=r"measure|values"):
        ways.restore(bins, 0.0, 0.0)
    assert ways.fit.at(0.0, 0.0) == pytest.approx(2e-3, rel=0.05)
