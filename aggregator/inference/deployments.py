"""Deployments: a model is planned, cut and delivered, serves, is replaced by its next version, and goes.

What serves is written down before it does: after a restart it is back by itself, and nodes are sent only what
they lack. What does not serve yet is undone by whoever asked for it going away, or by a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
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
from aggregator.inference.deployed import Deployed
from aggregator.inference.feeds import require_inputs, shape_key
from aggregator.inference.life import Life
from aggregator.inference.making import DeploymentMaking, made_folder
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.placement import Holders
from aggregator.inference.plan_nodes import PlanNodes, Telling
from aggregator.inference.queues import DeploymentQueues
from aggregator.inference.recalled import recalled
from aggregator.inference.runner import ModelRunner
from aggregator.inference.shape_readiness import DELIVERY_SECONDS, ShapeReadiness
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.store.deployments import DeploymentFolder, DeploymentFolders
from edge_attention.core.errors import (
    Cancelled,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
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


class Deployments:
    """All of them, those that are made or end included."""

    def __init__(
        self, engine: Engine, runner: ModelRunner, wholes: WholeRunner, metrics: InferenceMetrics
    ) -> None:
        self._state = engine.state
        self._membership = engine.membership
        self._budgets = engine.budgets
        self._folders = DeploymentFolders(engine.state)
        self._runner = runner
        self._wholes = wholes
        self._metrics = metrics
        self._all: dict[str, Deployed] = {}
        self._serving: dict[str, Deployed] = {}
        """By name, the version that takes requests."""
        self._making: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._recalled: list[Deployed] = []
        self._ended: tuple[str, ...] = ()
        """Ids of deployments of earlier lives."""
        self.leaving: list[Callable[[Deployed], Awaitable[None]]] = []
        """Told of a deployment that goes, before nodes forget it."""
        self._nodes = PlanNodes(engine, self._taken)
        self._maker = DeploymentMaking(engine, self._nodes)
        self._readiness = ShapeReadiness(engine, self._folders, runner, wholes, self._nodes, metrics)
        self._queues = DeploymentQueues(self._readiness, metrics, self._go)

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
            yield self.described(await work)
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
            stem = re.sub(r"[^a-z0-9]+", "-", request.name.lower()).strip("-")[:32] or "model"
            id = f"{stem}-{version}-{secrets.token_hex(3)}"
            folder, size = await made_folder(self._folders, id, request)
            deployed: Deployed | None = None
            try:
                leases.append(stack.enter_context(self._budgets.take(DEPLOYMENT_BYTES, owner or None, size)))
                kept = replace(request, plan_file=b"")
                deployed = Deployed(
                    id, version, kept, owner, time.time(), folder, size, Life(request.name), tuple(leases)
                )
                self._all[id] = deployed
                with self._budgets.take(DEPLOYING, caller):
                    await self._maker.plan(deployed, request, say)
                await self._deliver(deployed, say)
                await to_the_end(self._go_live(deployed))
                stack.pop_all()
            except BaseException as error:
                await to_the_end(self._undo(id, folder, deployed, str(error) or type(error).__name__))
                raise
        return deployed

    def _taken(self) -> Counter[str]:
        """Bytes of weights by node, of all deployments."""
        taken = Counter[str]()
        for deployed in self._all.values():
            if deployed.planned is not None:
                taken.update(deployed.planned.node_bytes)
        return taken

    async def _deliver(self, deployed: Deployed, say: Telling) -> None:
        assert deployed.planned is not None

        def told(node: str, done: int, total: int) -> None:
            say(DeployProgress("delivering", node, done, total))

        await self._readiness.prepare(deployed, deployed.planned.key, told, DELIVERY_SECONDS)
        lacking = self._lacking(deployed)
        if lacking:
            raise FailedPrecondition(f"model {deployed.name!r} cannot serve: {'; '.join(lacking)}")

    async def _go_live(self, deployed: Deployed) -> None:
        """It serves from now on, in place of the version before."""
        await asyncio.to_thread(self._folders.keep, deployed.folder, deployed.kept())
        deployed.life.holders((), time.monotonic())
        self._queues.give(deployed, self._run)
        before = self._serving.get(deployed.name)
        self._serving[deployed.name] = deployed
        log.info("model %s serves as version %s: %s", deployed.name, deployed.version, deployed.life.detail)
        deployed.change()
        if before is not None:
            self._leave(before, f"version {deployed.version} serves")

    async def _undo(self, id: str, folder: DeploymentFolder, deployed: Deployed | None, why: str) -> None:
        if deployed is not None and deployed.life.leave(time.monotonic(), why):
            deployed.life.gone(time.monotonic())
        self._all.pop(id, None)
        if deployed is not None:
            await self._released(deployed)
            deployed.change()
        blobs = deployed.digests - self._used() if deployed is not None else set()
        await asyncio.to_thread(self._folders.remove, folder, blobs)

    def _used(self) -> set[str]:
        """Digests of the files of all deployments."""
        return {digest for one in self._all.values() for digest in one.digests}

    async def undeploy(self, name: str) -> DeployedModel:
        """End the deployment of that name. Requests under way end first.

        Raises:
            NotFound: there is none.
        """
        deployed = self.require(name)
        del self._serving[name]
        self._leave(deployed, "undeployed")
        until = time.monotonic() + UNDEPLOY_SECONDS
        while deployed.life.state is not DeploymentState.GONE and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    await deployed.changed.wait()
        return self.described(deployed)

    def _leave(self, deployed: Deployed, why: str) -> None:
        """It takes no more requests, and goes when the last has ended."""
        idle = deployed.life.leave(time.monotonic(), why)
        deployed.change()
        self._go(self._unkept(deployed, idle))

    async def _unkept(self, deployed: Deployed, idle: bool) -> None:
        # Should the aggregator end now, it does not come back with it.
        await asyncio.to_thread(self._folders.forget, deployed.folder)
        if idle:
            await self._remove(deployed)

    async def _remove(self, deployed: Deployed) -> None:
        for task in list(deployed.coming.values()):
            task.cancel()
        await self._released(deployed)
        del self._all[deployed.id]
        await asyncio.to_thread(self._folders.remove, deployed.folder, deployed.digests - self._used())
        for lease in deployed.leases:
            lease.give_back()
        deployed.life.gone(time.monotonic())
        log.info("model %s, version %s, is gone", deployed.name, deployed.version)
        deployed.change()

    async def _released(self, deployed: Deployed) -> None:
        if deployed.batcher is not None:
            await deployed.batcher.close(Cancelled("the model was released"))
        for told in self.leaving:
            await told(deployed)
        try:
            await self._runner.release(deployed.id, nodes=self._wholes.nodes(deployed.id))
            await self._wholes.release(deployed.id)
        except EdgeAttentionError as error:
            # What a node could not be told it is told when it comes back (`unneeded`).
            log.warning("model %s: nodes keep some of it for now: %s", deployed.name, error)

    # Requests

    def serving(self, name: str) -> Deployed | None:
        """The version of that name that takes requests, if there is one."""
        return self._serving.get(name)

    def require(self, name: str) -> Deployed:
        """The version of that name that takes requests.

        Raises:
            NotFound: there is none.
        """
        found = self._serving.get(name)
        if found is None:
            known = ", ".join(sorted(self._serving)) or "none"
            raise NotFound(f"no model {name[:80]!r} is deployed; deployed here: {known}")
        return found

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
            InvalidTensor: the inputs do not go together.
            Overloaded: too many requests of it wait.
            DeadlineExceeded: says what was waited for, or that it cannot be answered in time.
            EdgeAttentionError: what keeps it from answering.
        """
        assert deployed.planned is not None
        assert deployed.batcher is not None
        if not 0 <= priority <= PRIORITIES:
            raise InvalidArgument(f"priority is {priority}; 1 goes first, {PRIORITIES} last, 0 is {PRIORITY}")
        require_inputs(deployed.planned.inputs, feeds)
        return await deployed.batcher.infer(
            feeds, seconds, caller, partial=partial, priority=priority, joins=deployed.joins
        )

    async def _run(
        self, deployed: Deployed, feeds: Mapping[str, Array], seconds: float, partial: bool, caller: str
    ) -> ModelAnswer:
        """The answer to a batch, or to one request."""
        assert deployed.planned is not None
        shapes = {name: array.shape for name, array in feeds.items()}
        whole, until = deployed.planned.whole, time.monotonic() + seconds
        key = deployed.planned.key if whole else shape_key(shapes)
        while not deployed.shapes.use(key):
            await self._readiness.ready(deployed, key, shapes, until, caller)
        try:
            left = max(until - time.monotonic(), 0.0)
            if whole:
                return await self._wholes.infer(deployed.id, feeds, left)
            answer = await self._runner.infer(deployed.id, key, feeds, left, partial=partial)
            folder = deployed.folder.shape(key)
            await self._nodes.measures.answered(folder, answer.segments, self._nodes.threads())
            return answer
        finally:
            deployed.shapes.done(key)

    def ended(self, deployed: Deployed, answered: bool) -> None:
        """A request of it has ended."""
        if deployed.life.end(answered):
            self._go(self._remove(deployed))

    # What they are

    def deployed(self) -> tuple[Deployed, ...]:
        """Those that serve."""
        return tuple(self._serving.values())

    def weight_bytes(self, node: str) -> int:
        """Of weights that a node holds, of all deployments."""
        return self._taken()[node]

    def list(self) -> tuple[DeployedModel, ...]:
        """All, by name and version."""
        found = sorted(self._all.values(), key=lambda one: (one.name, one.version))
        return tuple(map(self.described, found))

    def described(self, deployed: Deployed) -> DeployedModel:
        """As clients see it."""
        live = frozenset(member.name for member in self._membership.members() if member.live)
        return deployed.described(self._holds(deployed), live)

    def _holds(self, deployed: Deployed) -> Holders:
        """Who is ready to do which part, for the shape used last."""
        if deployed.planned is not None and deployed.planned.whole:
            return self._wholes.holds(deployed.id)
        by_shape = self._runner.holds(deployed.id)
        return next((by_shape[key] for key in deployed.shapes.last_first if key in by_shape), {})

    async def watch(self, name: str) -> AsyncIterator[DeployedModel]:
        """The version that serves, or the one that comes, whenever it changes, until it is gone."""
        found = [one for one in self._all.values() if one.name == name]
        deployed = self._serving.get(name) or max(found, key=lambda one: one.version, default=None)
        if deployed is None:
            deployed = self.require(name)
        while True:
            changed = deployed.changed
            yield self.described(deployed)
            if deployed.life.state is DeploymentState.GONE:
                return
            await changed.wait()

    def unneeded(self, member: Member) -> tuple[str, ...]:
        """What a node may keep of deployments that are none any more; those of earlier lives it is told of
        each time, as nobody knows whether it was there."""
        return (*self._runner.unneeded(member), *map(job_scope, self._ended))

    def _lacking(self, deployed: Deployed) -> tuple[str, ...]:
        """Which parts nobody can do now, a sentence each."""
        assert deployed.planned is not None
        holds = self._holds(deployed)
        found = []
        for part in deployed.planned.parts:
            if any(map(self._membership.live, holds.get(part.part, ()))):
                continue
            holders = deployed.planned.holders.get(part.part, ())
            found.append(f"part {part.part} waits for node {' or '.join(holders)}")
        return tuple(found)

    # Over restarts

    def recall(self) -> None:
        """Read what an earlier life left. Blocks; call it once, before anything else is asked."""
        found = recalled(self._folders)
        for deployed in found:
            owner = deployed.owner or None
            deployed.leases = (
                self._budgets[DEPLOYMENTS].keep(owner),
                self._budgets[DEPLOYMENT_BYTES].keep(owner, deployed.size),
            )
            deployed.life.recalled(time.monotonic(), "the aggregator was restarted")
            self._all[deployed.id] = self._serving[deployed.name] = deployed
            self._queues.give(deployed, self._run)
        self._ended = self._folders.ended()
        self._recalled = found
        nodes = {n for one in found if one.planned for n in one.planned.node_bytes}
        self._membership.expect(nodes, time.monotonic())

    def resume(self) -> None:
        """Have the nodes ready for what was recalled, and look after all from now on."""
        self._go(self._watch())
        recalled, self._recalled = self._recalled, []
        for deployed in recalled:
            self._go(self._back(deployed))

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
        while True:
            for deployed in list(self._serving.values()):
                if deployed.shapes.last_first and deployed.life.holders(
                    self._lacking(deployed), time.monotonic()
                ):
                    log.info(
                        "model %s is %s: %s", deployed.name, deployed.life.state.value, deployed.life.detail
                    )
                    deployed.change()
            self._metrics.deployed(Counter(one.life.state for one in self._all.values()), self._taken())
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        """End what goes on. Deployments stay: the next life has them."""
        tasks = [*self._tasks, *(task for one in self._all.values() for task in one.coming.values())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for one in self._all.values():
            if one.batcher is not None:
                await one.batcher.close(Unavailable("the aggregator is ending"))
        await self._wholes.close()
        await self._runner.close()

    def _go(self, work: Awaitable[None]) -> None:
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a deployment's work has failed")


def _numbers(name: str) -> str:
    return f"deployment/{name}"
