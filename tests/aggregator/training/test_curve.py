"""A curve stays short, and its means stay true."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aggregator.training.curve import Curve


def test_points_are_kept_as_they_are_while_there_is_room():
    curve = Curve(points=4)
    for x in (1, 2, 5):
        curve.add(x, {"loss": 10.0 / x})
    assert curve.x == [1, 2, 5]
    assert curve.series() == {"loss": [10.0, 5.0, 2.0]}


def test_a_long_curve_is_halved_to_means_of_neighbours():
    curve = Curve(points=4)
    for x in range(1, 9):
        curve.add(x, {"loss": float(x)})
    assert curve.x == [2, 4, 6, 8]
    assert curve.series()["loss"] == [1.5, 3.5, 5.5, 7.5]


@given(st.integers(1, 400), st.integers(2, 9))
def test_however_long_it_runs_no_value_is_lost_and_it_stays_short(length, points):
    curve = Curve(points=points)
    for x in range(length):
        curve.add(x, {"loss": float(x)})
    xs, ys = curve.x, curve.series()["loss"]
    assert len(xs) == len(ys) <= points
    assert xs == sorted(set(xs))
    assert xs[-1] == length - 1
    edges = [-1, *xs]
    total = sum(y * (edges[i + 1] - edges[i]) for i, y in enumerate(ys))
    assert math.isclose(total, length * (length - 1) / 2, abs_tol=1e-6)


def test_what_is_not_finite_is_a_gap_and_what_came_before_is_known():
    curve = Curve()
    curve.add(1, {"loss": 1.0, "correct": 0.5})
    curve.add(2, {"loss": math.nan, "correct": math.inf})
    curve.add(2, {"loss": 7.0})
    curve.add(1, {"loss": 7.0})
    assert curve.x == [1, 2]
    assert curve.series() == {"loss": [1.0, None], "correct": [0.5, None]}


def test_names_beyond_the_limit_are_left_out():
    curve = Curve(names=2)
    curve.add(1, {"a": 1.0, "b": 2.0, "c": 3.0})
    curve.add(2, {"c": 3.0, "b": 4.0})
    assert curve.series() == {"a": [1.0, None], "b": [2.0, 4.0]}
