"""Deployed models on the disk: there once they serve, and nothing left of them when they go."""

from __future__ import annotations

import pytest

from aggregator.store.deployments import DeploymentFolders
from aggregator.store.state import State
from edge_attention.core.errors import DataLoss, InvalidArgument, NotFound


@pytest.fixture
def state(tmp_path):
    with State(tmp_path / "state") as opened:
        yield opened


def test_files_lie_as_the_model_names_them(state):
    model, weights = state.put_blob(b"onnx"), state.put_blob(b"weights")
    folder, size = DeploymentFolders(state).make("m-1", model, {"sub/w.bin": weights})
    assert folder.model.read_bytes() == b"onnx"
    assert (folder.model.parent / "sub" / "w.bin").read_bytes() == b"weights"
    assert size == 11


def test_what_never_served_is_not_there_after_a_restart(state):
    folders = DeploymentFolders(state)
    kept, _ = folders.make("m-1", state.put_blob(b"onnx"), {})
    folders.keep(kept, {"name": "m"})
    lost, _ = folders.make("m-2", state.put_blob(b"onnx"), {})
    (found,) = DeploymentFolders(state).recall()
    assert (found.folder, found.spec) == (kept, {"name": "m"})
    assert not lost.path.exists()


def test_nor_are_the_files_that_it_was_to_be_made_of_unless_another_has_them(state):
    folders = DeploymentFolders(state)
    shared, own = state.put_blob(b"shared"), state.put_blob(b"own")
    kept, _ = folders.make("m-1", state.put_blob(b"onnx"), {"w": shared})
    folders.keep(kept, {})
    folders.make("m-2", own, {"w": shared})
    DeploymentFolders(state).recall()
    assert not state.has_blob(own)
    assert state.get_blob(shared) == b"shared"


def test_ids_of_what_went_are_remembered_the_last_ones(state, monkeypatch):
    monkeypatch.setattr("aggregator.store.deployments.ENDED", 2)
    folders = DeploymentFolders(state)
    assert folders.ended() == ()
    for number in range(3):
        folders.remove(folders.make(f"m-{number}", state.put_blob(b"onnx"), {})[0])
    folders.make("killed-1", state.put_blob(b"onnx"), {})
    again = DeploymentFolders(state)
    assert again.recall() == []
    assert again.ended() == ("m-2", "killed-1")
    (state.directory / "deployments" / "ended.json").write_bytes(b"[")
    assert again.ended() == ()


def test_a_damaged_one_is_said(state):
    folders = DeploymentFolders(state)
    folder, _ = folders.make("m-1", state.put_blob(b"onnx"), {})
    folders.keep(folder, {})
    (folder.path / "deployment.json").write_bytes(b"{")
    with pytest.raises(DataLoss, match="deploy the model again"):
        folders.recall()


def test_what_was_kept_is_found_as_it_was_whatever_its_keys_are(state):
    folders = DeploymentFolders(state)
    folder, _ = folders.make("m-1", state.put_blob(b"onnx"), {})
    folders.keep(folder, {"parts": dict.fromkeys(range(12), ("a",)), "gain": 0.1})
    (found,) = folders.recall()
    assert found.spec == {"parts": {str(number): ["a"] for number in range(12)}, "gain": 0.1}


def test_blobs_go_with_it_unless_a_run_needs_them(state):
    import base64

    folders = DeploymentFolders(state)
    ours, shared = state.put_blob(b"ours"), state.put_blob(b"shared")
    job = base64.b64encode(b"\x0a\x40" + shared.encode() + b"more").decode()
    state.put_run("run-1", "run", 0.0, {"job": job}, "finished")
    folder, _ = folders.make("m-1", ours, {"w": shared})
    folders.remove(folder, {ours, shared})
    assert not folder.path.exists()
    assert not state.has_blob(ours)
    assert state.get_blob(shared) == b"shared"
    assert state.put_blob(b"ours") == ours  # it can be sent again


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../b", "", "model.onnx", "x" * 300, "a\0b", "./" * 9 + "x/.."]
)
def test_a_path_that_leads_elsewhere_is_refused(state, name):
    with pytest.raises(InvalidArgument, match="file of weights"):
        DeploymentFolders(state).make("m-1", state.put_blob(b"onnx"), {name: state.put_blob(b"w")})


def test_a_file_that_was_not_sent_leaves_nothing(state):
    folders = DeploymentFolders(state)
    with pytest.raises(NotFound):
        folders.make("m-1", "0" * 64, {})
    assert not (state.directory / "deployments" / "m-1").exists()
