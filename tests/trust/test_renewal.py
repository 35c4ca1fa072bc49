"""When a certificate is renewed: in time, not all at once, again until it works, whatever the clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_attention.trust.renewal import BACKOFF, Renewal

LIVES = st.floats(1, 1e8)
RANDOM = st.floats(0, 1, exclude_max=True)
WEEK = 7 * 86400
HOUR = 3600.0


def test_a_week_is_renewed_after_two_thirds():
    renewal = Renewal(1000, 1000 + WEEK, lambda: 0.0, 1000, 0)
    at = 1000 + WEEK * 2 / 3
    assert renewal.wait(1000, 0) == at - 1000
    assert not renewal.step(at - 1, at - 1001)
    assert renewal.step(at, at - 1000)
    renewal.renewed(at, at + WEEK, at, at - 1000)
    assert not renewal.step(at, at - 1000)
    assert renewal.wake == at + WEEK * 2 / 3


@given(LIVES, RANDOM)
def test_a_fleet_does_not_renew_as_one_and_everybody_in_time(life, random):
    renewal = Renewal(0, life, lambda: random, 0, 0)
    assert 0.6 * life < renewal.wait(0, 0) <= 0.667 * life


@given(st.floats(10, 1e8), RANDOM)
def test_failures_are_tried_again_before_the_end_ever_more_slowly(life, random):
    renewal = Renewal(0, life, lambda: random, 0, 0)
    now, tries, last = renewal.wake, 0, 0.0
    while now < life and tries < 2000:
        assert renewal.step(now, now)
        renewal.failed(now, now)
        last = renewal.wait(now, now)
        assert 0 < last <= BACKOFF[1] + 1e-6
        tries, now = tries + 1, now + last * (1 + 1e-9)
    assert tries >= 5, "several tries fit before its end"


def test_after_the_end_it_still_tries_but_seldom():
    renewal = Renewal(0, 100, lambda: 0.5, 0, 0)
    for now in range(100, 100_000, 400):
        assert renewal.ended(now)
        renewal.failed(now, now)
        assert 0.5 <= renewal.wait(now, now) <= BACKOFF[1]
    assert renewal.wait(now, now) >= BACKOFF[1] / 2
    assert not renewal.ended(99)


def test_a_clock_set_ahead_renews():
    renewal = Renewal(1_000_000, 1_000_900, lambda: 0.0, 1_000_000, 0)
    assert not renewal.step(1_000_001, 1)
    assert renewal.step(2_000_000, 2)


@given(st.floats(-10 * WEEK, 10 * WEEK), RANDOM)
def test_a_clock_that_is_set_does_not_put_a_renewal_off(jump, random):
    renewal = Renewal(0, WEEK, lambda: random, 0, 0)
    steady = renewal.wait(0, 0)
    assert renewal.step(steady + jump, steady), "so much time has gone by, whatever the clock says"


@given(st.floats(-10 * WEEK, 10 * WEEK), RANDOM)
def test_after_a_failure_no_clock_that_is_set_puts_the_next_try_off(jump, random):
    renewal = Renewal(0, WEEK, lambda: random, 0, 0)
    now = steady = renewal.wait(0, 0)
    renewal.failed(now, steady)
    first = renewal.wait(now, steady)
    assert first <= BACKOFF[0]
    assert renewal.wait(now + jump, steady) == first
    assert renewal.step(now + jump, steady + first)


def test_who_gets_a_certificate_with_the_clock_behind_does_not_wait_that_much_longer():
    renewal = Renewal(10 * HOUR, 20 * HOUR, lambda: 0.0, 9 * HOUR, 0)
    assert renewal.wait(9 * HOUR, 0) == 10 * HOUR * (2 / 3), (
        "two thirds of its life from now, not an hour more"
    )
