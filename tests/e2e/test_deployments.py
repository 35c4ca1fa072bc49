"""Deployed models over real processes: exact, replaced and taken back, also over a killed aggregator."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fleets import Fleet, command, until

from edge_attention import InvalidArgument, InvalidTensor, NotFound

MODEL = Path(__file__).parent.parent / "graphs" / "axes" / "exports" / "bert.onnx"


def feeds(tokens, seed=0, rows=1):
    ids = np.random.default_rng(seed).integers(1, 40, (rows, tokens))
    mask = np.ones_like(ids)
    mask[:, tokens - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Whole:
    """The model as ONNX Runtime runs all of it."""

    def __init__(self, path):
        self._session = ort.InferenceSession(str(path))
        self.outputs = [one.name for one in self._session.get_outputs()]

    def same(self, answer, given):
        assert answer.exact
        assert answer.coverage == 1.0
        for name, value in zip(self.outputs, self._session.run(None, given), strict=True):
            np.testing.assert_allclose(answer[name], value, atol=1e-5 * max(np.abs(value).max(), 1e-9))


@pytest.fixture(scope="module")
def whole():
    return Whole(MODEL)


def edge_attention(fleet, *arguments):
    done = command("edge_attention.cli.main", "--aggregator", fleet.address, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(fleet):
    folder = fleet.folder / "state" / "deployments"
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


def test_deployed_asked_replaced_killed_and_taken_back(tmp_path, whole):
    with Fleet(tmp_path, "--lease", "5", state=True) as fleet:
        fleet.nodes("a", "b", "c")
        flags = ("--name", "bert", "--plan", "tokens", "--dimensions", "sequence=24", "--json")
        said = [json.loads(line) for line in edge_attention(fleet, "deploy", MODEL, *flags).splitlines()]
        assert {"uploading", "planning", "delivering"} <= {one.get("stage") for one in said}
        model = said[-1]
        assert (model["state"], model["version"], model["coverage"]) == ("serving", 1, 1.0)
        assert [part["share"] for part in model["parts"]] == [
            "tokens 0-7 of 24",
            "tokens 8-15 of 24",
            "tokens 16-23 of 24",
        ]
        with fleet.client() as client:
            model = client.model("bert")
            whole.same(model.infer(feeds(24)), feeds(24))
            # Other sizes than it was made ready for.
            whole.same(model.infer(feeds(13, rows=2)), feeds(13, rows=2))
            assert len(client.model("bert").info.shapes) == 2
            refused(model)

            fleet.restart_aggregator("--lease", "5")
            # It is back with its deployment, whose weights the nodes have.
            whole.same(client.model("bert").infer(feeds(24, 1), deadline=60), feeds(24, 1))
            until(lambda: client.model("bert").info.state.value == "serving", "it serves")

            replaced(client, whole)
            shown = edge_attention(fleet, "models", "bert")
            assert "by heads over a, b, c" in shown
            np.savez(tmp_path / "inputs.npz", **feeds(24))
            asked = ("infer", "bert", "--input", tmp_path / "inputs.npz", "--output", tmp_path / "out.npz")
            assert "exact: bert, version 2" in edge_attention(fleet, *asked)
            with np.load(tmp_path / "out.npz") as found:
                assert set(found.files) == set(whole.outputs)

            assert "undeployed bert" in edge_attention(fleet, "undeploy", "bert")
            assert client.models() == []
            with pytest.raises(NotFound, match="no model 'bert'"):
                client.model("bert")
            until(lambda: not any(node.memory for node in client.nodes()), "nodes have forgotten it")
            assert left(fleet) == []
            assert not list((tmp_path / "state" / "blobs").iterdir())


def refused(model):
    """What is asked wrongly is refused with what is wrong."""
    with pytest.raises(InvalidTensor, match="no such input; its inputs: input_ids"):
        model.infer({"ids": np.zeros((1, 24), np.int64)})
    with pytest.raises(InvalidTensor, match=r"'attention_mask' .* is missing"):
        model.infer({"input_ids": np.zeros((1, 24), np.int64)})
    with pytest.raises(InvalidTensor, match="'sequence' is 24 in input 'input_ids' and 23"):
        model.infer({"input_ids": np.zeros((1, 24), int), "attention_mask": np.ones((1, 23), int)})
    with pytest.raises(
        InvalidTensor,
        match=r"cannot be computed of these inputs: 'input_ids' is 9999 at \[0, 0\], out of bounds",
    ):
        model.infer({**feeds(24), "input_ids": np.full((1, 24), 9999)})
    with pytest.raises(InvalidArgument, match="no output 'nothing'"):
        model.infer(feeds(24), outputs=["nothing"])


def replaced(client, whole):
    """A new version goes live between two requests: each is answered, by one or the other."""
    answers, over = [], threading.Event()
    model = client.model("bert")

    def ask():
        while not over.is_set():
            given = feeds(24, len(answers))
            answers.append((model.infer(given, deadline=60), given))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        newer = client.deploy(MODEL, "bert", plan="heads", dimensions={"sequence": 24})
        assert newer.info.version == 2
        until(lambda: answers and answers[-1][0].version == 2, "version 2 answers")
    finally:
        over.set()
        asking.join()
    for answer, given in answers:
        whole.same(answer, given)
    versions = [answer.version for answer, _ in answers]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    until(lambda: [one.version for one in client.models()] == [2], "version 1 is gone")


def test_nodes_are_measured_before_an_automatic_plan(tmp_path, whole):
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        fleet.nodes("a", "b", "c")
        said = []
        heard = {"dimensions": {"sequence": 24}, "progress": lambda progress: said.append(progress.text)}
        model = client.deploy(MODEL, "first", plan="auto", **heard)
        assert "measuring 3 nodes" in said
        assert not [text for text in said if "not measured" in text]
        # What one box takes and what several would, or the other way round.
        (note,) = model.info.notes
        assert re.search(r"one box(:| would take) [\d.e-]+ ms", note)
        assert note.count(" ms") == 2
        assert model.info.considered
        whole.same(model.infer(feeds(24)), feeds(24))

        said.clear()
        client.deploy(MODEL, "second", plan="auto", **heard)
        assert not [text for text in said if "measur" in text]  # all of them are known
        fleet.nodes("d")
        fleet.freeze("d")
        model = client.deploy(MODEL, "third", plan="auto", **heard)
        fleet.thaw("d")
        assert "measuring 1 node" in said
        assert "not measured, so for no plan of several nodes: d" in said
        assert model.info.notes[0].endswith("(not measured: 1)")
        assert all("d" not in part.holders for part in model.info.parts)


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path):
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        with pytest.raises(Exception, match="no node is here"):
            client.deploy(MODEL, "bert")
        fleet.nodes("a", flags=("--memory-limit", "65536"))
        with pytest.raises(Exception, match=r"node 'a': .* --memory-limit|a would hold"):
            client.deploy(MODEL.with_name("bert_torchscript17.onnx"), "large", plan="replicate")
        with pytest.raises(InvalidArgument, match="no open dimension 'length'; it has batch, sequence"):
            client.deploy(MODEL, "bert", plan="replicate", dimensions={"length": 3})
        with pytest.raises(InvalidArgument, match="none of auto, tokens"):
            client.deploy(MODEL, "bert", plan="token")
        with pytest.raises(InvalidArgument, match=r"not an ONNX|no ONNX|cannot be read"):
            client.deploy(b"no model", "bert", plan="replicate")
        assert client.models() == []
        assert left(fleet) == []
        assert not list((tmp_path / "state" / "blobs").iterdir())


def test_ctrl_c_undoes_a_deployment(tmp_path):
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        fleet.nodes("a")
        code = "from edge_attention.cli.main import main; main()"
        arguments = ["--aggregator", fleet.address, "deploy", str(MODEL), "--name", "bert", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            for line in process.stdout:
                if json.loads(line)["stage"] == "planning":
                    break
            assert [one.name for one in client.models()] == ["bert"]
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        assert process.returncode == 130
        assert "nothing of this version of bert stays" in said
        until(lambda: client.models() == [], "it is undone")
        until(lambda: left(fleet) == [], "its folder is gone")
