"""Backups: consistent while the folder is used, whole or refused."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading

import numpy as np
import pytest

from aggregator.store.backup import MANIFEST, backup, restore
from aggregator.store.deployments import DeploymentFolders
from aggregator.store.parameters import ParameterStore
from aggregator.store.state import State
from aggregator.trust.authority import Authority
from aggregator.trust.registry import Registry
from edge_attention.core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound

ARRAY = np.arange(1000, dtype=np.float32)


def filled(folder):
    """A state with a context, a run of three versions, a deployment, a registry."""
    state = State(folder)
    state.put_context("c1", "memory", 1.0, {"query_heads": 2})
    state.put_segment("c1", "s1", {"tokens": [0, 5]})
    state.put_run("r-1", "r", 1.0, {"job": ""}, "finished")
    store = ParameterStore(state)
    for version in range(3):
        store.commit("r-1", version, version, {"w": ARRAY + version}, {"m": ARRAY}, {"number": version})
    folders = DeploymentFolders(state)
    made, _ = folders.make("d-1", state.put_blob(b"a model"), {"weights.bin": state.put_blob(b"weights")})
    folders.keep(made, {"name": "m"})
    trust = folder / "trust"
    trust.mkdir(exist_ok=True)
    Authority.open(trust)
    registry = Registry(trust, daemon=True)
    registry.create_token("join", "node", "pin", 1.0, name="a", uses=1, expires=None)
    return state, store, registry


def same(folder):
    with State(folder) as state:
        assert [row.name for row in state.list_contexts()] == ["memory"]
        assert [row.id for row in state.list_segments("c1")] == ["s1"]
        store = ParameterStore(state)
        assert store.latest("r-1") == 2
        for version in range(3):
            np.testing.assert_array_equal(store.load("r-1", version).parameters["w"], ARRAY + version)
        np.testing.assert_array_equal(store.load("r-1", 2).optimizer_state["m"], ARRAY)
        (kept,) = DeploymentFolders(state).recall()
        assert kept.spec == {"name": "m"}
        assert kept.folder.model.read_bytes() == b"a model"
        assert (kept.folder.model.parent / "weights.bin").read_bytes() == b"weights"
        registry = Registry(folder / "trust", daemon=True)
        assert [token.name for token in registry.tokens()] == ["a"]
        registry.close()
        return state.id


@pytest.mark.parametrize("live", [True, False])
def test_a_backup_is_what_was_there(tmp_path, live):
    state, _, registry = filled(tmp_path / "state")
    id = state.id
    if not live:
        state.close()
        registry.close()
    counts = backup(tmp_path / "state", tmp_path / "backup")
    assert (counts.contexts, counts.runs, counts.versions, counts.deployments) == (1, 1, 3, 1)
    assert not list((tmp_path / "state").glob(".backup-*"))
    if live:  # it goes on undisturbed
        state.put_context("c2", "later", 2.0, {})
        state.close()
        registry.close()
        with State(tmp_path / "state") as again:
            assert len(again.list_contexts()) == 2
    assert restore(tmp_path / "backup", tmp_path / "new") == counts
    assert same(tmp_path / "new") == id
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "backup").rglob("*")} == {0}


def test_a_backup_of_what_a_killed_aggregator_left(tmp_path):
    state, _, _ = filled(tmp_path / "state")
    state.put_context("c2", "in-the-log", 2.0, {})
    shutil.copytree(tmp_path / "state", tmp_path / "killed")  # with its log
    backup(tmp_path / "killed", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")
    with State(tmp_path / "new") as new:
        assert [row.name for row in new.list_contexts()] == ["memory", "in-the-log"]
    with State(tmp_path / "killed") as killed:
        assert len(killed.list_contexts()) == 2
    state.close()


def test_a_backup_under_load_has_what_was_acknowledged_before_it(tmp_path):
    state, store, _ = filled(tmp_path / "state")
    acknowledged, stop = [2], threading.Event()

    def commit():
        while not stop.is_set():
            number = acknowledged[0] + 1
            with state.transaction():
                state.put_context(f"x{number}", f"x{number}", float(number), {})
            store.commit("r-1", number, number, {"w": ARRAY + number}, {"m": ARRAY}, {"number": number})
            store._remove(state.forget_versions("r-1", number - 1))
            acknowledged[0] = number

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        for turn in range(5):
            before = acknowledged[0]
            backup(tmp_path / "state", tmp_path / f"backup{turn}")
            after = acknowledged[0]
            restore(tmp_path / f"backup{turn}", tmp_path / f"new{turn}")
            with State(tmp_path / f"new{turn}") as new:
                kept = ParameterStore(new)
                latest = kept.latest("r-1")
                assert before <= latest <= after + 1
                loaded = kept.load("r-1", latest)
                np.testing.assert_array_equal(loaded.parameters["w"], ARRAY + latest)
                np.testing.assert_array_equal(loaded.optimizer_state["m"], ARRAY)
                names = {row.name for row in new.list_contexts()}
                assert {f"x{n}" for n in range(3, latest + 1)} <= names
                assert new.get_run("r-1").round == latest
    finally:
        stop.set()
        thread.join()
    state.close()
    assert acknowledged[0] > 10, "nothing went on meanwhile"


def test_half_a_backup_is_refused(tmp_path):
    state, _, _ = filled(tmp_path / "state")
    backup(tmp_path / "state", tmp_path / "backup")
    state.close()
    files = sorted(p for p in (tmp_path / "backup").rglob("*") if p.is_file())
    manifest = tmp_path / "backup" / MANIFEST

    def refused(change, error, match):
        shutil.copytree(tmp_path / "backup", tmp_path / "bad")
        change()
        with pytest.raises(error, match=match):
            restore(tmp_path / "bad", tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / "new.partial").exists()
        shutil.rmtree(tmp_path / "bad")

    for path in files:
        bad = tmp_path / "bad" / path.relative_to(tmp_path / "backup")
        refused(bad.unlink, NotFound if path == manifest else DataLoss, "not finished|is missing|no state.db")
        if path == manifest or not path.stat().st_size:
            continue

        def flip(bad=bad):
            data = bytearray(bad.read_bytes())
            data[len(data) // 2] ^= 1
            bad.write_bytes(data)

        refused(flip, DataLoss, "has other bytes")
        refused(lambda bad=bad: os.truncate(bad, bad.stat().st_size - 1), DataLoss, "has other bytes")
    said = json.loads(manifest.read_text())

    def rewrite(**changed):
        (tmp_path / "bad" / MANIFEST).write_text(json.dumps({**said, **changed}))

    refused(lambda: rewrite(files={"../x": ["0" * 64, 0]}), DataLoss, "names a file")
    refused(lambda: rewrite(files={}), DataLoss, "has no state.db")
    refused(lambda: rewrite(format=2), FailedPrecondition, "newer release")
    refused(lambda: rewrite(files=3), DataLoss, "cannot be read")
    less = {name: value for name, value in said["files"].items() if "00000002.parameters" not in name}
    refused(lambda: rewrite(files=less), DataLoss, "it lacks runs/r-1/00000002.parameters")


def test_nothing_is_written_over(tmp_path):
    state, _, _ = filled(tmp_path / "state")
    with pytest.raises(InvalidArgument, match="lies in the state folder"):
        backup(tmp_path / "state", tmp_path / "state" / "backup")
    backup(tmp_path / "state", tmp_path / "backup")
    with pytest.raises(InvalidArgument, match="there is something at"):
        backup(tmp_path / "state", tmp_path / "backup")
    with pytest.raises(InvalidArgument, match="give a new folder for a state folder"):
        restore(tmp_path / "backup", tmp_path / "state")
    with pytest.raises(FailedPrecondition, match="is no aggregator's state folder"):
        backup(tmp_path / "backup", tmp_path / "again")
    state.close()


def test_what_killed_ones_left_goes_and_what_is_under_way_or_anybodys_stays(tmp_path):
    state, _, _ = filled(tmp_path / "state")
    folders = {
        name: tmp_path / name
        for name in ("state/.backup-abcdefgh.partial", ".to-abcdefgh.partial", ".to-ijklmnop.partial",
                     ".to-qrstuvwx.partial", "to.partial", ".to-mine")
    }  # fmt: skip
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "x").write_text("x")
        if "qrst" not in name:  # that one has only just been made
            os.utime(folder, (0, 0))
    held = os.open(folders[".to-ijklmnop.partial"], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    backup(tmp_path / "state", tmp_path / "to")
    os.close(held)
    state.close()
    gone = {name for name, folder in folders.items() if not folder.exists()}
    assert gone == {"state/.backup-abcdefgh.partial", ".to-abcdefgh.partial"}


def test_folders_that_are_there_as_mounts_are_filled(tmp_path):
    state, _, registry = filled(tmp_path / "state")
    to, new = tmp_path / "to", tmp_path / "new"
    to.mkdir()
    new.mkdir()
    before = to.stat().st_ino, new.stat().st_ino
    backup(tmp_path / "state", to)
    state.close()
    registry.close()
    whole = (to / "state" / "id").read_bytes()
    (to / "state" / "id").write_bytes(b"other")
    with pytest.raises(DataLoss, match="has other bytes"):
        restore(to, new)
    assert list(new.iterdir()) == []
    (to / "state" / "id").write_bytes(whole)
    restore(to, new)
    same(new)
    assert (to.stat().st_ino, new.stat().st_ino) == before
    assert sorted(path.name for path in to.iterdir()) == [MANIFEST, "state"]
    assert not list(new.glob(".*"))


def test_a_folder_may_be_called_anything(tmp_path):
    state, _, registry = filled(tmp_path / "a?b#c%20")
    backup(tmp_path / "a?b#c%20", tmp_path / "[to]*")
    state.close()
    registry.close()
    restore(tmp_path / "[to]*", tmp_path / "new?")
    same(tmp_path / "new?")
