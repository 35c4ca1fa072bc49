"""Deployments: a model is planned, cut and delivered, serves, is replaced by its next version, and goes.

What serves is written down before it does: after a restart it is back by itself, and nodes are sent only what
they lack. What does not serve yet is undone by whoever asked for it going away, or by a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

from aggregator.bounds.bounds import DEPLOYING, DEPLOYMENT_BYTES, DEPLOYMENTS
from aggregator.engine.endings import to_the_end
from aggregator.engine.recipe import Engine
from aggregator.fleet.membership import Member
from aggregator.inference.batching.batch_queue import PRIORITIES, PRIORITY
from aggregator.inference.calls import job_scope
from aggregator.inference.deploy_check import require_deployable
from aggregator.inference.deploy_news import DeployNews
from aggregator.inference.deployed import Deployed, PlannedParts, Shapes
from aggregator.inference.feeds import require_given, require_inputs, require_looked_up, shape_key
from aggregator.inference.life import Life
from aggregator.inference.making import DeploymentMaking, made_folder, new_id
from aggregator.inference.measures_file import SAVE_SECONDS, MeasuresFile
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.plan_nodes import PlanNodes, Telling
from aggregator.inference.queues import DeploymentQueues
from aggregator.inference.recalled import recalled
from aggregator.inference.registry import DeploymentRegistry
from aggregator.inference.replanner import Replanner
from aggregator.inference.runner import ModelRunner
from aggregator.inference.shape_readiness import DELIVERY_SECONDS, ShapeReadiness
from aggregator.inference.whole.whole_runner import WholeRunner
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, InvalidArgument
from edge_attention.core.messages.inference import (
    DeployedModel,
    DeploymentState,
    DeployProgress,
    DeployRequest,
)
from edge_attention.core.tensors import Array

__all__ = ["Deployments"]

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
"""Between two looks at who is there."""
RETRY_SECONDS = (0.5, 15.0)
"""Between two tries of having nodes ready after a restart, first and at most."""
UNDEPLOY_SECONDS = 30.0
"""So long an undeploy waits for requests under way; then it goes on without whoever asked for it."""
LARGE_IDS = 4 * 1024 * 1024
"""Bytes of numbers that look up rows from which they are looked at beside the loop: 2 GiB may come."""


class Deployments:
    """All of them, those that are made or end included."""

    def __init__(
        self,
        engine: Engine,
        runner: ModelRunner,
        wholes: WholeRunner,
        metrics: InferenceMetrics,
        forgotten: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._state = engine.state
        self._membership = engine.membership
        self._budgets = engine.budgets
        self._runner = runner
        self._wholes = wholes
        self._metrics = metrics
        self._registry = DeploymentRegistry(engine, runner, wholes, forgotten, self._served)
        self.leaving = self._registry.leaving
        self.checks: list[Callable[[Deployed], Awaitable[None]]] = []
        """Asked of a deployment before its model is planned; what one raises ends it."""
        self._making: set[str] = set()
        self._recalled: list[Deployed] = []
        self._ended: tuple[str, ...] = ()
        """Ids of deployments of earlier lives."""
        self._nodes = PlanNodes(engine, self._registry.taken)
        self._maker = DeploymentMaking(engine, self._nodes)
        self._readiness = ShapeReadiness(engine, self._registry.folders, runner, wholes, self._nodes, metrics)
        self.leaving.append(self._readiness.end)
        self._replanner = Replanner(
            engine, self._registry, self._nodes, self._maker, self._readiness, metrics
        )
        self._queues = DeploymentQueues(self._readiness, metrics, self._registry.go)
        runner.pick = wholes.pick = self._nodes.quickest
        self._measures_file = MeasuresFile(engine.state.directory)

    # Calls of clients

    async def deploy(
        self, request: DeployRequest, owner: str, caller: str
    ) -> AsyncGenerator[DeployProgress | DeployedModel]:
        """How far it is, and at last the deployment, which serves.

        Whoever closes the iterator before has undone it.

        Raises:
            EdgeAttentionError: it cannot be deployed, and why; nothing is left of it.
        """
        require_deployable(request)
        if request.name in self._making:
            raise FailedPrecondition(
                f"a version of model {request.name!r} is just being deployed; wait for it, or end that call"
            )
        self._making.add(request.name)
        told = DeployNews()
        work = asyncio.create_task(self._deploy(request, owner, caller, told.say), name="deploy")
        try:
            async for progress in told.until(work):
                yield progress
            yield self._registry.described(await work)
        finally:
            if not work.done():
                work.cancel()
            await asyncio.wait([work])
            self._making.discard(request.name)
            if not work.cancelled():
                work.exception()  # it was raised above, or nobody is there to hear it

    async def _deploy(self, request: DeployRequest, owner: str, caller: str, say: Telling) -> Deployed:
        with contextlib.ExitStack() as stack:
            leases = [stack.enter_context(self._budgets.take(DEPLOYMENTS, owner or None))]
            version = (await asyncio.to_thread(self._state.take_numbers, _numbers(request.name), 1, 1)).start
            id = new_id(request.name, version)
            folder, size = await made_folder(self._registry.folders, id, request)
            deployed: Deployed | None = None
            try:
                leases.append(stack.enter_context(self._budgets.take(DEPLOYMENT_BYTES, owner or None, size)))
                kept = replace(request, plan_file=b"")
                deployed = Deployed(
                    id, version, kept, owner, time.time(), folder, size, Life(request.name), tuple(leases),
                    by_file=bool(request.plan_file),
                )  # fmt: skip
                self._registry.all[id] = deployed
                with self._budgets.take(DEPLOYING, caller):
                    for check in self.checks:
                        await check(deployed)
                    await self._maker.plan(deployed, request, say)
                await self._deliver(deployed, say)
                await to_the_end(self._registry.go_live(deployed), counts=True)
                stack.pop_all()
            except BaseException as error:
                await to_the_end(
                    self._registry.undo(id, folder, deployed, str(error) or type(error).__name__)
                )
                raise
        return deployed

    async def _deliver(self, deployed: Deployed, say: Telling) -> None:
        assert deployed.planned is not None

        def told(node: str, done: int, total: int) -> None:
            say(DeployProgress("delivering", node, done, total))

        telling = asyncio.create_task(self._tell_away(deployed, say), name="tell who is away")
        try:
            await self._readiness.prepare(deployed, deployed.planned.key, told, DELIVERY_SECONDS, seek=True)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        self._registry.require_held(deployed)

    async def _tell_away(self, deployed: Deployed, say: Telling) -> None:
        """Say of each part for which nobody is here what it waits for, for as long as it does."""
        while True:
            for text in self._registry.away(deployed):
                say(DeployProgress("waiting", text=text))
            await asyncio.sleep(WATCH_SECONDS)

    async def undeploy(self, name: str) -> DeployedModel:
        """End the deployment of that name. Requests under way end first.

        Raises:
            NotFound: there is none.
        """
        deployed = self._registry.require(name)
        del self._registry.serving[name]
        self._registry.leave(deployed, "undeployed")
        until = time.monotonic() + UNDEPLOY_SECONDS
        while deployed.life.state is not DeploymentState.GONE and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    await deployed.changed.wait()
        return self._registry.described(deployed)

    def _served(self, deployed: Deployed) -> None:
        """It serves from now on."""
        self._queues.give(deployed, self._run)
        self._registry.go(self._readiness.begin(deployed))

    def serving(self, name: str) -> Deployed | None:
        """The version of that name that takes requests, if there is one."""
        return self._registry.serving.get(name)

    def require(self, name: str) -> Deployed:
        """The version of that name that takes requests. Raises NotFound: there is none."""
        return self._registry.require(name)

    # Requests

    async def infer(
        self,
        deployed: Deployed,
        feeds: Mapping[str, Array],
        seconds: float,
        caller: str,
        *,
        partial: bool = False,
        priority: int = 0,
    ) -> ModelAnswer:
        """The model's answer. The caller has begun a request (`deployed.life.begin`), and ends it.

        Args:
            caller: at whose cost the model is cut where it is not ready for such inputs.
            priority: 1 goes first, PRIORITIES last; 0: PRIORITY.

        Raises:
            InvalidArgument: there is no such priority.
            InvalidTensor: the inputs do not go together, look up what is not there, or choose what was not
                cut.
            Overloaded: too many requests of it wait.
            DeadlineExceeded: says what was waited for, or that it cannot be answered in time.
            EdgeAttentionError: what keeps it from answering.
        """
        assert deployed.planned is not None
        assert deployed.batcher is not None
        if not 0 <= priority <= PRIORITIES:
            raise InvalidArgument(f"priority is {priority}; 1 goes first, {PRIORITIES} last, 0 is {PRIORITY}")
        require_inputs(deployed.planned.inputs, feeds)
        require_given(deployed.planned.given, feeds)
        until = time.monotonic() + seconds
        looked_up = deployed.planned.looked_up
        if sum(feeds[name].nbytes for name in looked_up) < LARGE_IDS:
            require_looked_up(looked_up, feeds)
        else:
            await asyncio.to_thread(require_looked_up, looked_up, feeds)
        key, shapes = _shape_of(deployed.planned, feeds)
        if key not in deployed.shapes:  # to be waited for here: in the queue it would hold up all others
            await self._readiness.ready(deployed, key, shapes, until, caller)
            seconds = max(until - time.monotonic(), 0.0)
        return await deployed.batcher.infer(
            feeds, seconds, caller, partial=partial, priority=priority, joins=deployed.joins
        )

    async def _run(
        self, deployed: Deployed, feeds: Mapping[str, Array], seconds: float, partial: bool, caller: str
    ) -> ModelAnswer:
        """The answer to a batch, or to one request."""
        assert deployed.planned is not None
        whole, until = deployed.planned.whole, time.monotonic() + seconds
        key, shapes = _shape_of(deployed.planned, feeds)
        # One that was prepared when the request came may have gone for others meanwhile.
        while not deployed.shapes.use(key, caller):
            await self._readiness.ready(deployed, key, shapes, until, caller)
        try:
            left = max(until - time.monotonic(), 0.0)
            if whole:
                return await self._wholes.infer(deployed.id, feeds, left)
            answer = await self._runner.infer(deployed.id, key, feeds, left, partial=partial)
            folder = deployed.folder.shape(key)
            took = answer.seconds["all"] - answer.seconds["turn"] if not answer.moves else 0.0
            measures = self._nodes.measures
            await measures.answered(folder, answer.segments, self._nodes.threads(), took=took)
            return answer
        finally:
            deployed.shapes.done(key)

    def ended(self, deployed: Deployed, answered: bool) -> None:
        """A request of it has ended."""
        if deployed.successor is not None:
            deployed.successor.life.count(answered)
        if deployed.life.end(answered):
            self._registry.go(self._registry.remove(deployed))

    # What they are

    def deployed(self) -> tuple[Deployed, ...]:
        """Those that serve."""
        return tuple(self._registry.serving.values())

    def waiting(self, name: str, version: str) -> int:
        """Requests of a version that serves which wait for their turn."""
        deployed = self._registry.serving.get(name)
        if deployed is None or deployed.batcher is None or str(deployed.version) != version:
            return 0
        return deployed.batcher.queue.queued

    async def require_decoder(self, deployed: Deployed) -> None:
        """Raises DataLoss: the disk has changed what its sessions are made of; says what to do."""
        await self._readiness.require_decoder(deployed)

    def weight_bytes(self, node: str) -> int:
        """Of weights that a node holds, of all deployments."""
        return self._registry.taken()[node]

    def list(self) -> tuple[DeployedModel, ...]:
        """All, by name and version."""
        found = sorted(self._registry.all.values(), key=lambda one: (one.name, one.version))
        return tuple(map(self._registry.described, found))

    def described(self, deployed: Deployed) -> DeployedModel:
        """As clients see it."""
        return self._registry.described(deployed)

    async def watch(self, name: str) -> AsyncIterator[DeployedModel]:
        """The version that serves, or the one that comes, whenever it changes, until it is gone."""
        found = [one for one in self._registry.all.values() if one.name == name]
        deployed = self._registry.serving.get(name) or max(found, key=lambda one: one.version, default=None)
        if deployed is None:
            deployed = self._registry.require(name)
        while True:
            changed = deployed.changed
            yield self._registry.described(deployed)
            if deployed.successor is not None:  # another plan of the same version
                deployed = deployed.successor
                continue
            if deployed.life.state is DeploymentState.GONE:
                return
            await changed.wait()

    def unneeded(self, member: Member) -> tuple[str, ...]:
        """What a node may keep of deployments that are none any more; those of earlier lives it is told of
        each time, as nobody knows whether it was there."""
        return (*self._runner.unneeded(member), *map(job_scope, self._ended))

    # Over restarts

    def recall(self) -> None:
        """Read what an earlier life left. Blocks; call it once, before anything else is asked."""
        self._measures_file.read(self._nodes.measures)
        found = recalled(self._registry.folders)
        for deployed in found:
            owner = deployed.owner or None
            deployed.leases = (
                self._budgets[DEPLOYMENTS].keep(owner),
                self._budgets[DEPLOYMENT_BYTES].keep(owner, deployed.size),
            )
            deployed.life.recalled(time.monotonic(), "the aggregator was restarted")
            self._registry.all[deployed.id] = self._registry.serving[deployed.name] = deployed
            self._queues.give(deployed, self._run)
        self._ended = self._registry.folders.ended()
        self._recalled = found
        nodes = {n for one in found if one.planned for n in one.planned.node_bytes}
        self._membership.expect(nodes, time.monotonic())

    def resume(self) -> None:
        """Have the nodes ready for what was recalled, and look after all from now on."""
        self._registry.go(self._watch())
        recalled, self._recalled = self._recalled, []
        for deployed in recalled:
            self._registry.go(self._back(deployed))

    async def _back(self, deployed: Deployed) -> None:
        """Have the nodes ready for the shape it was planned for, until that is so or it goes."""
        assert deployed.planned is not None
        shapes = deployed.planned.shapes
        key, pause = deployed.planned.key, RETRY_SECONDS[0]
        deployed.texts[key] = deployed.planned.key_text
        while deployed.life.live and key not in deployed.shapes:
            try:
                await self._readiness.ready(deployed, key, shapes, time.monotonic() + DELIVERY_SECONDS)
            except EdgeAttentionError as error:
                log.info("model %s is not ready yet: %s", deployed.name, error)
                if deployed.life.live:
                    deployed.life.detail = error.message
                    deployed.change()
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])

    async def _watch(self) -> None:
        saved = time.monotonic()
        while True:
            if time.monotonic() - saved > SAVE_SECONDS:
                await self._save()
                saved = time.monotonic()
            for deployed in list(self._registry.serving.values()):
                if deployed.name not in self._making:
                    self._replanner.look(deployed)
                if deployed.shapes.last_first and deployed.life.holders(
                    self._registry.lacking(deployed), time.monotonic()
                ):
                    log.info(
                        "model %s is %s: %s", deployed.name, deployed.life.state.value, deployed.life.detail
                    )
                    deployed.change()
            self._metrics.deployed(
                Counter(one.life.state for one in self._registry.all.values()), self._registry.taken()
            )
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        """End what goes on. Deployments stay: the next life has them."""
        await self._registry.close()
        await self._readiness.close()
        await self._wholes.close()
        await self._runner.close()
        await self._save()

    async def _save(self) -> None:
        text = self._measures_file.text(self._nodes.measures)
        if text is not None:
            await asyncio.to_thread(self._measures_file.write, text)


def _shape_of(planned: PlannedParts, feeds: Mapping[str, Array]) -> tuple[str, Shapes]:
    """What a deployment is to be prepared for, for such inputs: its key, and their shapes."""
    shapes = {name: array.shape for name, array in feeds.items()}
    return planned.key if planned.whole else shape_key(shapes), shapes


def _numbers(name: str) -> str:
    return f"deployment/{name}"
