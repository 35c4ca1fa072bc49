"""A request's parameters over real gRPC, by stock `tritonclient`: what the model is asked with."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from offered import Doubler, Source
from tritonclient.utils import InferenceServerException

from aggregator.engine.recipe import Recipe
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.service import OpenInferenceApi
from aggregator.server import ServerSettings, running


def test_priority_and_timeout_reach_the_model_and_the_sooner_time_counts(tmp_path):
    model = Doubler()

    def offer(engine):
        return Recipe("inference", OpenInferenceApi(DataPlane([Source(model)], engine.budgets)).endpoints())

    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, 10.0, 60.0)
        async with (
            running(settings, (offer,)) as port,
            triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
        ):
            given = triton.InferInput("x", [2], "INT32")
            given.set_data_from_numpy(np.array([1, 2], np.int32))

            async def ask(id, **more):
                model.event(id).set()
                answer = await client.infer("doubler", [given], request_id=id, **more)
                assert answer.as_numpy("y").tolist() == [2, 4]
                return model.asked[-1]

            request = await ask("1", priority=3, timeout=2_500_000)
            assert (request.priority, request.seconds) == (3, 2.5)
            request = await ask("2", timeout=2_500_000_000, client_timeout=180)
            assert request.priority == 0
            assert 0 < request.seconds < 250, "the call's own deadline is sooner"
            request = await ask("3", timeout=1_500_000, client_timeout=180)
            assert request.seconds == 1.5
            with pytest.raises(InferenceServerException, match="'priority' must be a whole number"):
                await client.infer("doubler", [given], priority=1 << 63)
            output = triton.InferRequestedOutput("y")
            output.set_shared_memory("r", 8)  # where it would be read, though nothing came there
            with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'"):
                await client.infer("doubler", [given], outputs=[output])
            assert (await client.get_trace_settings("doubler")).settings
            with pytest.raises(InferenceServerException, match="unknown model: 'nope'") as raised:
                await client.get_trace_settings("nope")
            assert raised.value.status() == "StatusCode.NOT_FOUND"

    asyncio.run(scenario())
