"""Requests of a shape that a deployment is not prepared for yet hold up no others."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
from house import House

from aggregator.bounds.budget import Budgets
from aggregator.inference.batching.batch_queue import BatchQueue
from aggregator.inference.batching.batcher import Batcher
from aggregator.inference.deployments import Deployments
from aggregator.inference.feeds import shape_key
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.prepared_shapes import PreparedShapes
from aggregator.inference.runner import ModelRunner
from aggregator.inference.shape_readiness import ShapeReadiness
from aggregator.inference.whole.whole_runner import WholeRunner
from edge_attention.core.errors import Cancelled, ResourceExhausted
from edge_attention.core.messages.inference import ModelTensor


def test_who_waits_for_a_new_shape_has_no_slot_of_the_queue(tmp_path):
    async def run(house):
        engine = SimpleNamespace(
            state=house.state,
            membership=house.membership,
            budgets=Budgets(),
            trips=house.trips,
            bulk=house.bulk,
            plan_anew=0.0,
        )
        deployments = Deployments(
            engine, ModelRunner(engine), WholeRunner(engine), InferenceMetrics(house.metrics)
        )
        prepared, waiting = asyncio.Event(), []

        async def ready(deployed, key, shapes, until, caller=None):
            waiting.append(caller)
            await prepared.wait()
            deployed.shapes.add(key)

        deployments._readiness.ready = ready

        async def answer(feeds, seconds, partial, caller):
            results = {"y": feeds["x"]}
            return ModelAnswer(results, True, 1.0, "", {"all": 0.0}, {}, {}, segments=())

        deployed = SimpleNamespace(
            planned=SimpleNamespace(
                inputs=(ModelTensor("x", "float32", ("rows",)),), whole=False, looked_up={}, given={}
            ),
            shapes=PreparedShapes(4),
            batcher=Batcher(BatchQueue("m", 1), answer),
            joins=False,
        )
        deployed.shapes.add(shape_key({"x": (1,)}))

        def ask(rows, caller):
            return deployments.infer(deployed, {"x": np.ones(rows, np.float32)}, 60.0, caller)

        new = [asyncio.create_task(ask(rows, f"new{rows}")) for rows in (2, 3)]
        await asyncio.sleep(0)
        assert waiting == ["new2", "new3"]
        assert deployed.batcher.queue.under_way == 0
        async with asyncio.timeout(180):
            assert (await ask(1, "other")).results["y"].shape == (1,)
        prepared.set()
        assert [one.results["y"].shape for one in await asyncio.gather(*new)] == [(2,), (3,)]
        await deployed.batcher.close(Cancelled("over"))
        await deployments.close()

    with House(tmp_path) as house:
        asyncio.run(run(house))


def test_new_shapes_of_one_caller_leave_some_to_others():
    async def run():
        readiness = object.__new__(ShapeReadiness)
        over = asyncio.Event()

        async def come(deployed, key, shapes, caller):
            await over.wait()

        readiness._come = come
        deployed = SimpleNamespace(name="m", coming={}, life=SimpleNamespace(detail=""))

        def ask(rows, caller):
            shapes = {"x": (rows,)}
            until = time.monotonic() + 180
            return asyncio.create_task(readiness.ready(deployed, shape_key(shapes), shapes, until, caller))

        asked = [ask(rows, "ana") for rows in range(1, 7)]
        await asyncio.wait(asked[4:])
        for refused in asked[4:]:
            with pytest.raises(ResourceExhausted, match="4 of them for you"):
                await refused
        others = [ask(7, "ben"), ask(1, "ben")]
        await asyncio.sleep(0)
        assert len(deployed.coming) == 5
        over.set()
        await asyncio.gather(*asked[:4], *others)

    asyncio.run(run())
