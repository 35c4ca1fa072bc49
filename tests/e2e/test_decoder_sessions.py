"""Sessions of deployed decoders over real nodes: the tokens of the file, also where a node is killed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from decoder_runs import WholeDecoder
from test_cut_models import Fleet as CutFleet

from aggregator.engine.recipe import Recipe
from aggregator.inference.decoding.sessions import DecoderSessions
from aggregator.inference.deployments import Deployments
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.runner import ModelRunner
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.server import ServerSettings, running
from edge_attention.core.errors import FailedPrecondition, NotFound
from edge_attention.core.messages.inference import DeployedModel, DeployRequest

pytestmark = pytest.mark.e2e

EXPORTS = Path(__file__).parent.parent / "graphs/axes/exports"


class DecoderFleet(CutFleet):
    """Real nodes, and deployments and sessions of an aggregator in this process."""

    def __init__(self, engine, port, folder, deployments, sessions):
        super().__init__(engine, port, folder)
        self.deployments, self.sessions = deployments, sessions

    async def deploy(self, path, name, plan):
        digest = await asyncio.to_thread(lambda: self.engine.state.put_blob(path.read_bytes()))
        request = DeployRequest(name, digest, {}, plan, b"", (), 1, {}, False)
        async with aclosing(self.deployments.deploy(request, "me", "me")) as events:
            return [event async for event in events if isinstance(event, DeployedModel)][-1]

    async def generates_as_the_file(self, model, path, seed, prompt, steps, between=None):
        """Greedy, one token after the other; `between` is awaited before token 3."""
        session = await self.sessions.open(model, "me", 120.0)
        whole, rng = WholeDecoder(path), np.random.default_rng(seed)
        vocabulary = self.sessions.form(model).vocabulary
        ids = rng.integers(vocabulary, size=prompt)
        for step in range(steps):
            if step == 3 and between is not None:
                await between()
            found = await self.sessions.extend(session, ids, 60.0)
            wanted = np.array([whole.step(int(token)) for token in ids])
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
            ids = np.array([found[-1].argmax()])
            assert ids[0] == wanted[-1].argmax()
        return session


def run_sessions(scenario, tmp_path, lease=3.0):
    async def whole():
        made = []

        def recipe(engine):
            metrics = InferenceMetrics(engine.metrics)
            deployments = Deployments(engine, ModelRunner(engine), WholeRunner(engine), metrics)
            sessions = DecoderSessions(engine, deployments)
            made.extend((engine, deployments, sessions))

            async def close():
                await sessions.shut()
                await deployments.close()

            return Recipe("inference", recall=deployments.recall, resume=deployments.resume, close=close)

        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, lease, 60.0)
        async with running(settings, (recipe,)) as port:
            engine, deployments, sessions = made
            fleet = DecoderFleet(engine, port, tmp_path, deployments, sessions)
            try:
                return await scenario(fleet)
            finally:
                for name in list(fleet.processes):
                    await fleet.kill(name)

    return asyncio.run(whole())


def test_sessions_of_a_file_that_rounds_say_so_by_every_plan(tmp_path):
    async def scenario(fleet):
        await fleet.start("a", "b")
        for plan in ("heads", "tokens", "layers", "replicate"):
            await fleet.deploy(EXPORTS / "llama_genai_int4.onnx", plan, plan)
            session = await fleet.sessions.open(plan, "me", 120.0)
            lacking = fleet.sessions.lacking(session)
            assert "round activations to int8" in lacking

    run_sessions(scenario, tmp_path)


def test_sessions_by_every_plan_and_with_a_node_killed_in_the_middle(tmp_path):
    path = EXPORTS / "llama_cached.onnx"

    async def scenario(fleet):
        await fleet.start("a", "b", "c")
        for plan in ("heads", "layers", "tokens", "replicate"):
            model = await fleet.deploy(path, plan, plan)
            assert any("sessions" in note for note in model.notes), model.notes
            work = (fleet.generates_as_the_file(plan, path, seed, 3 + 90 * seed, 5) for seed in range(2))
            sessions = await asyncio.gather(*work)
            for session in sessions:
                await fleet.sessions.close(session)
        # The others go on; what the killed node stored is stored anew.
        work = [
            fleet.generates_as_the_file(
                plan, path, 7, 20, 8, (lambda: fleet.kill("b")) if plan == "heads" else None
            )
            for plan in ("heads", "tokens")
        ]
        left, right = await asyncio.gather(*work)
        assert "b" not in left.serving.machine.require(left.number).place
        await fleet.deployments.undeploy("heads")
        with pytest.raises(NotFound, match="undeployed"):
            await fleet.sessions.extend(left, [1], 10.0)
        await fleet.sessions.extend(right, [1], 120.0)
        await fleet.deploy(EXPORTS / "bert.onnx", "bert", "replicate")
        with pytest.raises(FailedPrecondition, match="no inputs of keys and values"):
            await fleet.sessions.open("bert", "me", 10.0)

    run_sessions(scenario, tmp_path)
