"""Room for deletions on a full disk, without a full disk."""

from __future__ import annotations

import pytest

from aggregator.store.reserve import RESERVE, Reserve
from edge_attention.core.errors import DiskFull


def test_a_deletion_takes_the_reserve_and_it_comes_back(tmp_path):
    reserve = Reserve(tmp_path)
    reserve.keep()
    file = tmp_path / RESERVE
    assert file.stat().st_blocks * 512 >= file.stat().st_size > 0, "the room is taken"

    def on_a_full_disk():
        if file.exists():
            raise DiskFull("no room")
        return "done"

    assert reserve.freeing(on_a_full_disk) == "done"
    reserve.keep()
    assert file.exists()


def test_without_it_a_full_disk_is_said(tmp_path):
    def full():
        raise DiskFull("no room")

    with pytest.raises(DiskFull, match="no room"):
        Reserve(tmp_path).freeing(full)


def test_a_disk_with_little_room_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("aggregator.store.reserve.MOST_BYTES", 1 << 60)
    monkeypatch.setattr("aggregator.store.reserve.SHARE", 1)
    Reserve(tmp_path).keep()
    assert not (tmp_path / RESERVE).exists()
