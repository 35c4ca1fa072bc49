"""How often a fleet of so many nodes beats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.fleet.pace import BEATS_A_SECOND, SELDOM_SECONDS, Pace, pace_of

NODES, LEASES = st.integers(0, 20_000), st.floats(0.5, 3600.0)


@pytest.mark.parametrize(
    ("nodes", "lease", "pace"),
    [
        (0, 10.0, Pace(3.0, 10.0)),
        (1, 10.0, Pace(3.0, 10.0)),
        (450, 10.0, Pace(3.0, 10.0)),
        (451, 10.0, Pace(4.5, 15.0)),
        (1_000, 10.0, Pace(7.5, 25.0)),
        (2_250, 10.0, Pace(15.0, 50.0)),
        (10_000, 10.0, Pace(15.0, 50.0)),
        (3, 1.5, Pace(0.5, 1.5)),
        (1_000, 60.0, Pace(7.5, 150.0)),
    ],
)
def test_few_nodes_beat_often_and_many_seldom(nodes, lease, pace):
    assert pace_of(nodes, lease) == pace


@given(NODES, LEASES)
def test_a_lease_never_has_fewer_tries_than_in_a_small_fleet(nodes, lease):
    small, pace = pace_of(0, lease), pace_of(nodes, lease)
    assert pace.tries == pytest.approx(small.tries)
    assert pace.tries >= 3 - 1e-9
    assert pace.lease >= small.lease
    assert pace.heartbeat >= small.heartbeat


@given(NODES, LEASES)
def test_the_fleet_beats_so_often_and_no_more_until_nodes_beat_as_seldom_as_they_may(nodes, lease):
    pace = pace_of(nodes, lease)
    assert pace.heartbeat <= SELDOM_SECONDS
    if pace.heartbeat < SELDOM_SECONDS:
        assert nodes / pace.heartbeat <= BEATS_A_SECOND * (1 + 1e-9)


@given(NODES, NODES, LEASES)
def test_more_nodes_never_beat_more_often(one, other, lease):
    few, many = sorted((one, other))
    assert pace_of(few, lease).heartbeat <= pace_of(many, lease).heartbeat
