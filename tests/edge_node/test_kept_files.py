"""Tensors named as kept are there after a restart, with what makes them private; no others are."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edge_attention.core.errors import NotFound, OutOfMemory
from edge_node.store.kept_files import MAX_AGE
from edge_node.store.sequence_files import Files
from edge_node.store.store import Origin, Store

NAME = "job/r/kept/residual/3/0"


def reopened(folder, store, limit=1 << 20):
    """The store of the next process; this one was killed after its last task."""
    store.commit([NAME])
    store._files._lock.close()
    return Store(limit, Files(folder))


@pytest.mark.parametrize("origin", [None, Origin("a" * 64, "next/residual/0")])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 4)])
def test_what_is_kept_is_there_after_a_restart(tmp_path, shape, origin):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    store = Store(1 << 20, Files(tmp_path))
    store.put(NAME, array, origin)
    store.put("job/r/data/0", array)
    store = reopened(tmp_path, store)
    held = store.get(NAME)
    np.testing.assert_array_equal(held.array, array)
    assert held.array.shape == shape
    assert held.origin == origin
    assert (store.used, store.used_apart) == ((0, array.nbytes) if origin else (array.nbytes, 0))
    with pytest.raises(NotFound):
        store.get("job/r/data/0")


def test_what_is_dropped_or_written_anew_is_so_after_a_restart(tmp_path):
    store = Store(1 << 20, Files(tmp_path))
    for number in range(3):
        store.put(f"job/r/kept/residual/{number}/0", np.full(2, number, np.float32))
    store.put("job/r/kept/residual/1/0", np.full(2, 7, np.float32))
    store.drop("job/r/kept/residual/0/")
    store = reopened(tmp_path, store)
    with pytest.raises(NotFound):
        store.get("job/r/kept/residual/0/0")
    assert store.get("job/r/kept/residual/1/0").array.tolist() == [7, 7]
    store.drop("job/r/")
    assert not list((tmp_path / "kept").iterdir())


def test_a_smaller_limit_keeps_what_is_there_and_takes_no_more(tmp_path):
    store = Store(1 << 20, Files(tmp_path))
    for number in range(3):
        store.put(f"job/r/kept/residual/{number}/0", np.ones(100, np.float32))
    store = reopened(tmp_path, store, 1000)
    assert store.used == 1200
    with pytest.raises(OutOfMemory, match="1,200 of the node's 1,000"):
        store.put("job/r/data/0", np.ones(1, np.float32))
    store.drop("job/r/kept/residual/0/")
    store.put("job/r/data/0", np.ones(1, np.float32))


def test_what_is_damaged_unfinished_or_old_is_removed(tmp_path):
    store = Store(1 << 20, Files(tmp_path))
    for number in range(3):
        store.put(f"job/r/kept/residual/{number}/0", np.ones(2, np.float32))
    store.commit([NAME])
    first, second, _ = sorted((tmp_path / "kept").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    os.utime(second, (0, first.stat().st_mtime - MAX_AGE - 10))
    (tmp_path / "kept" / "x.new").write_bytes(b"half")
    store = reopened(tmp_path, store)
    assert store.used == 8
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_name_that_changed_on_the_disk_is_no_other_tensors(tmp_path):
    store = Store(1 << 20, Files(tmp_path))
    store.put(NAME, np.ones(3, np.float32))
    store.commit([NAME])
    (path,) = (tmp_path / "kept").iterdir()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"residual/3/0", b"residual/2/0", 1))
    store = reopened(tmp_path, store)
    for number in (2, 3):
        with pytest.raises(NotFound):
            store.get(f"job/r/kept/residual/{number}/0")
