"""Which calls wait for which turns."""

from __future__ import annotations

from aggregator.bounds.turns import LONG_SECONDS, MANY_SEGMENTS, Turns


def test_an_attend_is_long_by_what_it_reads_or_by_its_segments():
    turns = Turns()
    assert turns.attend(1e12) is turns.attends  # nobody knows yet how long that takes
    turns.learn(1e9, 1.0)
    assert turns.attend(0.9e9 * LONG_SECONDS) is turns.attends
    assert turns.attend(1.1e9 * LONG_SECONDS) is turns.long_attends
    assert turns.attend(1.0, MANY_SEGMENTS - 1) is turns.attends
    assert turns.attend(1.0, MANY_SEGMENTS) is turns.long_attends
