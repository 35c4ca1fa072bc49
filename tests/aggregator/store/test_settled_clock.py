"""Clocks that jump, and what is deleted by age."""

from __future__ import annotations

import pytest

from aggregator.store.retention import DAY
from aggregator.store.settled_clock import SettledClock


class Clock:
    def __init__(self):
        self.steady, self.set_by = 1000.0, 1.7e9

    def clock(self):
        return SettledClock(lambda: self.set_by + self.steady, lambda: self.steady)


def test_it_goes_as_the_clock_does_and_follows_small_corrections():
    machine = Clock()
    settled = machine.clock()
    for correction in (0.0, 2.5, -30.0, 900.0, -900.0):
        machine.set_by += correction
        machine.steady += 60.0
        assert settled() == machine.set_by + machine.steady


@pytest.mark.parametrize("jump", [366 * DAY, -2 * DAY, 2 * 3600.0])
def test_a_jump_counts_once_it_has_stayed_for_a_day(jump):
    machine = Clock()
    settled = machine.clock()
    before = machine.set_by
    machine.set_by += jump
    for _ in range(24):
        assert settled() == before + machine.steady
        machine.steady += 3600.0
    assert settled() == machine.set_by + machine.steady


def test_a_jump_and_back_never_was():
    machine = Clock()
    settled = machine.clock()
    for _ in range(3):
        machine.set_by += 366 * DAY
        settled()
        machine.steady += 20 * 3600.0
        settled()
        machine.set_by -= 366 * DAY
        assert settled() == machine.set_by + machine.steady
        machine.steady += 20 * 3600.0
