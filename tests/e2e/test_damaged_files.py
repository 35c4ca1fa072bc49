"""Files of the state that are not what was written: the start names them, or they are made anew."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from fleets import Fleet, command, until

from edge_attention.core.errors import DataLoss
from edge_attention.demo.decoder import decoder_model
from tests.compat.state import classifier, inputs


def changed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def a_folder(path):
    path.unlink()
    path.mkdir()


def gone(path):
    path.unlink()


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The state of a fleet that served a model, and what it answered."""
    folder = tmp_path_factory.mktemp("left")
    with Fleet(folder, state=True) as fleet:
        fleet.nodes("a")
        with fleet.client() as client:
            client.deploy(classifier(), "classifier", plan="replicate")
            wanted = client.model("classifier").infer({"x": inputs()})["logits"]
    return folder / "state", wanted


@pytest.fixture
def state(left, tmp_path):
    shutil.copytree(left[0], tmp_path / "state")
    return tmp_path / "state"


def one(state, pattern):
    (found,) = state.glob(pattern)
    return found


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("shapes/*/whole.json", changed),
        ("shapes/*/whole.json", gone),
        ("shapes/*/graphs/*.onnx", cut_short),
        ("shapes/*/graphs/*.onnx", a_folder),
    ],
)
def test_what_is_made_of_a_model_is_made_anew(state, left, tmp_path, pattern, harm):
    path = one(state, f"deployments/*/{pattern}")
    harm(path)
    with Fleet(tmp_path, state=True) as fleet:
        fleet.nodes("a")
        with fleet.client(patience=60) as client:
            found = client.model("classifier").infer({"x": inputs()}, deadline=60)["logits"]
            np.testing.assert_array_equal(found, left[1])
        assert f"{path}" in fleet.said("aggregator")
        assert "cut anew" in fleet.said("aggregator")
        assert "Traceback" not in fleet.said("aggregator")


def test_a_model_whose_file_is_damaged_is_named_and_nothing_is_answered_of_it(state, tmp_path):
    model = one(state, "deployments/*/model/model.onnx")
    changed(model)
    shutil.rmtree(one(state, "deployments/*/shapes/*"))
    with Fleet(tmp_path, state=True) as fleet:
        fleet.nodes("a")
        with fleet.client(patience=60) as client:
            with pytest.raises(DataLoss, match=f"{model} is damaged.*deploy the model 'classifier' again"):
                client.model("classifier").infer({"x": inputs()}, deadline=60)
            until(lambda: "is damaged" in client.models()[0].detail, "the reason among the models")
            client.deploy(classifier(), "classifier", plan="replicate")
            assert client.model("classifier").infer({"x": inputs()}, deadline=60).exact


@pytest.fixture(scope="module")
def left_decoder(tmp_path_factory):
    """The state of a fleet whose decoder has written something."""
    folder = tmp_path_factory.mktemp("left_decoder")
    with Fleet(folder, state=True) as fleet:
        fleet.nodes("a")
        with fleet.client() as client:
            client.deploy(decoder_model(), "decoder", plan="replicate")
            assert written(client)
    return folder / "state"


def written(client):
    pieces = client.model("decoder").generate(list(b"Kant said"), max_tokens=8)
    return [token for piece in pieces for token in piece.tokens]


@pytest.mark.parametrize("pattern", ["model/model.onnx", "decoder/2/weights.json"])
def test_sessions_are_of_the_files_that_came_or_of_none(left_decoder, tmp_path, pattern):
    shutil.copytree(left_decoder, tmp_path / "state")
    path = one(tmp_path / "state", f"deployments/*/{pattern}")
    changed(path)
    with Fleet(tmp_path, state=True) as fleet:
        fleet.nodes("a")
        with fleet.client(patience=60) as client:
            with pytest.raises(DataLoss, match=f"{path} is damaged.*deploy the model 'decoder' again"):
                written(client)
            client.deploy(decoder_model(), "decoder", plan="replicate")
            assert written(client)


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("deployments/*/deployment.json", changed),
        ("deployments/*/deployment.json", a_folder),
        ("id", a_folder),
        ("state.db.sums", a_folder),
        ("state.db.sums", changed),
        ("state.db", a_folder),
        ("state.db", changed),
        ("state.db", cut_short),
        ("lock", a_folder),
    ],
)
def test_a_start_names_what_is_damaged_in_one_line(state, pattern, harm):
    path = one(state, pattern)
    harm(path)
    done = command("aggregator.main", "--listen", "127.0.0.1:0", "--state", state, "--log-level", "error")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-aggregator: ")
    assert str(path) in line
    assert "restore" in line or "deploy the model again" in line


def test_a_changed_number_in_what_is_kept_of_a_deployment_is_found(state):
    path = one(state, "deployments/*/deployment.json")
    spec = json.loads(path.read_text())
    path.write_text(json.dumps({**spec, "version": spec["version"] + 1}))
    done = command("aggregator.main", "--listen", "127.0.0.1:0", "--state", state)
    assert done.returncode == 1
    assert f"{path} cannot be read (it is not what was written)" in done.stderr


def test_the_states_name_is_made_anew_as_its_contexts_have_it(state, tmp_path):
    before = (state / "id").read_text()
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        client.create_context("memory", query_heads=1, key_heads=1, key_dim=4, value_dim=4)
    for harm in (cut_short, gone, lambda path: path.write_bytes(b"\xff" * 8)):
        harm(state / "id")
        with Fleet(tmp_path, state=True) as fleet:
            assert "is not as it was written" in fleet.said("aggregator")
        assert (state / "id").read_text() == before
