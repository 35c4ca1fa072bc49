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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aggregator.bounds.bounds import DEPLOYING, DEPLOYMENT_BYTES, DEPLOYMENTS
from aggregator.engine import scratch
from aggregator.engine.endings import to_the_end
from aggregator.engine.recipe import Engine
from aggregator.fleet.membership import Member
from aggregator.inference import planner
from aggregator.inference.calls import job_scope
from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.deployed import Deployed, PlannedParts, Shapes
from aggregator.inference.feeds import require_inputs, shape_key, shape_text
from aggregator.inference.life import Life
from aggregator.inference.measured import NodeMeasures
from aggregator.inference.measuring import MOST_MEASURED, MOVED, NodeMeter
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.placement import MAX_REPLICAS, Holders, plan_word
from aggregator.inference.runner import ModelAnswer, ModelRunner, SegmentRun
from aggregator.store.deployments import DeploymentFolder, DeploymentFolders
from edge_attention.core.errors import (
    DataLoss,
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.inference import (
    FILES,
    PLAN_FILE_BYTES,
    DeployedModel,
    DeploymentState,
    DeployProgress,
    DeployRequest,
)
from edge_attention.core.schedule import saved
from edge_attention.core.tensors import Array, require_name
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.meter import PRODUCTS_WORK

__all__ = ["Deployments"]

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 3600.0
"""What bringing a model's weights to nodes may take."""
TOLD_SECONDS = 0.1
"""Between two words of how far a deployment is."""
ALIVE_SECONDS = 5.0
"""Without news the last word is said again so often."""
WATCH_SECONDS = 0.5
"""Between two looks at who is there."""
RETRY_SECONDS = (0.5, 15.0)
"""Between two tries of having nodes ready after a restart, first and at most."""
UNDEPLOY_SECONDS = 30.0
"""So long an undeploy waits for requests under way; then it goes on without whoever asked for it."""
MAX_DIMENSION = 1 << 24

Telling = Callable[[DeployProgress], None]


class Deployments:
    """All of them, those that are made or end included."""

    def __init__(self, engine: Engine, runner: ModelRunner, metrics: InferenceMetrics) -> None:
        self._engine = engine
        self._state = engine.state
        self._membership = engine.membership
        self._budgets = engine.budgets
        self._folders = DeploymentFolders(engine.state)
        self._runner = runner
        self._metrics = metrics
        self._all: dict[str, Deployed] = {}
        self._serving: dict[str, Deployed] = {}
        """By name, the version that takes requests."""
        self._making: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._recalled: list[Deployed] = []
        self._ended: tuple[str, ...] = ()
        """Ids of deployments of earlier lives."""
        self._measures = NodeMeasures()
        self._meter = NodeMeter(engine.trips, engine.bulk)
        self._measuring = asyncio.Lock()

    # Calls of clients

    async def deploy(
        self, request: DeployRequest, owner: str, caller: str
    ) -> AsyncGenerator[DeployProgress | DeployedModel]:
        """How far it is, and at last the deployment, which serves.

        Whoever closes the iterator before has undone it.

        Raises:
            EdgeAttentionError: it cannot be deployed, and why; nothing is left of it.
        """
        _check(request)
        if request.name in self._making:
            raise FailedPrecondition(
                f"a version of model {request.name!r} is just being deployed; wait for it, or end that call"
            )
        self._making.add(request.name)
        told = _Told()
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
            folder, size = await _made(self._folders, id, request)
            deployed: Deployed | None = None
            try:
                leases.append(stack.enter_context(self._budgets.take(DEPLOYMENT_BYTES, owner or None, size)))
                kept = replace(request, plan_file=b"")
                deployed = Deployed(
                    id, version, kept, owner, time.time(), folder, size, Life(request.name), tuple(leases)
                )
                self._all[id] = deployed
                with self._budgets.take(DEPLOYING, caller):
                    await self._plan(deployed, request, say)
                await self._deliver(deployed, say)
                await to_the_end(self._go_live(deployed))
                stack.pop_all()
            except BaseException as error:
                await to_the_end(self._undo(id, folder, deployed, str(error) or type(error).__name__))
                raise
        return deployed

    async def _plan(self, deployed: Deployed, request: DeployRequest, say: Telling) -> None:
        say(DeployProgress("planning", text=f"the model has {deployed.size:,} bytes"))
        nodes = self._nodes(request.nodes)
        if not request.plan_file and plan_word(request.plan)[0] == "auto":
            await self._measure(nodes, say)
            nodes = self._nodes(request.nodes)
        async with scratch.folder(self._state.directory) as work:
            file = ""
            if request.plan_file:
                file = str(work / "plan")
                await asyncio.to_thread((work / "plan").write_bytes, request.plan_file)
            into = work / "cut"
            asked = CutRequest(
                str(deployed.folder.model), str(into), request.plan or "auto", "", file, nodes,
                request.replicas, {}, request.dimensions, {}, request.halves,
            )  # fmt: skip
            planned = await planner.make(asked, work)
            key = shape_key(planned.shapes)
            await asyncio.to_thread(into.rename, deployed.folder.shape(key))
        deployed.planned = planned
        deployed.texts[key] = shape_text(planned.shapes)
        self._require_fits(deployed, planned)
        deployed.life.planned(time.monotonic())
        deployed.change()
        say(DeployProgress("planning", text=planned.text))

    async def _measure(self, nodes: Sequence[NodeTold], say: Telling) -> None:
        """Measure those of `nodes` that no answer has said anything of for long. Who does not answer stays
        unmeasured."""
        by_name = {node.name: node for node in nodes}
        async with self._measuring:  # at a time they would disturb each other
            names = self._measures.unknown(list(by_name), time.monotonic())[:MOST_MEASURED]
            if not names:
                return
            say(DeployProgress("planning", text=f"measuring {len(names)} node{'s' * (len(names) > 1)}"))
            times = await self._meter.measure(names)
            threads = {name: node.threads for name, node in by_name.items()}
            machines = {name: node.machine for name, node in by_name.items()}
            self._measures.probed(times, threads, machines, PRODUCTS_WORK, MOVED, time.monotonic())
            if len(times) < len(names):
                away = ", ".join(sorted(set(names) - set(times)))
                say(DeployProgress("planning", text=f"not measured, so for no plan of several nodes: {away}"))

    def _nodes(self, names: Sequence[str]) -> tuple[NodeTold, ...]:
        """The nodes that may hold parts.

        Raises:
            NotFound, FailedPrecondition: one that is named is not here, or none is.
        """
        members = [self._membership.require_live(name) for name in names] or [
            member for member in self._membership.members() if member.live
        ]
        if not members:
            raise FailedPrecondition("no node is here to hold the model; start one with edge-node")
        taken = self._taken()
        self._measures.keep([member.name for member in self._membership.members()])
        return tuple(
            self._measures.told(
                NodeTold(
                    m.name,
                    m.register.memory_limit,
                    taken[m.name],
                    m.register.threads,
                    machine=m.register.box.id if m.register.box is not None else "",
                    cores=m.register.box.cores if m.register.box is not None else 0.0,
                )
            )
            for m in members
        )

    def _threads(self) -> dict[str, int]:
        return {member.name: member.register.threads for member in self._membership.members()}

    def _taken(self) -> Counter[str]:
        """Bytes of weights by node, of all deployments."""
        taken = Counter[str]()
        for deployed in self._all.values():
            if deployed.planned is not None:
                taken.update(deployed.planned.node_bytes)
        return taken

    def _require_fits(self, deployed: Deployed, planned: PlannedParts) -> None:
        """Raises ResourceExhausted if a node has no room for what it is to hold. A version that this one
        replaces is there until then, so it counts."""
        taken = self._taken()
        lacking = []
        for node, size in planned.node_bytes.items():
            member = self._membership.get(node)
            limit = member.register.memory_limit if member is not None else 0
            if taken[node] > limit:
                others = f", and {taken[node] - size:,} are of other models" if taken[node] > size else ""
                lacking.append(f"{node} would hold {size:,} bytes of weights and has {limit:,}{others}")
        if lacking:
            raise ResourceExhausted(
                f"model {deployed.name!r} does not fit by plan {deployed.request.plan or 'auto'} "
                f"({'; '.join(lacking[:8])}): name more nodes, cut it by layers or heads, or undeploy a model"
            )

    async def _deliver(self, deployed: Deployed, say: Telling) -> None:
        assert deployed.planned is not None
        key = shape_key(deployed.planned.shapes)

        def told(node: str, done: int, total: int) -> None:
            say(DeployProgress("delivering", node, done, total))

        await self._prepare(deployed, key, told, DELIVERY_SECONDS)
        lacking = self._lacking(deployed)
        if lacking:
            raise FailedPrecondition(f"model {deployed.name!r} cannot serve: {'; '.join(lacking)}")

    async def _prepare(
        self, deployed: Deployed, key: str, told: Callable[[str, int, int], None], seconds: float
    ) -> None:
        """Have the nodes ready for requests of this shape, which is cut."""
        assert deployed.planned is not None
        folder = deployed.folder.shape(key)
        schedule = await asyncio.to_thread(lambda: saved.loads((folder / "schedule.json").read_text()))
        files = await asyncio.to_thread(CutFolder, deployed.folder.model, folder)
        warmed: list[SegmentRun] = []
        await self._runner.prepare(
            deployed.id, key, schedule, files, deployed.planned.holders, told,
            halves=deployed.request.halves, seconds=seconds, warmed=warmed.append,
        )  # fmt: skip
        await self._measures.answered(folder, warmed, self._threads(), links=False)
        deployed.shapes.add(key)

    async def _go_live(self, deployed: Deployed) -> None:
        """It serves from now on, in place of the version before."""
        await asyncio.to_thread(self._folders.keep, deployed.folder, deployed.kept())
        deployed.life.holders((), time.monotonic())
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
        blobs = _digests(deployed) - self._used() if deployed is not None else set()
        await asyncio.to_thread(self._folders.remove, folder, blobs)

    def _used(self) -> set[str]:
        """Digests of the files of all deployments."""
        return {digest for one in self._all.values() for digest in _digests(one)}

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
        await asyncio.to_thread(self._folders.remove, deployed.folder, _digests(deployed) - self._used())
        for lease in deployed.leases:
            lease.give_back()
        deployed.life.gone(time.monotonic())
        log.info("model %s, version %s, is gone", deployed.name, deployed.version)
        deployed.change()

    async def _released(self, deployed: Deployed) -> None:
        try:
            await self._runner.release(deployed.id)
        except EdgeAttentionError as error:
            # What a node could not be told it is told when it comes back (`unneeded`).
            log.warning("model %s: nodes keep some of it for now: %s", deployed.name, error)

    # Requests

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
        partial: bool,
    ) -> ModelAnswer:
        """The model's answer. The caller has begun a request (`deployed.life.begin`), and ends it.

        `caller`: at whose cost the model is cut where it is not ready for such inputs.

        Raises:
            InvalidTensor: the inputs do not go together.
            DeadlineExceeded: says what was waited for.
            EdgeAttentionError: what keeps it from answering.
        """
        assert deployed.planned is not None
        require_inputs(deployed.planned.inputs, feeds)
        shapes = {name: array.shape for name, array in feeds.items()}
        key, until = shape_key(shapes), time.monotonic() + seconds
        while not deployed.shapes.use(key):
            await self._ready(deployed, key, shapes, until, caller)
        try:
            left = max(until - time.monotonic(), 0.0)
            answer = await self._runner.infer(deployed.id, key, feeds, left, partial=partial)
            folder = deployed.folder.shape(key)
            await self._measures.answered(folder, answer.segments, self._threads())
            return answer
        finally:
            deployed.shapes.done(key)

    def ended(self, deployed: Deployed, answered: bool) -> None:
        """A request of it has ended."""
        if deployed.life.end(answered):
            self._go(self._remove(deployed))

    async def _ready(
        self, deployed: Deployed, key: str, shapes: Shapes, until: float, caller: str | None = None
    ) -> None:
        """Wait until it is prepared for a shape, which all who want it do together."""
        task = deployed.coming.get(key)
        if task is None:
            if len(deployed.coming) >= DEPLOYING.total:
                raise ResourceExhausted(
                    f"model {deployed.name!r} is being prepared for {len(deployed.coming)} other shapes of "
                    "inputs; send requests of few shapes, padded, or wait for these"
                )
            task = asyncio.create_task(self._come(deployed, key, shapes, caller), name="shape")
            deployed.coming[key] = task
            task.add_done_callback(lambda _: deployed.coming.pop(key, None))
        done, _ = await asyncio.wait([task], timeout=max(until - time.monotonic(), 0.0))
        if not done:
            what = deployed.life.detail or "it is cut, and nodes are sent what they lack"
            raise DeadlineExceeded(
                f"model {deployed.name!r} is not ready for {shape_text(shapes)} yet ({what}); it goes on: "
                "ask again, or with a longer deadline"
            )
        if task.cancelled():
            raise FailedPrecondition(f"model {deployed.name!r} was undeployed meanwhile")
        task.result()

    async def _come(self, deployed: Deployed, key: str, shapes: Shapes, caller: str | None) -> None:
        planned = deployed.planned
        assert planned is not None
        target = deployed.folder.shape(key)
        if not await asyncio.to_thread((target / "schedule.json").is_file):
            begun = time.monotonic()
            with self._budgets.take(DEPLOYING, caller):
                await self._cut(deployed, planned, shapes, target)
            self._metrics.cut(time.monotonic() - begun)
        deployed.texts[key] = shape_text(shapes)
        await self._prepare(deployed, key, _nobody, DELIVERY_SECONDS)
        for gone in deployed.shapes.surplus():
            deployed.texts.pop(gone, None)
            await self._runner.release(deployed.id, gone)
            await asyncio.to_thread(self._folders.remove_shape, deployed.folder, gone)
        deployed.change()

    async def _cut(self, deployed: Deployed, planned: PlannedParts, shapes: Shapes, target: Path) -> None:
        async with scratch.folder(self._state.directory) as work:
            into = work / "cut"
            asked = CutRequest(
                str(deployed.folder.model), str(into), plan=planned.plan, holders=planned.holders,
                shapes=shapes, halves=deployed.request.halves,
            )  # fmt: skip
            await planner.make(asked, work)
            await asyncio.to_thread(into.rename, target)

    # What they are

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
        found: dict[str, Deployed] = {}
        replaced: list[Deployed] = []
        for kept in self._folders.recall():
            try:
                deployed = Deployed.recalled(kept.folder, kept.spec)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataLoss(
                    f"what is kept of deployment {kept.folder.id} cannot be read ({error!r}); remove "
                    f"{kept.folder.path}, and deploy the model again"
                ) from None
            before = found.get(deployed.name)
            # It was replaced, and had not gone yet.
            old = before if before is None or before.version < deployed.version else deployed
            if old is not None:
                replaced.append(old)
            if old is not deployed:
                found[deployed.name] = deployed
        used = {digest for one in found.values() for digest in _digests(one)}
        for old in replaced:
            self._folders.remove(old.folder, _digests(old) - used)
        for deployed in found.values():
            owner = deployed.owner or None
            deployed.leases = (
                self._budgets[DEPLOYMENTS].keep(owner),
                self._budgets[DEPLOYMENT_BYTES].keep(owner, deployed.size),
            )
            deployed.life.recalled(time.monotonic(), "the aggregator was restarted")
            self._all[deployed.id] = self._serving[deployed.name] = deployed
        self._ended = self._folders.ended()
        self._recalled = list(found.values())
        nodes = {n for one in found.values() if one.planned for n in one.planned.node_bytes}
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
        key, pause = shape_key(shapes), RETRY_SECONDS[0]
        deployed.texts[key] = shape_text(shapes)
        while deployed.life.live and key not in deployed.shapes:
            try:
                await self._ready(deployed, key, shapes, time.monotonic() + DELIVERY_SECONDS)
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
        await self._runner.close()

    def _go(self, work: Awaitable[None]) -> None:
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Told:
    """What a deployment says of itself, the last of each kind, for who reads it no more often than it can."""

    def __init__(self) -> None:
        self._news: dict[tuple[str, str], DeployProgress] = {}
        self._come = asyncio.Event()

    def say(self, progress: DeployProgress) -> None:
        self._news[progress.stage, progress.node or progress.text] = progress
        self._come.set()

    async def until(self, work: asyncio.Task[Deployed]) -> AsyncIterator[DeployProgress]:
        """What is said until `work` ends."""
        last: DeployProgress | None = None
        while not (work.done() and not self._news):
            waiting = asyncio.ensure_future(self._come.wait())
            try:
                await asyncio.wait(
                    [work, waiting], timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            self._come.clear()
            news, self._news = self._news, {}
            for progress in news.values():
                last = progress
                yield progress
            if not news and last is not None and not work.done():
                yield last  # who reads it sees that it goes on
            if not work.done():
                await asyncio.wait([work], timeout=TOLD_SECONDS)


async def _made(folders: DeploymentFolders, id: str, request: DeployRequest) -> tuple[DeploymentFolder, int]:
    """The folder; gone again where whoever asked for it is."""
    making = asyncio.ensure_future(asyncio.to_thread(folders.make, id, request.model, request.files))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        with contextlib.suppress(EdgeAttentionError):
            folder, _ = await making
            await asyncio.to_thread(folders.remove, folder)
        raise


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a deployment's work has failed")


def _check(request: DeployRequest) -> None:
    """Refuse what no model could mend.

    Raises:
        InvalidArgument: names the field.
    """
    require_name(request.name, "model")
    if request.plan_file and request.plan:
        raise InvalidArgument("a plan is named and one is said in full; give one of both")
    if not request.plan_file:
        plan_word(request.plan)
    if len(request.plan_file) > PLAN_FILE_BYTES:
        raise InvalidArgument(
            f"bound plan-file-bytes: the plan has {len(request.plan_file):,} bytes, and one has "
            f"{PLAN_FILE_BYTES:,} at most"
        )
    for node in request.nodes:
        require_name(node, "node")
    if len(set(request.nodes)) != len(request.nodes):
        raise InvalidArgument("nodes names one twice; name each once")
    if not 0 <= request.replicas <= MAX_REPLICAS:
        raise InvalidArgument(f"replicas is {request.replicas}; it must be 1 to {MAX_REPLICAS}")
    if len(request.files) > FILES:
        raise InvalidArgument(
            f"a model has at most {FILES:,} files of weights (FILES), not {len(request.files)}"
        )
    for name, size in request.dimensions.items():
        if len(name) > 256 or not 1 <= size <= MAX_DIMENSION:
            raise InvalidArgument(
                f"dimension {name[:80]!r} is {size}; a dimension has 1 to {MAX_DIMENSION:,} elements"
            )


def _numbers(name: str) -> str:
    return f"deployment/{name}"


def _digests(deployed: Deployed) -> set[str]:
    return {deployed.request.model, *deployed.request.files.values()}


def _nobody(node: str, done: int, total: int) -> None:
    pass
