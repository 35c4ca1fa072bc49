"""Bins keep a mean of what is alike, which forgets and is moved little by what is far off."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.placement.cuts.measured_bins import (
    HALF_LIFE,
    MOST_DOUBLINGS,
    DecayedMean,
    MeasuredBins,
    doubling,
)


def bins() -> MeasuredBins:
    return MeasuredBins(lambda amounts: tuple(doubling(amount, 1.0) for amount in amounts))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1e4)), min_size=1, max_size=20))
def test_a_mean_stays_between_its_values(given: list[tuple[float, float]]) -> None:
    mean = near = DecayedMean(given[0][0], 1.0, given[0][1])
    for value, at in given[1:]:
        mean, near = mean.plus(value, at), near.near(value, at)
    for one in (mean, near):
        assert min(v for v, _ in given) - 1e-9 <= one.value <= max(v for v, _ in given) + 1e-9


def test_after_a_half_life_the_old_weighs_half() -> None:
    mean = DecayedMean(0.0, 1.0, 0.0).plus(3.0, HALF_LIFE)
    assert mean.value == pytest.approx(2.0)
    # A clock that is read out of order weighs the value as one of now.
    assert DecayedMean(0.0, 1.0, 50.0).plus(2.0, 20.0) == DecayedMean(1.0, 2.0, 50.0)


def test_a_bin_takes_twice_what_the_one_before_does() -> None:
    amounts = [0.0, 10.0, 10.1, 20.0, 20.1, 40.0, 41.0]
    assert [doubling(amount, 10.0) for amount in amounts] == [0, 0, 1, 1, 2, 2, 3]
    assert doubling(1e14, 1e-5) == MOST_DOUBLINGS - 1


def test_points_alike_in_all_amounts_are_one_bin_and_others_have_their_own() -> None:
    found = bins()
    found.add([((3.0, 5.0), 1.0), ((4.0, 8.0), 3.0), ((4.0, 9.0), 7.0)], 0.0)
    assert [(one.amounts, one.seconds) for one in found.all] == [
        ((3.5, 6.5), pytest.approx(2.0)),
        ((4.0, 9.0), pytest.approx(7.0)),
    ]


def test_amounts_follow_what_comes_as_the_seconds_do() -> None:
    found = bins()
    for _ in range(40):
        found.add([((3.0,), 1.0)], 0.0)
    for _ in range(40):
        found.add([((4.0,), 1.1)], 20 * HALF_LIFE)
    (one,) = found.all
    assert one.amounts[0] == pytest.approx(4.0, abs=0.01)
    assert one.seconds == pytest.approx(1.1, rel=0.01)


@pytest.mark.parametrize("amounts", [(-1.0, 0.0), (0.0, math.nan), (math.inf, 0.0)])
def test_what_is_no_amount_is_left_out(amounts: tuple[float, float]) -> None:
    found = bins()
    found.add([(amounts, 1.0)], 0.0)
    assert not found.all


def test_what_is_restored_is_as_old_as_it_was_and_what_is_none_of_it_changes_nothing() -> None:
    found, again = bins(), bins()
    found.add([((3.0, 5.0), 2.0)], 10.0)
    again.restore(found.saved(40.0), 100.0, 1000.0)
    assert again.saved(1000.0) == [[3.0, pytest.approx(math.log(2.0)), 1.0, 130.0, 5.0]]
    with pytest.raises(ValueError, match="no measure"):
        again.restore([[1.0, 0.0, 1.0, 0.0, -1.0]], 0.0, 0.0)
    assert len(again) == 1
