from __future__ import annotations

import itertools
import json
import mmap
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    OutOfMemory,
)
from edge_attention.sequence_files import Files
from edge_node.store import Origin, Store

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
    store.append("job/a/x", x, tile=2)
    assert store.get("job/a/x").origin is None
    store.append("job/a/x", x, origin=Origin("d", "o"))
    store.append("job/a/x", x)
    assert store.get("job/a/x").origin == Origin("d", "o")


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


def reopened(store, folder, limit=MIB):
    store._files._lock.close()
    return Store(limit, Files(folder))


def test_contexts_come_back_with_their_privacy(tmp_path):
    source = np.random.default_rng(0).standard_normal((9, 2, 3)).astype(np.float32)
    store = Store(MIB, Files(tmp_path))
    store.append("context/a/x", source, tile=4)
    store.append("context/a/y", source, tile=4)
    store.append("context/a/y", source, origin=Origin("d" * 64, "out"))
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


@pytest.mark.parametrize(
    "change",
    [
        "nonsense",
        {"name": "job/a/x"},
        {"name": "context/other"},
        {"tokens": -1},
        {"tokens": 2**30},
        {"tokens": "9"},
        {"layout": [2, 4]},
        {"layout": [0, 4, 3]},
        {"layout": [2**31, 4, 3]},
        {"origin": 3},
    ],
)
def test_a_damaged_manifest_is_skipped_with_a_warning(tmp_path, caplog, change):
    store = Store(MIB, Files(tmp_path))
    x = np.ones((9, 2, 3), np.float32)
    store.append("context/a/good", x, tile=4)
    good = set(tmp_path.glob("*.json"))
    store.append("context/a/bad", x, tile=4)
    (bad,) = set(tmp_path.glob("*.json")) - good
    bad.write_text(
        change if isinstance(change, str) else json.dumps({**json.loads(bad.read_text()), **change})
    )
    store = reopened(store, tmp_path)
    assert store.sequences() == {"context/a/good": 9}
    assert str(bad) in caplog.text
    assert store.append("context/a/bad", x[:2], tile=4) == 2  # begins anew
    np.testing.assert_array_equal(store.get("context/a/bad").array[0, :, 2:], 0)


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
from edge_attention.sequence_files import Files
from edge_node.store import Store
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Too many open files" in done.stdout
