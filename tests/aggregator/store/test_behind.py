"""Pieces written by a thread of their own: in order, few at a time, and nothing after the end."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from aggregator.store.behind import DEPTH, DIRECTLY, Behind
from edge_attention.core.errors import ResourceExhausted

PIECES = [np.full(DIRECTLY // 4, index, np.float32) for index in range(20)]
SMALL = [piece[: DIRECTLY // 4 - 1] for piece in PIECES]


class Disk:
    """Remembers what was written; waits for `open` before each piece; is full for one, after `full`."""

    def __init__(self, full: int = 1000) -> None:
        self.open, self.full = threading.Event(), full
        self.written: list[tuple[str, int, float]] = []
        self.threads: set[int] = set()

    def write_at(self, name, start, piece):
        assert self.open.wait(180)
        self.threads.add(threading.get_ident())
        if len(self.written) == self.full:
            self.full = -1
            raise ResourceExhausted("no space left")
        self.written.append((name, start, float(piece[0])))


def test_pieces_of_several_writers_come_in_order_from_one_other_thread():
    first, second = Disk(), Disk()
    first.open.set()
    second.open.set()
    with Behind() as behind:
        writers = behind.writer(first), behind.writer(second)
        for index, piece in enumerate(PIECES):
            writers[index % 2].write_at("p", index, piece)
    assert first.written == [("p", index, index) for index in range(0, 20, 2)]
    assert second.written == [("p", index, index) for index in range(1, 20, 2)]
    assert first.threads == second.threads != {threading.get_ident()}


def give(disk):
    """How many pieces waited, after each that was given."""
    with Behind() as behind:
        waited = []
        for index, piece in enumerate(PIECES):
            behind.writer(disk).write_at("p", index, piece)
            waited.append(len(behind._waiting))
        return waited


def test_few_pieces_wait_however_many_are_given():
    disk = Disk()
    disk.open.set()
    assert max(give(disk)) == DEPTH
    assert len(disk.written) == len(PIECES)


@pytest.mark.parametrize("full", [0, 5, 19])
def test_what_goes_wrong_there_is_raised_here_and_nothing_is_written_after(full):
    disk = Disk(full)
    disk.open.set()
    with pytest.raises(ResourceExhausted, match="no space left"):
        give(disk)
    assert len(disk.written) == full


def stumble(disk):
    with Behind() as behind:
        for index in range(DEPTH):
            behind.writer(disk).write_at("p", index, PIECES[index])
        # The last of those that wait is called off; only then does the first go on.
        behind._waiting[-1].add_done_callback(lambda _: disk.open.set())
        raise ZeroDivisionError


def test_an_error_of_who_computes_is_raised_once_the_thread_is_done():
    disk = Disk()
    with pytest.raises(ZeroDivisionError):
        stumble(disk)
    assert len(disk.written) <= 1, "the one under way, and none of those that waited"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("behind")]


def test_small_pieces_are_written_at_once_and_never_before_one_that_waits():
    disk = Disk()
    disk.open.set()
    with Behind() as behind:
        writer = behind.writer(disk)
        for index, piece in enumerate(SMALL):
            writer.write_at("small", index, piece)
            assert len(disk.written) == index + 1
    assert disk.threads == {threading.get_ident()}
    disk = Disk()
    with Behind() as behind:
        writer = behind.writer(disk)
        writer.write_at("large", 0, PIECES[0])
        writer.write_at("small", 1, SMALL[1])
        assert not disk.written, "the first one waits for the disk"
        disk.open.set()
    assert disk.written == [("large", 0, 0.0), ("small", 1, 1.0)]
    assert threading.get_ident() not in disk.threads


def test_a_small_piece_that_cannot_be_written_says_so_at_once():
    disk = Disk(full=1)
    disk.open.set()
    with Behind() as behind:
        writer = behind.writer(disk)
        writer.write_at("p", 0, SMALL[0])
        with pytest.raises(ResourceExhausted, match="no space left"):
            writer.write_at("p", 1, SMALL[1])
    assert len(disk.written) == 1
