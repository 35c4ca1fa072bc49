"""Runs cut models over the fleet: has nodes given what they need, and takes requests through the schedule.

prepare   graphs, weights, constants to the nodes       (delivery.py, holding.py)
infer     a lane (lanes.py); a request (requests.py) decides, and is performed here: a trip for the
          segments that can run at once, what comes back folds, the next ones run
release   what the nodes hold of it is freed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.engine.bulk import Bulk
from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.recipe import Engine
from aggregator.engine.returned import Returned
from aggregator.engine.spool import SpooledTensor
from aggregator.engine.trip import Errand, Trips
from aggregator.fleet.membership import Member
from aggregator.inference.calls import (
    TABLE,
    WARM,
    KnownWeight,
    SegmentCall,
    SegmentCalls,
    SentTensor,
    constant_name,
    job_scope,
    lane_scope,
    weight_name,
)
from aggregator.inference.course import Course, graphs_to_follow
from aggregator.inference.delivery import (
    ArrayBytes,
    CutFiles,
    NodeDeliveries,
    StoredPiece,
    digest_of,
    require_travels,
)
from aggregator.inference.holding import Pick, ShapeHolders, Told, roomiest
from aggregator.inference.lanes import BoundaryRoom, RequestLanes
from aggregator.inference.requests import Action, AskSegment, Ended, ModelRequest, RecordRoom, Seek, Supply
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    Internal,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    ResourceExhausted,
)
from edge_attention.core.messages.program import BulkTensor, Drop
from edge_attention.core.schedule.schedule import Constant, Schedule, TensorForm, Weight
from edge_attention.core.tensors import Array, DataType, require_stored
from edge_attention.core.transitions import told

__all__ = ["ModelAnswer", "ModelRunner", "SegmentRun"]

log = logging.getLogger(__name__)

RECORDED_BYTES = 256 * 1024 * 1024
"""Boundaries of all requests that are kept only in case a node goes. What is beyond it is forgotten: a
request that needs it then begins again from its feeds."""
WARM_SECONDS = 600.0
"""Loading one segment with its weights takes no longer."""
WARM_AGAIN = 0.1
"""A segment that took less seconds to compute is called again, for how long it takes once loaded."""
PEAK_BYTES = 512 * 1024 * 1024
"""Of the boundaries of one request at a time."""
BOUNDARY_BYTES = 1024 * 1024 * 1024
"""Of all requests' at a time: more wait."""
FREED = 256
"""Scopes that one node, away, is to free when it comes; then those of longest ago are left to their age."""


@dataclass(frozen=True)
class SegmentRun:
    """One segment of a request, as it ran.

    Attributes:
        run: seconds in graphs, as the node says.
        seconds: from when it was asked to its last word.
        sent, received: bytes of tensors.
    """

    step: int
    part: int
    node: str
    run: float
    seconds: float
    sent: int
    received: int


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """What came of one request.

    Attributes:
        results: by the model's outputs. Elements that nobody contributed are NaN.
        exact: whether it is the whole model's answer.
        coverage: how much of the model's work it stands on, 1.0 of an exact one; `lacking` says what is not.
        seconds: `part 0` and so on: in graphs, as nodes say; `turn`: until it began; `wait`: for nodes;
            `fold`: in folding; `all`.
        sent, received: node -> bytes of tensors.
        moves: how often a part went on on another node.
        segments: all that ran, in the order in which they ended, step by step.
    """

    results: Mapping[str, Array]
    exact: bool
    coverage: float
    lacking: str
    seconds: Mapping[str, float]
    sent: Mapping[str, int]
    received: Mapping[str, int]
    moves: int = 0
    segments: tuple[SegmentRun, ...] = ()


@dataclass(eq=False)
class _ShapeOfModel:
    """A deployment for inputs of one shape."""

    course: Course
    calls: SegmentCalls
    holders: ShapeHolders
    graphs: tuple[str, ...]
    """Digests that are lent."""


@dataclass(eq=False)
class _Deployed:
    """A deployment."""

    lanes: RequestLanes = field(default_factory=RequestLanes)
    shapes: dict[str, _ShapeOfModel] = field(default_factory=dict)
    weights: dict[Weight, KnownWeight] = field(default_factory=dict)
    """Those that were looked at."""


class ModelRunner:
    """Runs deployments. `pick`: who is given a part whose nodes have gone; None: who has most room."""

    def __init__(self, engine: Engine, pick: Pick | None = None) -> None:
        self._trips = engine.trips
        self._bulk = engine.bulk
        self._membership = engine.membership
        self._pick = pick or roomiest(engine.membership)
        self._deliveries = NodeDeliveries(engine.trips, engine.bulk)
        self._deployed: dict[str, _Deployed] = {}
        self._record = RecordRoom(RECORDED_BYTES)
        self._room = BoundaryRoom(BOUNDARY_BYTES)
        self._running: set[_RunningRequest] = set()
        self._freed: dict[str, OrderedDict[str, None]] = {}
        """Node that was away -> what was freed meanwhile."""
        engine.trips.watch(lambda name: self._look())

    async def prepare(
        self,
        deployment: str,
        shape: str,
        schedule: Schedule,
        files: CutFiles,
        holders: Mapping[int, Sequence[str]],
        say: Told = lambda node, done, total: None,
        *,
        halves: bool = False,
        seconds: float,
        warmed: Callable[[SegmentRun], None] = lambda run: None,
    ) -> None:
        """Have nodes given what they need to run `schedule`: requests of that shape can come then.

        Args:
            deployment, shape: letters, digits and `_.:-`: names on nodes begin with them. Shapes of one
                deployment share its weights.
            holders: part -> nodes that are to hold it, the one to be asked first in front.
            say: told of each node how many bytes of how many it has, also after this has returned.
            halves: boundaries travel in float16, but for the model's results.
            seconds: so long nodes are waited for.
            warmed: told of each segment as it ran with zeros before there are requests, also after this has
                returned.

        Returns when each part is held by a node that is there, and by as many of its nodes as are. What is
        there of that shape already is replaced, and not sent again. Where this raises, it goes on giving
        nodes what they lack until `release`; called again it waits again.

        Raises:
            DeadlineExceeded: a part is held by nobody by then; says what was waited for.
            ResourceExhausted, InvalidArgument, PermissionDenied: all nodes that are to hold a part say so.
            InvalidTensor: a weight's dtype does not travel.
            ResourceExhausted: a request of it would take too much memory here.
            ValueError: the schedule does not hold together.
        """
        until = time.monotonic() + seconds
        require_stored(f"{job_scope(deployment)}{shape}/c/x")
        course = await asyncio.to_thread(_course, schedule, files)
        if course.peak > PEAK_BYTES:
            raise ResourceExhausted(
                f"bound request-boundaries: what passes the aggregator in one request takes {course.peak:,} "
                f"bytes at a time, and {PEAK_BYTES:,} is the most: cut the model into fewer parts, or by "
                "layers, or send less at a time"
            )
        deployed = self._deployed.setdefault(deployment, _Deployed())
        if shape in deployed.shapes:
            await self._end_shape(deployed, shape)
        pieces = await asyncio.to_thread(
            lambda: [
                _pieces(deployment, shape, course, part, files, deployed.weights)
                for part in range(schedule.parts)
            ]
        )
        tables = await asyncio.to_thread(_tables, schedule, files, deployed.weights)
        calls = SegmentCalls(deployment, shape, course, deployed.weights, tables, halves)
        graphs = tuple(dict.fromkeys(schedule.graphs.values()))
        for digest in graphs:
            path = files.graph(digest)
            self._bulk.lend_file(digest, path, 0, path.stat().st_size)

        async def warm(node: str, part: int) -> None:
            await self._warm(course, calls, node, part, warmed)

        held = ShapeHolders(
            self._membership, self._deliveries, pieces, holders, self._pick, warm, self._load, self._look
        )
        deployed.shapes[shape] = _ShapeOfModel(course, calls, held, graphs)
        held.ensure(say)
        if not await held.settled(max(until - time.monotonic(), 0.0)):
            part = held.lacking[0]
            raise DeadlineExceeded(f"no node holds part {part} after {seconds:.3g} s: {held.why(part)}")

    async def infer(
        self,
        deployment: str,
        shape: str,
        feeds: Mapping[str, Array],
        seconds: float,
        *,
        partial: bool = False,
    ) -> ModelAnswer:
        """The model's outputs for `feeds`, in `seconds` at most.

        `partial`: after half of that time it goes on without parts that no node holds, where the rest still
        says something (partials of attention); the answer tells what it lacks.

        Raises:
            NotFound: nothing is deployed so.
            InvalidTensor: the feeds are not those of that shape.
            Overloaded: too many requests of it are under way.
            DeadlineExceeded: there is no answer in time; says what was waited for.
            EdgeAttentionError: what a node says of a segment, where no other could be asked.
        """
        began = time.monotonic()
        deployed = self._deployed.get(deployment)
        made = deployed.shapes.get(shape) if deployed is not None else None
        if deployed is None or made is None:
            raise NotFound(f"nothing is deployed as {deployment[:80]!r} for inputs of shape {shape[:80]!r}")
        require_feeds(made.course.schedule, feeds)
        peak = made.course.peak
        await self._room.take(peak, seconds)
        try:
            return await self._infer(deployment, deployed, made, feeds, began, seconds, partial)
        finally:
            self._room.give_back(peak)

    async def _infer(
        self,
        deployment: str,
        deployed: _Deployed,
        made: _ShapeOfModel,
        feeds: Mapping[str, Array],
        began: float,
        seconds: float,
        partial: bool,
    ) -> ModelAnswer:
        lane = await deployed.lanes.take(max(began + seconds - time.monotonic(), 0.0))
        clean = False
        try:
            now = time.monotonic()
            go_on = now + max(began + seconds - now, 0.0) / 2 if partial else None
            machine = ModelRequest(made.course, made.holders, self._record, now, began + seconds, go_on)
            request = _RunningRequest(self._trips, self._bulk, made, machine, lane, feeds)
            self._running.add(request)
            try:
                await request.run()
                clean = request.clean
            finally:
                self._running.discard(request)
        finally:
            if not clean:
                for shared in deployed.shapes.values():
                    shared.calls.forget(lane)
                self._free(made.holders.nodes, lane_scope(deployment, lane))
            deployed.lanes.give_back(lane, clean)
        ended = time.monotonic()
        seconds_of = dict(request.seconds)
        turn, fold = now - began, seconds_of.get("fold", 0.0)
        seconds_of |= {"turn": turn, "wait": ended - now - fold, "fold": fold, "all": ended - began}
        coverage, lacking = machine.coverage, machine.lacking
        return ModelAnswer(
            results=machine.results(),
            exact=coverage == 1.0 and not lacking,
            coverage=coverage,
            lacking=lacking,
            seconds=seconds_of,
            sent=request.sent,
            received=request.received,
            moves=machine.moves,
            segments=tuple(request.segments),
        )

    async def release(self, deployment: str, shape: str = "", nodes: Sequence[str] = ()) -> None:
        """Free what nodes hold of the deployment; `shape`: of that one only, its weights stay.

        Requests that are under way are refused. `nodes`: that have something of it since an earlier life of
        this aggregator; a node that is away frees it when it is back.
        """
        deployed = self._deployed.get(deployment, _Deployed())
        nodes_of = dict.fromkeys(nodes)
        for name in [shape] if shape else list(deployed.shapes):
            nodes_of |= dict.fromkeys(await self._end_shape(deployed, name))
        if not shape:
            self._deployed.pop(deployment, None)
        self._free(tuple(nodes_of), job_scope(deployment) + (f"{shape}/" if shape else ""))

    async def close(self) -> None:
        """End what goes on; nodes keep what they have."""
        for deployed in self._deployed.values():
            for name in list(deployed.shapes):
                await self._end_shape(deployed, name)
        self._deployed.clear()

    def holds(self, deployment: str) -> dict[str, dict[int, tuple[str, ...]]]:
        """By shape and part: the nodes that hold it and are there."""
        deployed = self._deployed.get(deployment)
        live = self._membership.live
        return {
            name: {
                part: tuple(node for node in made.holders.holders(part) if live(node))
                for part in range(made.course.schedule.parts)
            }
            for name, made in (deployed.shapes.items() if deployed is not None else ())
        }

    def unneeded(self, member: Member) -> tuple[str, ...]:
        """What a node that has come may forget: what was freed while it was away."""
        return tuple(self._freed.pop(member.name, ()))

    # Inside

    async def _end_shape(self, deployed: _Deployed, shape: str) -> tuple[str, ...]:
        """Nothing goes on of it any more. Returns the nodes that have something of it."""
        made = deployed.shapes.pop(shape, None)
        if made is None:
            return ()
        for request in [request for request in self._running if request.shape is made]:
            request.end(Cancelled("the model was released"))
        await made.holders.close()
        for digest in made.graphs:
            self._bulk.take_back(digest)
        return made.holders.nodes

    def _free(self, nodes: Sequence[str], scope: str) -> None:
        """Have nodes drop what begins so: now, or when they are back."""
        for node in nodes:
            if self._membership.live(node):
                self._trips.post(node, (Drop((scope,)),))
            else:
                freed = self._freed.setdefault(node, OrderedDict())
                if not any(scope.startswith(wider) for wider in freed):
                    freed[scope] = None
                while len(freed) > FREED:
                    freed.popitem(last=False)

    async def _warm(
        self,
        course: Course,
        calls: SegmentCalls,
        node: str,
        part: int,
        warmed: Callable[[SegmentRun], None],
    ) -> None:
        """Have the node load the part's graphs, with its weights in them, before anybody waits for that.

        Each segment is called once, with zeros; what comes of zeros, and whether it can be computed, says
        nothing of what is to come.

        Raises:
            OutOfMemory, InvalidGraph: the node cannot hold it.
        """
        try:
            for one in course.parts[part]:
                call = calls.call(one, WARM, False)
                zeros = {name: tensor.zeros() for name, tensor in call.slots.items()}
                loans: list[str] = []
                try:
                    errand = Errand(
                        shard=f"warm.part{part}.step{one.step}",
                        holders=(node,),
                        coverage=range(part, part + 1),
                        instructions=call.instructions,
                        wanted=call.wanted,
                        inline=zeros,
                        lent=await lend(self._bulk, {n: (t, t.zeros()) for n, t in call.lent.items()}, loans),
                        prepared=call.prepared,
                    )
                    outcome = await self._trips.make([errand], WARM_SECONDS, believed=())
                    if outcome.run_seconds.get(errand.shard, WARM_AGAIN) < WARM_AGAIN:
                        # The first time tells of loading, the second of what is to come.
                        outcome = await self._trips.make([errand], WARM_SECONDS, believed=())
                    for shard, at in outcome.answered.items():
                        run, took = outcome.run_seconds.get(shard, 0.0), outcome.seconds.get(shard, 0.0)
                        warmed(SegmentRun(one.step, part, at, run, took, call.down, call.up))
                finally:
                    for digest in loans:
                        self._bulk.take_back(digest)
                for missing in outcome.missing.values():
                    log.info("node %s, part %d, step %d: %s", node, part, one.step, missing.text)
                    if isinstance(missing.error, OutOfMemory | InvalidGraph) or not missing.said:
                        raise (missing.error or missing.cause(missing.text))
        finally:
            self._trips.post(node, (Drop((f"{calls.warm_scope}p{part}/",)),))

    def _load(self, node: str) -> int:
        return sum(request.machine.nodes.count(node) for request in self._running)

    def _look(self) -> None:
        """Something has changed with the nodes."""
        for deployed in self._deployed.values():
            for made in deployed.shapes.values():
                made.holders.ensure()
        for request in list(self._running):
            request.look()


class _RunningRequest:
    """Performs what one request decides."""

    def __init__(
        self,
        trips: Trips,
        bulk: Bulk,
        shape: _ShapeOfModel,
        machine: ModelRequest,
        lane: int,
        feeds: Mapping[str, Array],
    ) -> None:
        self.shape = shape
        self.machine = machine
        self.clean = False
        """Whether all that was asked had come to its end."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.segments: list[SegmentRun] = []
        self._trips = trips
        self._bulk = bulk
        self._lane = lane
        self._feeds = feeds
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False

    async def run(self) -> None:
        """Returns when there is an answer. Raises what the request ended with."""
        try:
            self._perform(self.machine.start())
            self._set_clock()
            await self._over
            self.clean = not (self._lost or self.machine.abandoned)
            if self.clean and self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0)  # nothing is open: they end by themselves
        finally:
            if self.machine.over is None:
                self.machine.end(Cancelled("nobody waits for the answer"))
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
        ended = self.machine.over
        if ended is not None and ended.error is not None:
            if self.machine.transitions:
                log.info("a request ended badly: %s", told(self.machine.transitions))
            raise ended.error

    def look(self) -> None:
        """Something has changed with the nodes."""
        self._perform(self.machine.look(time.monotonic()))

    def end(self, error: EdgeAttentionError) -> None:
        """End it with `error`."""
        self._perform(self.machine.end(error))

    def _set_clock(self) -> None:
        delay = max(self.machine.wake - time.monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._perform(self.machine.tick(time.monotonic()))
        if self.machine.over is None:
            self._set_clock()

    def _perform(self, actions: Sequence[Action]) -> None:
        asks: list[AskSegment] = []
        for action in actions:
            match action:
                case AskSegment():
                    asks.append(action)
                case Seek(part, without):
                    self.shape.holders.seek(part, without)
                case Supply(part, node):
                    self.shape.holders.supply(part, node)
                case Ended():
                    if not self._over.done():
                        self._over.set_result(None)
        if not asks:
            return
        calls = {ask: self.shape.calls.call(ask.one, self._lane, ask.again) for ask in asks}
        self._start(self._ask(calls))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; what goes wrong in it ends the request."""
        try:
            await work
        except EdgeAttentionError as error:
            self.end(error)
        except Exception as problem:
            log.exception("a request cannot go on")
            self.end(Internal(f"the request cannot go on: {problem!r}"))

    async def _ask(self, calls: Mapping[AskSegment, SegmentCall]) -> None:
        """Have segments run that can run at once."""
        feeds, meetings = self._feeds, self.machine.meetings
        asks = {f"part{ask.one.part}.step{ask.one.step}": ask for ask in calls}
        loans: list[str] = []

        def take(answer: Returned) -> None:
            ask = asks[answer.shard]
            self.received[ask.node] += calls[ask].up
            if any(isinstance(tensor, SpooledTensor) for tensor in answer.tensors.values()):
                self._start(self._read(ask, calls[ask], answer))
                return
            self._came(ask, calls[ask], {name: answer.array(name) for name in answer.tensors})

        try:
            errands: list[Errand] = []
            for shard, ask in asks.items():
                call, part = calls[ask], ask.one.part
                self.sent[ask.node] += call.down
                errands.append(
                    Errand(
                        shard=shard,
                        holders=(ask.node,),
                        coverage=range(part, part + 1),
                        instructions=call.instructions,
                        wanted=call.wanted,
                        inline={
                            name: tensor.elements(feeds, meetings) for name, tensor in call.slots.items()
                        },
                        lent=await lend(self._bulk, self._large(call), loans) if call.lent else (),
                        prepared=call.prepared,
                    )
                )
            outcome = await self._trips.make(
                errands, self._left, take, believed=(), patient=False, spooled=True
            )
        finally:
            for digest in loans:
                self._bulk.take_back(digest)
        for shard, node in outcome.answered.items():
            ask, run = asks[shard], outcome.run_seconds.get(shard, 0.0)
            call, one = calls[ask], ask.one
            self.seconds[f"part {one.part}"] += run
            took = outcome.seconds.get(shard, 0.0)
            self.segments.append(SegmentRun(one.step, one.part, node, run, took, call.down, call.up))
        self._missed(asks, outcome)

    def _came(self, ask: AskSegment, call: SegmentCall, outputs: Mapping[str, Array]) -> None:
        """Fold what a segment returned. Raises what is wrong with it."""
        began = time.monotonic()
        call.require_held(outputs)
        actions = self.machine.came(ask.number, outputs, began)
        self.seconds["fold"] += time.monotonic() - began
        self._perform(actions)

    async def _read(self, ask: AskSegment, call: SegmentCall, answer: Returned) -> None:
        """What came is on the disk: it is read beside the loop."""
        try:
            names = list(answer.tensors)
            arrays = await asyncio.to_thread(lambda: [answer.array(name) for name in names])
            self._came(ask, call, dict(zip(names, arrays, strict=True)))
        except EdgeAttentionError as error:
            named = type(error)(f"node {ask.node!r}: {error.message}")
            self._perform(self.machine.failed(ask.number, named, time.monotonic()))
        finally:
            answer.close()

    def _large(self, call: SegmentCall) -> dict[str, tuple[SentTensor, Array]]:
        feeds, meetings = self._feeds, self.machine.meetings
        return {name: (tensor, tensor.elements(feeds, meetings)) for name, tensor in call.lent.items()}

    def _missed(self, asks: Mapping[str, AskSegment], outcome: Outcome) -> None:
        for shard, missing in outcome.missing.items():
            self._lost = True
            if missing.kind is MissingKind.LATE:
                continue  # the clock says so
            error = missing.error or missing.cause(missing.text)
            if isinstance(error, InvalidProgram):
                # The program is ours, and has been loaded: it is what came into it that it cannot run with.
                error = InvalidTensor(f"the model cannot be computed of these inputs: {error.message}")
            away, lacks = missing.kind is MissingKind.LOST, isinstance(missing.error, NotFound)
            number = asks[shard].number
            self._perform(self.machine.failed(number, error, time.monotonic(), away=away, lacks=lacks))

    @property
    def _left(self) -> float:
        return max(self.machine.deadline - time.monotonic(), 0.001)


async def lend(
    bulk: Bulk, tensors: Mapping[str, tuple[SentTensor, Array]], loans: list[str]
) -> tuple[BulkTensor, ...]:
    """Offer what a call has no room for. `loans`: gets the digests that the caller takes back."""
    lent: list[BulkTensor] = []
    for name, (tensor, array) in tensors.items():
        data = ArrayBytes(array)
        digest = await asyncio.to_thread(digest_of, data)
        bulk.lend_source(digest, data)
        loans.append(digest)
        data_type = DataType.of(np.dtype(tensor.form.dtype))
        lent.append(BulkTensor(name, data_type, tensor.form.shape, tensor.encoding, digest, data.nbytes))
    return tuple(lent)


def require_feeds(schedule: Schedule, feeds: Mapping[str, Array]) -> None:
    """Raises InvalidTensor unless these are the inputs of the schedule, with its dtypes and shapes."""
    for name, form in schedule.feeds.items():
        array = feeds.get(name)
        if array is None:
            raise InvalidTensor(f"input {name!r} is missing; the model takes {', '.join(schedule.feeds)}")
        if array.dtype != form.dtype or array.shape != form.shape:
            raise InvalidTensor(
                f"input {name!r} is {array.dtype} {list(array.shape)}; here it must be {form.dtype} "
                f"{list(form.shape)}"
            )
    if unknown := feeds.keys() - schedule.feeds.keys():
        raise InvalidTensor(f"{min(unknown)[:80]!r} is no input; the model takes {', '.join(schedule.feeds)}")


def _course(schedule: Schedule, files: CutFiles) -> Course:
    """The course, with what is to be known of its graphs. Blocks."""
    names = graphs_to_follow(schedule)
    if not names:
        return Course(schedule)
    from edge_attention.graphs.axes.flows import flows_of  # onnx, which few plans need here

    return Course(schedule, {n: flows_of(files.graph(schedule.graphs[n]).read_bytes()) for n in names})


def _tables(
    schedule: Schedule, files: CutFiles, known: Mapping[Weight, KnownWeight]
) -> dict[str, frozenset[str]]:
    """By graph the inputs in which rows are looked up, of those that have large weights. Blocks."""
    names = {
        segment.graph
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight) and known[source].nbytes >= TABLE
    }
    if not names:
        return {}
    from edge_attention.graphs.axes.flows import tables_of

    return {name: tables_of(files.graph(schedule.graphs[name]).read_bytes()) for name in names}


def _pieces(
    deployment: str,
    shape: str,
    course: Course,
    part: int,
    files: CutFiles,
    known: dict[Weight, KnownWeight],
) -> list[StoredPiece]:
    """What a node needs for the part, each piece once. Reads every weight that is not `known`."""
    schedule, found = course.schedule, dict[str, StoredPiece]()
    for weight in sorted(schedule.weights_of(part), key=lambda weight: (weight.name, str(weight.extent))):
        array = files.weight(weight)
        if weight not in known:
            require_travels(weight, array)
            form = TensorForm(array.dtype.name, array.shape)
            known[weight] = KnownWeight(digest_of(ArrayBytes(array)), form)
        name = weight_name(deployment, known[weight])
        found[name] = StoredPiece(
            name,
            known[weight].digest,
            array.dtype.name,
            array.shape,
            lambda weight=weight: ArrayBytes(files.weight(weight)),  # type: ignore[misc]
        )
    constants = {
        source.name
        for one in course.parts[part]
        for source in one.segment.inputs.values()
        if isinstance(source, Constant)
    }
    for constant in sorted(constants):
        digest, spec = schedule.constants[constant].digest, schedule.constants[constant].spec
        name = constant_name(deployment, shape, schedule.constants[constant])
        found[name] = StoredPiece(
            name,
            digest_of(ArrayBytes(_constant(files.constant(digest), spec))),
            spec.dtype,
            spec.shape,
            lambda digest=digest, spec=spec: ArrayBytes(_constant(files.constant(digest), spec)),  # type: ignore[misc]
        )
    return list(found.values())


def _constant(path: Path, spec: TensorForm) -> Array:
    return np.fromfile(path, spec.dtype).reshape(spec.shape)
