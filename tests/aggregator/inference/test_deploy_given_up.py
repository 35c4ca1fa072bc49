"""A deploy whose caller goes in the very moment in which it has come to serve."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from house import House

from aggregator.bounds.budget import Budgets
from aggregator.inference.deployments import Deployments
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.runner import ModelRunner
from aggregator.inference.whole.whole_runner import WholeRunner
from edge_attention.core.messages.inference import DeployRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))

from open_models import add_sub


def test_it_serves_and_was_not_undone(tmp_path):
    """It had taken the place of the version before, and the name was left with none."""

    async def run(house):
        engine = SimpleNamespace(
            state=house.state, membership=house.membership, budgets=Budgets(), trips=house.trips,
            bulk=house.bulk, plan_anew=0.0,
        )  # fmt: skip
        house.node("a")
        deployments = Deployments(
            engine, ModelRunner(engine), WholeRunner(engine), InferenceMetrics(house.metrics)
        )
        registry, digest = deployments._registry, house.state.put_blob(add_sub())
        go_live = registry.go_live

        async def deploy():
            asked = DeployRequest("m", digest, {}, "replicate", dimensions={"batch": 1})
            async for _ in deployments.deploy(asked, "", ""):
                pass

        async def gone_then(deployed):
            await go_live(deployed)
            deploying.cancel()
            for _ in range(5):
                await asyncio.sleep(0)

        for version in (1, 2):
            registry.go_live = gone_then if version == 2 else go_live
            deploying = asyncio.create_task(deploy())
            await asyncio.wait([deploying])
            assert deploying.cancelled() == (version == 2)
            serves = deployments.serving("m")
            assert (serves.version, serves.life.live) == (version, True)
            feeds = {
                name: np.full((1, 16), number, np.int32) for number, name in ((3, "INPUT0"), (4, "INPUT1"))
            }
            serves.life.begin()
            answer = await deployments.infer(serves, feeds, 60.0, "")
            deployments.ended(serves, True)
            assert answer.results["OUTPUT0"].tolist() == [[7] * 16]
        await deployments.close()

    with House(tmp_path) as house:
        asyncio.run(run(house))
