"""When a certificate is renewed: transcripts of a state machine with a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_attention.trust.renewal import BACKOFF, Renewal

LIVES = st.floats(1, 1e8)
RANDOM = st.floats(0, 1, exclude_max=True)


def test_a_week_is_renewed_after_two_thirds():
    week = 7 * 86400
    renewal = Renewal(1000, 1000 + week, lambda: 0.0)
    at = 1000 + week * 2 / 3
    assert renewal.wake == at
    assert not renewal.step(at - 1)
    assert renewal.step(at)
    renewal.renewed(at, at + week)
    assert not renewal.step(at)
    assert renewal.wake == at + week * 2 / 3


@given(LIVES, RANDOM)
def test_a_fleet_does_not_renew_as_one_and_everybody_in_time(life, random):
    renewal = Renewal(0, life, lambda: random)
    assert 0.6 * life < renewal.wake <= 0.667 * life


@given(st.floats(10, 1e8), RANDOM)
def test_failures_are_tried_again_before_the_end_ever_more_slowly(life, random):
    renewal = Renewal(0, life, lambda: random)
    now, tries, last = renewal.wake, 0, 0.0
    while now < life and tries < 2000:
        assert renewal.step(now)
        renewal.failed(now)
        wait = renewal.wake - now
        assert 0 < wait <= BACKOFF[1] + 1e-6
        tries, last, now = tries + 1, wait, renewal.wake
    assert tries >= 5, "several tries fit before its end"
    assert last <= BACKOFF[1] + 1e-6


def test_after_the_end_it_still_tries_but_seldom():
    renewal = Renewal(0, 100, lambda: 0.5)
    for now in range(100, 100_000, 400):
        assert renewal.ended(now)
        renewal.failed(now)
        assert 0.5 <= renewal.wake - now <= BACKOFF[1]
    assert renewal.wake - now >= BACKOFF[1] / 2
    assert not renewal.ended(99)


def test_a_clock_set_back_waits_and_one_set_ahead_renews():
    renewal = Renewal(1_000_000, 1_000_900, lambda: 0.0)
    assert not renewal.step(0)
    assert renewal.step(2_000_000)
