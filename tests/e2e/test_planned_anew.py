"""Nodes go for good, and come back: deployed models are planned anew and swapped, over real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fleets import Fleet, until

pytestmark = pytest.mark.e2e

MODEL = Path(__file__).parent.parent / "graphs" / "axes" / "exports" / "bert.onnx"
SECONDS = 300.0
FLAGS = ("--lease", "3", "--plan-anew", "2")
AGAIN = ("--lease", "3", "--plan-anew", "15")
"""Of an aggregator that has been killed: on a busy machine one node may be back some seconds before another,
which is not gone for that."""


def feeds(seed):
    ids = np.random.default_rng(seed).integers(1, 40, (1, 24))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def holders(model):
    """Of each part the nodes that can do it now."""
    return [list(part.live) for part in model.parts]


def notes(model):
    return " ".join(note for note in model.notes if note.startswith("planned anew "))


def test_the_shares_are_planned_anew_without_a_node_that_is_gone_and_with_one_that_has_come(tmp_path):
    session = ort.InferenceSession(str(MODEL))

    def exact(client, seed):
        answer = client.model("bert").infer(feeds(seed), deadline=120.0)
        assert answer.exact
        for name, whole in zip(
            [one.name for one in session.get_outputs()], session.run(None, feeds(seed)), strict=True
        ):
            np.testing.assert_allclose(answer[name], whole, atol=1e-5 * np.abs(whole).max())

    with Fleet(tmp_path, *FLAGS, state=True) as fleet:
        fleet.nodes("a", "b", "c")
        with fleet.client() as client:
            model = client.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": 24})
            assert holders(model.info) == [["a"], ["b"], ["c"]]
            exact(client, 0)
            answered = client.model("bert").info.requests
            fleet.kill("c")
            two = [["a"], ["b"]]
            until(lambda: holders(client.model("bert").info) == two, "a plan without c", SECONDS)
            info = client.model("bert").info
            # The same version, by another plan; nobody had to ask for it.
            assert (info.version, info.requests) == (1, answered)
            assert "as node c is gone" in notes(info)
            exact(client, 1)
            # What serves now is what a killed aggregator comes back with, and nothing of the plan before.
            fleet.kill("aggregator")
            fleet.start_aggregator(*AGAIN)
            until(lambda: holders(client.model("bert").info) == two, "it is back", SECONDS)
            state = tmp_path / "state" / "deployments"
            until(lambda: len([one for one in state.iterdir() if one.is_dir()]) == 1, "one is left", SECONDS)
            exact(client, 2)
            # Whether three of one machine are quicker than two the planner says; that it was asked is told.
            fleet.start_node("c")
            until(lambda: "node c has come" in notes(client.model("bert").info), "c is noticed", SECONDS)
            exact(client, 3)
            client.model("bert").undeploy()
