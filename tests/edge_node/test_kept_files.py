"""Tensors named as kept are there after a restart, with what makes them private; no others are."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest

from edge_attention.core.errors import NotFound, OutOfMemory
from edge_node import shared_memory
from edge_node.store import kept_files
from edge_node.store.disk import Disk
from edge_node.store.kept_files import MAPPED, MAPPED_AGE, MAX_AGE, KeptFiles
from edge_node.store.sequence_files import Files
from edge_node.store.store import DISK_TIMES, Origin, Store

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


LARGE = np.random.default_rng(0).standard_normal((5, MAPPED // 16)).astype(np.float32)
DIGEST = sha256(LARGE.tobytes()).hexdigest()


def large(folder, limit=1 << 20, **fields):
    """A store that has kept LARGE."""
    store = Store(limit, Files(folder))
    store.put(NAME, LARGE, **fields)
    return store


def test_what_is_large_and_not_private_is_mapped_and_takes_no_memory(tmp_path):
    store = large(tmp_path)
    assert (store.used, store.disk) == (LARGE.nbytes, LARGE.nbytes)
    assert not store.has(NAME, DIGEST, LARGE.dtype, LARGE.shape), "it is not on the disk yet"
    store.commit([NAME])
    assert (store.used, store.disk) == (0, LARGE.nbytes)
    for _ in range(2):
        held = store.get(NAME)
        np.testing.assert_array_equal(held.array, LARGE)
        region, start = shared_memory.find(held.array)
        assert start % 4096 == 0
        assert os.pread(region.descriptor, 4, start) == LARGE.tobytes()[:4], "a cell can map it"
        assert not held.array.flags.writeable
        assert (store.used, store.disk, held.digest) == (0, LARGE.nbytes, DIGEST)
        assert store.has(NAME, DIGEST, LARGE.dtype, LARGE.shape)
        assert not store.has(NAME, DIGEST, LARGE.dtype, LARGE.shape[::-1])
        assert not store.has(NAME, "0" * 64, LARGE.dtype, LARGE.shape)
        store = reopened(tmp_path, store)
    store.put(NAME, LARGE[:1])
    assert (store.used, store.disk) == (LARGE[:1].nbytes, 0)
    store.drop("job/r/")
    assert (store.used, store.disk) == (0, 0)
    np.testing.assert_array_equal(held.array, LARGE)  # who has it still reads it


@pytest.mark.parametrize("origin", [None, Origin("a" * 64, "next/residual/0")])
@pytest.mark.parametrize("size", [MAPPED, MAPPED - 1])
def test_what_is_private_or_small_stays_in_memory(tmp_path, origin, size):
    store = Store(1 << 20, Files(tmp_path))
    store.put(NAME, np.zeros(size, np.int8), origin)
    store.commit([NAME])
    mapped = origin is None and size == MAPPED
    assert (store.used + store.used_apart, store.disk) == ((0, size) if mapped else (size, 0))
    assert (store.get(NAME).file is not None) == mapped


def test_at_a_start_what_is_mapped_is_not_read_and_it_is_not_too_old(tmp_path, monkeypatch):
    store = large(tmp_path)
    store.commit([NAME])
    (path,) = (tmp_path / "kept").iterdir()
    os.utime(path, (0, path.stat().st_mtime - MAX_AGE - 10))
    monkeypatch.setattr(np, "frombuffer", None)
    monkeypatch.setattr(kept_files, "sha256", None)
    KeptFiles._path, path_of = lambda self, name: path, KeptFiles._path
    try:
        store = reopened(tmp_path, store)
    finally:
        KeptFiles._path = path_of
    assert store.disk == LARGE.nbytes


@pytest.mark.parametrize("at", [-1, 4096 * 2])
def test_what_is_damaged_on_the_disk_is_found_when_it_is_first_asked_for(tmp_path, at):
    store = large(tmp_path)
    store.commit([NAME])
    (path,) = (tmp_path / "kept").iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    store = reopened(tmp_path, store)
    assert store.has(NAME, DIGEST, LARGE.dtype, LARGE.shape)
    with pytest.raises(NotFound, match="was damaged on this node's disk and is dropped: store it again"):
        store.get(NAME)
    assert store.disk == 0
    assert not list((tmp_path / "kept").iterdir())


def test_what_cannot_be_opened_at_the_start_is_there_at_the_next(tmp_path, monkeypatch):
    store = large(tmp_path)
    store.commit([NAME])

    def failing(path):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "map_file", failing)
        store = reopened(tmp_path, store)
    assert store.disk == 0
    np.testing.assert_array_equal(reopened(tmp_path, store).get(NAME).array, LARGE)


def test_of_another_size_than_was_written_it_is_removed_at_the_start(tmp_path):
    store = large(tmp_path)
    store.commit([NAME])
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    store = reopened(tmp_path, store)
    assert store.disk == 0
    assert not list((tmp_path / "kept").iterdir())


def kept_as(number):
    return f"job/r/kept/w/{number}"


def test_what_is_mapped_and_nobody_has_asked_for_in_half_a_year_is_removed(tmp_path):
    store = large(tmp_path)
    store.commit([NAME])
    (path,) = (tmp_path / "kept").iterdir()
    for age, stays in ((MAPPED_AGE - 1000, True), (MAPPED_AGE + 1000, False)):
        os.utime(path, (0, time.time() - age))
        store = reopened(tmp_path, store)
        assert path.exists() == stays
        if stays:
            store.get(NAME)  # which makes it new
            assert path.stat().st_mtime > time.time() - 1000


def test_the_disk_that_it_takes_is_bounded_and_what_nobody_asked_for_makes_room(tmp_path):
    limit, begun = LARGE.nbytes, time.time() - 1000
    store = Store(limit, Files(tmp_path))
    for number in range(DISK_TIMES):
        store.put(kept_as(number), LARGE)
        store.commit([kept_as(number)])
        path = store._files.kept._path(kept_as(number))
        os.utime(path, (0, begun + number))
    with pytest.raises(OutOfMemory, match="4 times --memory-limit, and take"):
        store.put(kept_as(9), LARGE)
    store.put(kept_as(0), LARGE)  # in its own place
    store.commit([kept_as(0)])
    os.utime(store._files.kept._path(kept_as(0)), (0, begun))
    store = reopened(tmp_path, store, limit)
    store.get(kept_as(0))
    assert store.has(kept_as(1), DIGEST, LARGE.dtype, LARGE.shape)
    store.put(kept_as(9), LARGE)
    there = [n for n in range(DISK_TIMES) if kept_as(n) in store._held]
    assert there == [0, 1, 3], "2 was the oldest that nobody had asked for"
    store.commit([kept_as(9)])
    store.put(kept_as(8), LARGE)
    store.commit([kept_as(8)])
    with pytest.raises(OutOfMemory):
        store.put(kept_as(7), LARGE)
    assert store.disk == DISK_TIMES * limit


def test_a_full_disk_is_said_and_the_tensor_is_kept_at_the_next_commit(tmp_path, monkeypatch):
    store = large(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(kept_files, "SPARE", 1 << 60)
        with pytest.raises(OutOfMemory, match="bytes of the disk are free, and"):
            store.commit([NAME])

    class Full(Disk):
        def write(self, path, data, at=0):
            super().write(path, data[: len(data) // 2], at)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store._files.kept, "_disk", Full())
        with pytest.raises(OutOfMemory, match="No space left on device; free some disk"):
            store.commit([NAME])
    assert not list((tmp_path / "kept").iterdir()), "no half of it is left"
    assert (store.used, store.disk) == (LARGE.nbytes, LARGE.nbytes)
    store.commit([NAME])
    assert (store.used, store.disk) == (0, LARGE.nbytes)


def test_what_is_to_be_read_whole_first_has_no_extent_until_then(tmp_path):
    """So no program that reads it runs on the event loop, however short others of that size were."""
    store = reopened(tmp_path, large(tmp_path))
    for _ in range(2):  # to ask reads nothing
        assert store.extent(NAME) is None
    store.get(NAME)
    assert store.extent(NAME) == LARGE.shape


def test_who_commits_second_has_it_on_the_disk_as_well(tmp_path, monkeypatch):
    store, going, inside = large(tmp_path), threading.Event(), threading.Event()
    save = KeptFiles.save

    def slow(*args):
        inside.set()
        going.wait(180)
        return save(*args)

    monkeypatch.setattr(KeptFiles, "save", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.commit, [NAME])
        inside.wait(180)
        second = pool.submit(store.commit, [NAME])
        assert not second.done()
        going.set()
        first.result(180), second.result(180)
    assert store.get(NAME).file is not None


def test_what_a_session_holds_counts_until_it_lets_go(tmp_path):
    store = large(tmp_path)
    held = store.get(NAME)
    store.pin(NAME, held)
    store.commit([NAME])
    assert (store.used, store.disk) == (LARGE.nbytes, 2 * LARGE.nbytes)
    store.unpin(NAME, held)
    assert (store.used, store.disk) == (0, LARGE.nbytes)
    held = store.get(NAME)
    store.pin(NAME, held)
    store.drop(NAME)
    assert (store.used, store.disk) == (0, LARGE.nbytes)
    store.unpin(NAME, held)
    assert (store.used, store.disk) == (0, 0)


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
