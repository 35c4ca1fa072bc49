"""Clocks that jump, and what is deleted by age."""

from __future__ import annotations

import pytest

from aggregator.store.retention import DAY
from aggregator.store.settled_clock import FolderClock, SettledClock


class Clock:
    def __init__(self):
        self.steady, self.set_by = 1000.0, 1.7e9

    def clock(self):
        return SettledClock(lambda: self.set_by + self.steady, lambda: self.steady)

    def kept_in(self, folder):
        return FolderClock(folder, lambda: self.set_by + self.steady, lambda: self.steady)


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


@pytest.mark.parametrize("off", [366 * DAY, -2 * DAY, 2 * DAY])
def test_a_clock_far_off_as_a_process_starts_counts_once_it_has_stayed_for_a_day(off, tmp_path, caplog):
    """However often the process starts: what it wrote down with that clock is no witness for it."""
    machine = Clock()
    machine.kept_in(tmp_path)()
    right = machine.set_by
    machine.set_by += off
    for _ in range(3):
        caplog.clear()
        settled = machine.kept_in(tmp_path)
        assert "days from when this was last looked after: it was away so long, or the clock" in caplog.text
        for _ in range(3):
            # What passed since it was written down last, at each start.
            assert 0 <= right + machine.steady - settled() <= 3 * 3600.0
            machine.steady += 3600.0
    machine.steady += DAY
    assert settled() == machine.set_by + machine.steady
    caplog.clear()
    machine.steady += 3600.0
    settled()
    assert machine.kept_in(tmp_path)() == machine.set_by + machine.steady
    assert not caplog.text


def test_one_that_was_away_for_an_hour_or_a_night_is_believed(tmp_path, caplog):
    machine = Clock()
    for away in (3600.0, 0.9 * DAY, 0.0):
        machine.kept_in(tmp_path)()
        machine.steady += away
        assert machine.kept_in(tmp_path)() == machine.set_by + machine.steady
    for words in ("", "nan", "inf", "yesterday"):
        (tmp_path / "clock").write_text(words)
        assert machine.kept_in(tmp_path)() == machine.set_by + machine.steady
    assert not caplog.text


def test_where_nothing_can_be_written_down_the_clock_goes_on(tmp_path):
    machine = Clock()
    settled = machine.kept_in(tmp_path / "none")
    assert settled() == machine.set_by + machine.steady
