"""Arrays that another process can map."""

from __future__ import annotations

import fcntl
import os
import resource

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables.table import Table
from edge_node import shared_memory
from edge_node.data.datasets import LocalDataset
from edge_node.shared_memory import Region, allocate, empty, find, gather, map_region, seal, shared

LARGE = 100_000


def test_a_view_is_found_wherever_it_came_from():
    x = empty((LARGE, 2), np.float32)
    x[:] = np.arange(2 * LARGE).reshape(LARGE, 2)
    region, start = find(x)
    assert (start, region.size) == (0, x.nbytes)
    came = np.frombuffer(x.reshape(-1).view(np.uint8).data, np.float32).reshape(LARGE, 2)
    for view in (x[10:], came[10:], came.reshape(-1)[20:].view(np.int32)):
        assert find(view) == (region, 80)
        assert os.pread(region.descriptor, 4, 80) == view.reshape(-1)[:1].tobytes()
    for other in (x[:, :1], x.T, x.copy(), np.ones(LARGE), x.astype(np.float64)):
        assert find(other) is None


def test_what_is_small_is_plain_and_what_is_there_is_not_copied():
    assert find(empty(10, np.float32)) is None
    x = shared(np.ones(LARGE))
    assert find(x) is not None
    assert shared(x) is x
    small = np.ones(3)
    assert shared(small) is small


def test_who_is_handed_the_descriptor_cannot_write():
    x = empty(LARGE, np.float32)
    region, _ = find(x)
    handed = os.dup(region.descriptor)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(handed, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(handed, 0)
        with pytest.raises(PermissionError):
            Region(os.dup(handed), region.size, writable=True)
        x[0] = 7  # here it goes on
        assert map_region(os.dup(handed), region.size).array(0, (1,), np.dtype("float32"))[0] == 7
    finally:
        os.close(handed)


def test_what_is_sealed_is_written_by_nobody_and_not_while_somebody_can():
    descriptor = allocate(LARGE)
    writer = Region(os.dup(descriptor), LARGE, writable=True)
    with pytest.raises(OSError, match="busy"):
        seal(descriptor)
    writer.unmap()
    seal(descriptor)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)  # nor are there more seals
    os.close(descriptor)


def test_memory_and_descriptor_go_with_the_last_array():
    before, live = len(os.listdir("/proc/self/fd")), Region.live
    x = empty(LARGE, np.float32)
    part = x[5:8]
    assert (len(os.listdir("/proc/self/fd")), Region.live) == (before + 1, live + 1)
    del x
    part[:] = 3
    del part
    assert (len(os.listdir("/proc/self/fd")), Region.live) == (before, live)
    ends = os.pipe()
    for end in ends:
        with pytest.raises(OSError, match=r"No such device|Permission denied"):
            Region(end, LARGE, writable=False)  # closed by it all the same
    assert (len(os.listdir("/proc/self/fd")), Region.live) == (before, live)


def test_without_descriptors_memory_is_plain(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(Region, "live", soft // 2)
    assert find(empty(LARGE, np.float32)) is None
    monkeypatch.undo()
    monkeypatch.setattr(shared_memory, "allocate", None, raising=True)
    monkeypatch.setattr(
        shared_memory, "allocate", lambda size: (_ for _ in ()).throw(OSError(24, "none left"))
    )
    x = shared(np.ones(LARGE))
    assert find(x) is None
    assert x.sum() == LARGE
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_rows_are_gathered_to_where_they_can_be_mapped():
    table = np.random.default_rng(0).standard_normal((500, 3, 50)).astype(np.float32)
    rows = np.array([4, 4, 0, 499] * 100)
    found = gather(table, rows)
    np.testing.assert_array_equal(found, table[rows])
    assert find(found) is not None
    assert gather(table, rows[:0]).shape == (0, 3, 50)


def test_a_dataset_lies_where_a_cell_can_map_it():
    made = LocalDataset("d", Table.of({"x": np.ones((LARGE, 2), np.float32), "y": np.arange(LARGE)}, None))
    assert find(made.column("x")) is not None
    assert find(made.column("y")) is not None
    with pytest.raises(InvalidArgument):
        LocalDataset("d", Table.of({"x": np.array(["a"] * LARGE, object)}, None))
