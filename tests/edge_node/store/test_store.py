from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    Overtaken,
)
from edge_node.store import tiles
from edge_node.store.disk import Disk
from edge_node.store.sequence_files import Files
from edge_node.store.store import Origin, Store

MIB = 1 << 20


def tokens_of(store, name, count):
    """[tokens, heads, dim] from the tiles."""
    tiles = store.get(name).array
    heads, dim = tiles.shape[1], tiles.shape[3]
    return tiles.transpose(0, 2, 1, 3).reshape(-1, heads, dim)[:count]


@given(
    tile=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    replay=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_appends_cut_anyhow_give_the_same_tiles(tile, cuts, replay, seed):
    source = np.random.default_rng(seed).standard_normal((40, 2, 3)).astype(np.float32)
    store = Store(MIB)
    whole = Store(MIB)
    whole.append("job/a/x", source, tile=tile)
    bounds = sorted({0, 40, *cuts})
    for start, stop in itertools.pairwise(bounds):
        store.append("job/a/x", source[start:stop], start if seed % 2 else None, tile)
    store.append("job/a/x", source[replay:], replay)
    np.testing.assert_array_equal(store.get("job/a/x").array, whole.get("job/a/x").array)
    np.testing.assert_array_equal(tokens_of(store, "job/a/x", 40), source)
    assert store.sequences() == {"job/a/x": 40}
    assert store.used == -(-40 // tile) * tile * 2 * 3 * 4


STORED = ("job/a/x", "job/a/y", "context/c/k")
CHANGES = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(STORED), st.integers(1, 3), st.booleans(), st.booleans()),
    st.tuples(st.just("append"), st.sampled_from(STORED), st.integers(1, 5), st.booleans(), st.booleans()),
    st.tuples(st.just("drop"), st.sampled_from((*STORED, "job/a/", "context/c/"))),
    st.tuples(st.just("pin"), st.sampled_from(STORED)),
)


@given(changes=st.lists(CHANGES, max_size=25))
def test_the_number_of_layouts_is_another_where_one_may_be_and_what_is_used_is_what_is_there(changes):
    store, pinned = Store(MIB), []
    private = Origin("d", "o", chosen=False)
    for what, name, *how in changes:
        number = store.layouts, [(store.layout(one), store.extent(one)) for one in STORED]
        with contextlib.suppress(InvalidProgram, InvalidTensor, NotFound):
            if what == "put":
                size, wide, secret = how
                array = np.ones((size, 2), np.float64 if wide else np.float32)
                store.put(name, array, private if secret else None)
                assert store.get(name).array is array
            elif what == "append":
                count, tall, secret = how
                rows = np.ones((count, 2 if tall else 1, 2), np.float32)
                store.append(name, rows, tile=2, origin=private if secret else None)
            elif what == "drop":
                store.drop(name)
            else:
                held = store.get(name)
                if not store.is_sequence(name):
                    store.pin(name, held)
                    pinned.append((name, held))
        now = [(store.layout(one), store.extent(one)) for one in STORED]
        assert store.layouts != number[0] or now == number[1]
        kept = {held for _, held in pinned} | set(store._held.values())
        tiles = sum(sequence.counted for sequence in store._sequences.values())
        assert store.used == tiles + sum(held.nbytes for held in kept)
    for name, held in pinned:
        store.unpin(name, held)
    store.drop("job/")
    store.drop("context/")
    assert store.used == 0


def test_what_is_stored_never_moves_and_a_range_of_tiles_is_a_view():
    store = Store(MIB)
    source = np.ones((4, 1, 2), np.float32)
    store.append("job/a/x", source, tile=2)
    before = store.get("job/a/x").array
    for _ in range(500):
        store.append("job/a/x", source)
    after = store.get("job/a/x", range(1, 3)).array
    assert before.ctypes.data == store.get("job/a/x").array.ctypes.data
    assert after.ctypes.data == before.ctypes.data + 16
    assert after.shape == (2, 1, 2, 2)
    assert after.flags.c_contiguous


def test_the_past_is_replaced_but_a_gap_is_refused():
    store = Store(MIB)
    store.append("job/a/x", np.zeros((5, 1, 1), np.float32), tile=2)
    store.append("job/a/x", np.ones((2, 1, 1), np.float32), 1)
    assert tokens_of(store, "job/a/x", 5).ravel().tolist() == [0, 1, 1, 0, 0]
    for at in (6, -1, 2**62):
        with pytest.raises(InvalidProgram, match="gap"):
            store.append("job/a/x", np.ones((1, 1, 1), np.float32), at)


def test_the_limit_names_itself_and_what_was_asked():
    store = Store(1000)
    store.put("job/a/x", np.zeros(200, np.float32))
    with pytest.raises(OutOfMemory, match=r"needs 804 more bytes.*800 of the node's 1,000"):
        store.put("job/a/y", np.zeros(201, np.float32))
    store.put("job/a/x", np.zeros(250, np.float32))  # in place of the first
    assert store.used_in("job") == 1000
    with pytest.raises(OutOfMemory):
        store.append("context/a/x", np.zeros((1, 1, 1), np.float32), tile=1)
    store.drop("job/a/")
    assert store.append("context/a/x", np.zeros((125, 1, 2), np.float32), tile=1) == 125
    with pytest.raises(OutOfMemory):
        store.append("context/a/x", np.zeros((1, 1, 2), np.float32))
    assert store.sequences() == {"context/a/x": 125}
    store.drop("context/a/x")
    assert store.used == 0


def test_reserved_bytes_count():
    store = Store(1000)
    store.reserve(900, "a file")
    with pytest.raises(OutOfMemory, match="900 of"):
        store.put("job/a/x", np.zeros(26, np.float32))
    store.release(900)
    store.put("job/a/x", np.zeros(26, np.float32))


def test_what_does_not_fit_is_refused():
    store = Store(MIB)
    store.append("job/a/x", np.zeros((2, 2, 3), np.float32), tile=2)
    store.put("job/a/y", np.zeros(3))
    for source, tile, error in (
        (np.zeros((1, 2, 4), np.float32), 2, InvalidTensor),
        (np.zeros((1, 2, 3)), 2, InvalidTensor),
        (np.zeros((2, 3), np.float32), 2, InvalidTensor),
        (np.zeros((1, 2, 3), np.float32), 4, InvalidProgram),
    ):
        with pytest.raises(error):
            store.append("job/a/x", source, tile=tile)
    for tile, shape in ((0, (1, 1, 1)), (1 << 20, (1, 1, 1)), (4, (1, 0, 3)), (4, (1, 3, 0))):
        with pytest.raises(InvalidProgram, match="begin no"):
            store.append("job/a/z", np.zeros(shape, np.float32), tile=tile)
    with pytest.raises(InvalidProgram, match="no sequence"):
        store.append("job/a/y", np.zeros((1, 1, 1), np.float32), tile=1)
    with pytest.raises(InvalidProgram, match="is a sequence"):
        store.put("job/a/x", np.zeros(3))
    with pytest.raises(InvalidProgram, match="no tiles"):
        store.get("job/a/y", range(1))
    with pytest.raises(InvalidProgram, match="1 tiles in use"):
        store.get("job/a/x", range(0, 2))
    with pytest.raises(NotFound, match="job/a/nothing"):
        store.get("job/a/nothing")
    with pytest.raises(InvalidArgument):
        store.put("job/a/s", np.array(["text"]))


def test_private_once_is_private_for_good():
    store = Store(MIB)
    x = np.zeros((1, 1, 1), np.float32)
    store.append("job/a/x", x, tile=2, origin=Origin("d", "o"))
    store.append("job/a/x", x)
    assert store.get("job/a/x").origin == Origin("d", "o")


def test_what_everybody_may_see_does_not_become_private():
    """A graph may be reading it, and what that computes would be everybody's."""
    store = Store(MIB)
    x = np.zeros((1, 1, 1), np.float32)
    store.append("job/a/x", x, tile=2)
    reading = store.get("job/a/x")
    with pytest.raises(InvalidProgram, match="takes no private tokens"):
        store.append("job/a/x", x + 7, at=0, origin=Origin("d", "o"))
    assert reading.array.max() == 0
    assert store.get("job/a/x").origin is None


def test_what_a_graph_may_size_is_counted_apart():
    store = Store(1000, apart=400)
    store.put("job/a/p", np.zeros(400, np.uint8), Origin("d", "o"))
    assert (store.used, store.used_in("job"), store.used_apart) == (0, 0, 400)
    with pytest.raises(OutOfMemory):
        store.put("job/a/q", np.zeros(1, np.uint8), Origin("d", "o"))
    # Others have all the room they had, and are told nothing of it.
    store.put("job/a/x", np.zeros(1000, np.uint8))
    with pytest.raises(OutOfMemory, match="1,000 of the node's 1,000 are used"):
        store.put("job/a/y", np.zeros(1, np.uint8))
    store.put("job/a/x", np.zeros(10, np.uint8))
    store.put("job/a/x", np.zeros(20, np.uint8), Origin("", "a column", chosen=False))
    assert store.used == 20
    store.put("job/a/p", np.zeros(30, np.uint8))
    assert (store.used, store.used_apart) == (50, 0)
    store.put("job/a/p", np.zeros(40, np.uint8), Origin("d", "o"))
    assert (store.used, store.used_apart) == (20, 40)
    store.reserve(300, "x", apart=True)
    assert (store.used, store.used_apart) == (20, 340)
    store.release(300, apart=True)
    store.drop("job/")
    assert (store.used, store.used_apart) == (0, 0)


def test_a_view_outlives_the_drop_of_its_sequence():
    store = Store(MIB)
    store.append("job/a/x", np.full((3, 1, 1), 7, np.float32), tile=1)
    view = store.get("job/a/x").array
    store.drop("job/")
    assert view.ravel().tolist() == [7, 7, 7]


def test_no_address_space_is_an_answer(monkeypatch):
    def none(*args, **kwargs):
        raise OSError("Cannot allocate memory")

    store = Store(MIB)
    monkeypatch.setattr(mmap, "mmap", none)
    with pytest.raises(OutOfMemory, match="address space"):
        store.append("job/a/x", np.zeros((1, 1, 1), np.float32), tile=1)


# On disk


def flags_of(array):
    """What the kernel has noted down of the memory an array is in (VmFlags of proc(5), smaps)."""
    address, inside = array.ctypes.data, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        bounds = line.split(" ")[0].split("-")
        if len(bounds) == 2 and all(set(bound) <= set("0123456789abcdef") for bound in bounds):
            inside = int(bounds[0], 16) <= address < int(bounds[1], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the array is in no memory")


@pytest.mark.skipif(
    not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages"
)
def test_long_sequences_have_large_pages_and_short_ones_do_not():
    store, tile = Store(64 * MIB), np.ones((512, 4, 64), np.float32)  # half a MiB
    for count, name in ((15, "context/short"), (17, "context/long")):
        for _ in range(count):
            store.append(name, tile, None, 512)
        assert ("hg" in flags_of(store.get(name).array)) is (name == "context/long")
        assert (store.get(name).array == 1).all()


def reopened(store, folder, limit=MIB):
    """The store of the next process; this one was killed after its last task."""
    store.commit(store.sequences())
    store._files._lock.close()
    return Store(limit, Files(folder))


def test_contexts_come_back_with_their_privacy(tmp_path):
    source = np.random.default_rng(0).standard_normal((9, 2, 3)).astype(np.float32)
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", source, tile=4)
    store.append("context/a/y", source, tile=4, origin=Origin("d" * 64, "out"))
    store.append("context/a/y", source)
    store.append("context/b/x", source, tile=4)
    store.append("job/a/x", source, tile=4)
    store.drop("context/b/")
    store = reopened(store, tmp_path)
    assert store.sequences() == {"context/a/x": 9, "context/a/y": 18}
    np.testing.assert_array_equal(tokens_of(store, "context/a/x", 9), source)
    assert store.get("context/a/x").origin is None
    assert store.get("context/a/y").origin == Origin("d" * 64, "out")
    assert store.used == (3 + 5) * 4 * 2 * 3 * 4
    store.append("context/a/x", source)
    np.testing.assert_array_equal(tokens_of(store, "context/a/x", 18), np.concatenate([source, source]))


def test_a_grown_limit_grows_the_file(tmp_path):
    store = Store(1000, Files(tmp_path))
    store.append("context/a/x", np.ones((100, 1, 2), np.float32), tile=1)
    store = reopened(store, tmp_path, MIB)
    assert store.append("context/a/x", np.ones((1000, 1, 2), np.float32)) == 1100
    np.testing.assert_array_equal(tokens_of(store, "context/a/x", 1100), 1)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:150])


def flipped(path):
    with path.open("r+b") as file:
        file.seek(150)
        byte = file.read(1)[0] ^ 1
        file.seek(150)
        file.write(bytes([byte]))


@pytest.mark.parametrize(
    ("damage", "left"), [(cut_short, 4), (flipped, 4), (type(pathlib.Path()).unlink, 0), (None, 9)]
)
def test_of_what_was_damaged_the_tiles_before_are_left(tmp_path, caplog, damage, left):
    source = np.random.default_rng(0).standard_normal((9, 2, 3)).astype(np.float32)  # 3 tiles of 96 bytes
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/good", source, tile=8)
    good = set(tmp_path.glob("*.tiles"))
    store.append("context/a/bad", source, tile=4)
    (bad,) = set(tmp_path.glob("*.tiles")) - good
    store.commit(store.sequences())
    if damage:
        damage(bad)
    store = reopened(store, tmp_path)
    wanted = {"context/a/good": 9} | ({"context/a/bad": left} if left else {})  # none: it begins anew
    assert store.sequences() == wanted
    assert ("context/a/bad" in caplog.text) == (left < 9)
    assert store.append("context/a/bad", source[left:], tile=4) == 9
    np.testing.assert_array_equal(tokens_of(store, "context/a/bad", 9), source)


def test_a_journal_is_read_as_far_as_it_is_whole(tmp_path, caplog):
    token = np.ones((1, 1, 1), np.float32)
    store = Store(MIB, Files(tmp_path))
    for name in "abc":
        store.append(f"context/{name}/x", token, tile=1)
        store.commit(store.sequences())
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(b"".join(lines[:-1]) + lines[-1][:-9] + b"]}]}]}\n")
    store = reopened(store, tmp_path)
    assert store.sequences() == {"context/a/x": 1, "context/b/x": 1}
    assert "never finished" in caplog.text
    assert len(list(tmp_path.glob("*.tiles"))) == 2


def changed_at(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x21
    path.write_bytes(data)


@pytest.mark.parametrize("ended_in_order", [False, True])
def test_a_damaged_record_costs_what_it_alone_said(tmp_path, caplog, ended_in_order):
    """Whichever byte the disk changes: the other sequences stay whole, and none has a wrong token."""
    random = np.random.default_rng(0)
    wanted = {name: random.standard_normal((9, 1, 2)).astype(np.float32) for name in "abc"}
    made = tmp_path / "made"
    store = Store(MIB, Files(made))
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        for name, tokens in wanted.items():
            store.append(f"context/{name}/x", tokens[part], tile=4)
            store.commit(store.sequences())
    if ended_in_order:
        store.close()
    store._files._lock.close()
    length = (made / "journal").stat().st_size
    ends = [at for at, byte in enumerate((made / "journal").read_bytes()) if byte == 10]
    for place in [*range(0, length, 23), *ends]:
        there = tmp_path / "there"
        shutil.copytree(made, there)
        changed_at(there / "journal", place)
        caplog.clear()
        store = Store(MIB, Files(there))
        found = store.sequences()
        whole = [name for name in "abc" if found.get(f"context/{name}/x") == 9]
        assert len(whole) >= (1 if place in ends else 2), (place, found)
        for name, count in found.items():
            np.testing.assert_array_equal(tokens_of(store, name, count), wanted[name[8]][:count])
        assert str(there / "journal") in caplog.text
        again = reopened(store, there)
        assert again.sequences() == found
        again._files._lock.close()
        shutil.rmtree(there)


def test_a_sequence_whose_drop_is_damaged_does_not_come_back_over_its_successor(tmp_path):
    store = Store(MIB, Files(tmp_path))
    for value in (1.0, 2.0):
        store.append("context/a/x", np.full((1, 1, 1), value, np.float32), tile=1)
        store.commit(store.sequences())
        if value == 1.0:
            (old,) = tmp_path.glob("*.tiles")
            kept = old.read_bytes()
            store.drop("context/a/x")
            store.commit([])
    data = (tmp_path / "journal").read_bytes()
    changed_at(tmp_path / "journal", data.index(b'"drop"'))
    old.write_bytes(kept)  # the power went before its file did
    store = reopened(store, tmp_path)
    assert tokens_of(store, "context/a/x", 1).item() == 2.0
    assert not old.exists()


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_what_cannot_be_opened_at_the_start_is_not_removed(tmp_path, monkeypatch, number, in_order):
    """Of another user, say, or with too few descriptors: the tokens are there, and stay there."""
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", np.ones((9, 1, 1), np.float32), tile=4)
    store.commit(store.sequences())
    if in_order:
        store.close()
    store._files._lock.close()
    journal = (tmp_path / "journal").read_bytes()
    opened = pathlib.Path.open

    def refused(path, *arguments, **options):
        if path.suffix == ".tiles":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refused)
        files = Files(tmp_path)
        with pytest.raises(
            FailedPrecondition, match=rf"cannot be used as --store: .*{tmp_path}/\w+\.tiles.*; let"
        ):
            Store(MIB, files)
    files._lock.close()
    assert in_order or (tmp_path / "journal").read_bytes() == journal
    assert Store(MIB, Files(tmp_path)).sequences() == {"context/a/x": 9}


def test_a_part_of_a_file_that_the_disk_cannot_read_costs_no_tile_before_it(tmp_path, monkeypatch):
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", np.ones((9, 1, 1), np.float32), tile=4)
    store.commit(store.sequences())
    store._files._lock.close()
    read = os.pread

    def failing(descriptor, size, at):
        if at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size, at)

    monkeypatch.setattr(os, "pread", failing)
    assert Store(MIB, Files(tmp_path)).sequences() == {"context/a/x": 4}


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_acknowledged_of_a_folder_that_is_gone_and_all_goes_on_once_it_is_back(tmp_path, replaced):
    there, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    token = np.ones((1, 1, 1), np.float32)
    store = Store(MIB, Files(there))
    store.append("context/a/x", token, tile=4)
    store.commit(store.sequences())
    there.rename(elsewhere)
    if replaced:
        there.mkdir()
        (there / "journal").write_bytes(b"")
    store.append("context/a/x", token, tile=4)
    with pytest.raises(
        OutOfMemory, match=r"journal cannot be written: .*put it back, or start the node again"
    ):
        store.commit(store.sequences())
    if replaced:
        assert (there / "journal").read_bytes() == b""
        shutil.rmtree(there)
    elsewhere.rename(there)
    store = reopened(store, there)
    assert store.sequences() == {"context/a/x": 2}


@pytest.mark.parametrize("path", ["journal", "lock", "kept"])
def test_a_store_that_cannot_be_used_says_which_file_and_what_to_do(tmp_path, path):
    there = tmp_path / "store"
    store = Store(MIB, Files(there))
    store.append("context/a/x", np.ones((1, 1, 1), np.float32), tile=4)
    store.close()
    store._files._lock.close()
    found = there / path
    if found.is_dir():
        found.rmdir()
        found.write_text("")
    else:
        found.unlink()
        found.mkdir()
    with pytest.raises(FailedPrecondition, match=rf"{there} cannot be used as --store: .*{found}.*; \S"):
        Store(MIB, Files(there))


def test_a_process_that_ended_in_order_is_believed_once(tmp_path, monkeypatch):
    verified = []
    good = Files._good
    monkeypatch.setattr(Files, "_good", lambda self, manifest: verified.append(1) or good(self, manifest))
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", np.ones((9, 2, 3), np.float32), tile=4)
    store.close()
    store._files._lock.close()
    store = Store(MIB, Files(tmp_path))
    assert (store.sequences(), verified) == ({"context/a/x": 9}, [])
    assert not (tmp_path / "clean").exists()
    assert reopened(store, tmp_path).sequences() == {"context/a/x": 9}
    assert verified == [1]


def test_a_file_that_is_too_short_is_found_also_after_an_end_in_order(tmp_path):
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", np.ones((9, 2, 3), np.float32), tile=4)  # 3 tiles of 96 bytes
    store.close()
    store._files._lock.close()
    (path,) = tmp_path.glob("*.tiles")
    cut_short(path)
    assert Store(MIB, Files(tmp_path)).sequences() == {"context/a/x": 4}


def test_a_log_that_grows_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_node.store.journal.COMPACT", 2000)
    store = Store(MIB, Files(tmp_path))
    for number in range(200):
        store.append("context/a/x", np.full((1, 1, 1), number, np.float32), tile=4)
        store.commit(["context/a/x"])
    assert (tmp_path / "journal").stat().st_size < 10_000
    store = reopened(store, tmp_path)
    assert tokens_of(store, "context/a/x", 200).ravel().tolist() == list(range(200))


def test_a_folder_of_the_release_before_is_taken_over_as_far_as_it_is_no_zeros(tmp_path):
    tiles = np.random.default_rng(0).standard_normal((3, 2, 4, 3)).astype(np.float32)
    tiles[2, 1, 1] = 0  # a head of token 9
    for name, tokens in (("context/a/x", 11), ("context/b/x", 7)):
        stem = hashlib.sha256(name.encode()).hexdigest()[:32]
        tiles.tofile(tmp_path / f"{stem}.tiles")
        manifest = {"name": name, "tokens": tokens, "layout": [2, 4, 3], "origin": ["d", "o"]}
        (tmp_path / f"{stem}.json").write_text(json.dumps(manifest))
    (tmp_path / "other.json").write_text("nonsense")
    store = Store(MIB, Files(tmp_path))
    for _ in range(2):
        assert store.sequences() == {"context/a/x": 9, "context/b/x": 7}
        assert store.get("context/a/x").origin == Origin("d", "o")
        np.testing.assert_array_equal(
            tokens_of(store, "context/a/x", 9), tiles.transpose(0, 2, 1, 3).reshape(-1, 2, 3)[:9]
        )
        store = reopened(store, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_newer_folder_is_refused(tmp_path):
    Store(MIB, Files(tmp_path))._files._lock.close()
    text = b'{"format":2}'
    (tmp_path / "journal").write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    with pytest.raises(FailedPrecondition, match="newer release"):
        Store(MIB, Files(tmp_path))


def test_data_without_a_manifest_is_swept(tmp_path):
    (tmp_path / "left.tiles").write_bytes(b"x")
    Store(MIB, Files(tmp_path))
    assert not (tmp_path / "left.tiles").exists()


def test_one_process_a_folder(tmp_path):
    first = Files(tmp_path)
    with pytest.raises(FailedPrecondition, match="in use by another"):
        Files(tmp_path)
    first._lock.close()
    Files(tmp_path)


def test_a_full_disk_is_an_answer(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    store = Store(MIB, Files(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="No space left"):
        store.append("context/a/x", np.ones((1, 1, 1), np.float32), tile=1)
    assert store.used == 0


def test_sequences_on_disk_keep_no_descriptor_and_a_process_out_of_them_says_so(tmp_path):
    """In a process of its own, which may open 64 files and no more."""
    code = f"""
import resource, os, numpy as np
from pathlib import Path
from edge_attention.core.errors import OutOfMemory
from edge_node.store.sequence_files import Files
from edge_node.store.store import Store
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = Store(1 << 24, Files(Path({str(tmp_path)!r})))
token = np.ones((1, 1, 2), np.float32)
for number in range(300):
    store.append(f"context/a/{{number}}/keys", token * number, tile=2)
assert [float(store.get(f"context/a/{{n}}/keys").array[0, 0, 0, 0]) for n in range(300)] == list(range(300))
maps = lambda: Path("/proc/self/maps").read_text().count(".tiles")
assert maps() == 300
store.drop("context/a/")
assert maps() == 0
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    store.append("context/b/keys", token, tile=2)
except OutOfMemory as error:
    print(error.message)
assert store.sequences() == {{}}
for descriptor in held:
    os.close(descriptor)
assert store.append("context/b/keys", token, tile=2) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Too many open files" in done.stdout


def test_a_disk_too_full_for_the_journal_fails_the_commit_and_loses_nothing(tmp_path):
    class Full(Disk):
        full = False

        def write(self, path, data, at=0):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(path, data, at)

    disk = Full()
    store = Store(MIB, Files(tmp_path, disk))
    disk.full = True
    store.append("context/a/x", np.ones((3, 1, 1), np.float32), tile=2)
    with pytest.raises(OutOfMemory, match="No space left"):
        store.commit(["context/a/x"])
    disk.full = False
    store.append("context/b/x", np.ones((1, 1, 1), np.float32), tile=2)
    store.commit(["context/b/x"])
    assert reopened(store, tmp_path).sequences() == {"context/a/x": 3, "context/b/x": 1}


def test_a_disk_that_cannot_write_is_said_for_good_and_the_others_go_on(tmp_path):
    class Broken(Disk):
        broken = None

        def sync(self, path):
            if self.broken and path.suffix == ".tiles" and path not in self.good:
                raise OSError(errno.EIO, "Input/output error")
            super().sync(path)

    disk = Broken()
    store = Store(MIB, Files(tmp_path, disk))
    store.append("context/a/x", np.ones((3, 1, 1), np.float32), tile=2)
    store.commit(["context/a/x"])
    disk.broken, disk.good = True, set(tmp_path.glob("*.tiles"))
    store.append("context/b/x", np.ones((3, 1, 1), np.float32), tile=2)
    store.append("context/a/x", np.ones((3, 1, 1), np.float32), tile=2)
    with pytest.raises(DataLoss, match="start the node again"):
        store.commit(["context/b/x", "context/a/x"])
    disk.broken = False  # a second sync would say that all is well
    with pytest.raises(DataLoss):
        store.commit(["context/b/x"])
    store.commit(["context/a/x"])
    store._files._lock.close()
    assert Store(MIB, Files(tmp_path)).sequences() == {"context/a/x": 6}


# Changes that were overtaken


@pytest.mark.parametrize("disk", [False, True])
def test_a_change_that_was_overtaken_is_refused(tmp_path, disk):
    store = Store(MIB, Files(tmp_path) if disk else None)
    token = np.ones((1, 1, 1), np.float32)
    store.append("context/a/keys", token, 0, tile=2, revision=5)
    store.append("context/a/keys", 2 * token, 1, revision=7)
    for revision in (6, 0):
        with pytest.raises(Overtaken, match=f"number {revision}, and number 7 of context/a"):
            store.append("context/a/keys", token, 1, revision=revision)
        with pytest.raises(Overtaken):  # another sequence of the context, too
            store.append("context/a/values", token, 0, tile=2, revision=revision)
        with pytest.raises(Overtaken):
            store.drop("context/a/", revision)
    store.append("context/a/keys", 2 * token, 1, revision=7)  # the same again
    store.append("context/b/keys", token, 0, tile=2, revision=1)
    assert tokens_of(store, "context/a/keys", 2).ravel().tolist() == [1, 2]
    if disk:
        store = reopened(store, tmp_path)
        with pytest.raises(Overtaken):
            store.append("context/a/keys", token, 1, revision=6)
    store.drop("context/a/", 9)
    assert store.sequences() == {"context/b/keys": 1}
    if disk:
        store = reopened(store, tmp_path)
    with pytest.raises(Overtaken):  # what was dropped does not come back
        store.append("context/a/keys", token, 0, tile=2, revision=8)
    store.append("context/a/keys", token, 0, tile=2, revision=10)


def test_what_undoes_an_attempt_is_not_held_up_by_a_later_one():
    store = Store(MIB)
    token = np.ones((1, 1, 1), np.float32)
    store.append("context/a/s1/keys", token, 0, tile=2, revision=1)
    store.append("context/a/s2/keys", token, 0, tile=2, revision=3)
    store.drop("context/a/s1/", 2)
    assert store.sequences() == {"context/a/s2/keys": 1}
    with pytest.raises(Overtaken):
        store.append("context/a/s1/keys", token, 0, tile=2, revision=1)


def test_an_append_is_not_made_to_what_was_dropped_while_it_wrote(tmp_path, monkeypatch):
    store = Store(MIB, Files(tmp_path))
    token = np.ones((1, 1, 1), np.float32)
    store.append("context/a/keys", token, 0, tile=2, revision=1)
    write = tiles.write

    def dropped(*args):
        store.drop("context/a/", 3)
        write(*args)

    monkeypatch.setattr(tiles, "write", dropped)
    with pytest.raises(NotFound, match="dropped meanwhile"):
        store.append("context/a/keys", token, 1, revision=2)
    assert (store.sequences(), store.used) == ({}, 0)


def test_what_is_out_is_said_by_name(tmp_path):
    """Where no file can be opened any more no disk is full or broken, and a later commit does it."""
    code = f"""
import os, resource
import numpy as np
from edge_attention.core.errors import OutOfMemory
from edge_node.store.sequence_files import Files
from edge_node.store.store import Store
store = Store(1 << 20, Files(__import__("pathlib").Path({str(tmp_path / "s")!r})))
store.append("context/a/keys", np.ones((1, 1, 4), np.float32), tile=4)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, limits[1]))
for act in (
    lambda: store.append("context/b/keys", np.ones((1, 1, 4), np.float32), tile=4),
    lambda: store.append("context/a/keys", np.ones((9, 1, 4), np.float32), tile=4),
    lambda: store.commit(["context/a/keys"]),
):
    try:
        act()
    except OutOfMemory as error:
        print(error.message)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
store.commit(["context/a/keys"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines)) == (0, 3), done
    assert all("Too many open files; let this process open more files (ulimit -n" in line for line in lines)
