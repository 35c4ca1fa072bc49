"""What an aggregator's next life finds of deployments, and tells nodes that it did not know of then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from house import House

from aggregator.bounds.budget import Budgets
from aggregator.inference.deployments import Deployments
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.runner import ModelRunner
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.store.deployments import DeploymentFolders


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
