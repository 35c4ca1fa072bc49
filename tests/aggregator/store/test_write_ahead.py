"""A damaged write-ahead log is named: SQLite ends at the first bad frame and says nothing of the rest."""

from __future__ import annotations

import random
import shutil

import pytest

from aggregator.store.state import State
from edge_attention.core.errors import DataLoss

FRAME = 24 + 4096


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder as a killed process leaves it: ten contexts committed, all of them in the log."""
    folder = tmp_path_factory.mktemp("state")
    with State(folder / "living") as state:
        for number in range(10):
            state.put_context(f"i{number}", f"c{number}", float(number), {"number": number})
        shutil.copytree(folder / "living", folder / "killed")
    return folder / "killed"


def damaged(killed, folder, change):
    shutil.copytree(killed, folder)
    log = folder / "state.db-wal"
    data = bytearray(log.read_bytes())
    change(data)
    log.write_bytes(data)
    return log


def contexts(folder):
    with State(folder) as state:
        return [context.name for context in state.list_contexts()]


def test_a_whole_log_is_read(killed, tmp_path):
    damaged(killed, tmp_path / "s", lambda data: None)
    assert contexts(tmp_path / "s") == [f"c{number}" for number in range(10)]


@pytest.mark.parametrize("seed", range(12))
def test_a_bit_that_changed_is_named_and_the_log_stays(killed, tmp_path, seed):
    def flip(data):
        chosen = random.Random(seed)
        at = chosen.randrange(len(data) - 8 * FRAME)
        data[at] ^= 1 << chosen.randrange(8)

    log = damaged(killed, tmp_path / "s", flip)
    before = log.read_bytes()
    for _ in range(2):
        with pytest.raises(DataLoss, match=r"state.db-wal is damaged at byte"):
            State(tmp_path / "s")
    assert log.read_bytes() == before
    log.unlink()
    assert contexts(tmp_path / "s") == []


def test_what_a_power_cut_left_of_the_last_commit_is_no_damage(killed, tmp_path):
    def tear(data):
        data[-FRAME + 24 + 100 : -FRAME + 24 + 600] = b"\xff" * 500

    damaged(killed, tmp_path / "s", tear)
    assert contexts(tmp_path / "s") == [f"c{number}" for number in range(9)]


def test_a_log_that_ends_within_a_frame_is_read_as_far_as_it_goes(killed, tmp_path):
    damaged(killed, tmp_path / "s", lambda data: data.__delitem__(slice(-100, None)))
    assert contexts(tmp_path / "s") == [f"c{number}" for number in range(9)]


def test_frames_of_before_it_began_anew_are_none_of_it(tmp_path):
    with State(tmp_path / "s") as state:
        for number in range(10):
            state.put_context(f"i{number}", f"c{number}", float(number), {})
        state._database.execute("PRAGMA wal_checkpoint(RESTART)")
        state.put_context("last", "last", 99.0, {})
        shutil.copytree(tmp_path / "s", tmp_path / "killed")
    assert len(contexts(tmp_path / "killed")) == 11


def test_what_a_torn_commit_left_behind_a_later_one_is_none_of_it(killed, tmp_path):
    def tear(data):
        data[-2 * FRAME + 24 + 100 : -2 * FRAME + 24 + 600] = b"\xff" * 500
        data[-FRAME + 16] ^= 1  # of another chain: it lay there when the torn one was written

    damaged(killed, tmp_path / "s", tear)
    assert contexts(tmp_path / "s")
