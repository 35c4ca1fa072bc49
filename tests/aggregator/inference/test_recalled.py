"""What an aggregator's next life finds of deployments, and tells nodes that it did not know of then."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from house import House

from aggregator.bounds.budget import Budgets
from aggregator.inference.deployments import Deployments
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.runner import ModelRunner
from aggregator.inference.shape_readiness import _usable
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.store.deployments import DeploymentFolders
from aggregator.store.sealed import seal
from edge_attention.core.errors import FailedPrecondition


def test_nodes_free_what_a_killed_aggregator_had_begun_to_deploy(tmp_path):
    async def run(house):
        engine = SimpleNamespace(
            state=house.state,
            membership=house.membership,
            budgets=Budgets(),
            trips=house.trips,
            bulk=house.bulk,
            plan_anew=0.0,
        )
        folders = DeploymentFolders(house.state)
        folders.remove(folders.make("gone-1", house.state.put_blob(b"onnx"), {})[0])
        folders.make("killed-2", house.state.put_blob(b"onnx"), {})
        deployments = Deployments(
            engine, ModelRunner(engine), WholeRunner(engine), InferenceMetrics(house.metrics)
        )
        deployments.recall()
        member = house.node("a").member
        # Each time it comes: nobody knows whether it was there.
        for _ in range(2):
            assert deployments.unneeded(member) == ("job/gone-1/", "job/killed-2/")
        await deployments.close()

    with House(tmp_path) as house:
        asyncio.run(run(house))


def test_what_was_cut_and_cannot_be_read_now_stays(tmp_path, monkeypatch):
    """For a while too many files are open, say: that says nothing of what is in it."""
    made = tmp_path / "cut" / "schedule.json"
    made.parent.mkdir()
    made.write_text("{}")
    seal(made.parent)
    assert _usable(made, "m")

    def refused(path, *how, **more):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(FailedPrecondition, match="let this process open more files"):
            _usable(made, "m")
    assert made.read_text() == "{}"
    made.write_text("[]")
    assert not _usable(made, "m")
    assert not made.parent.exists()
