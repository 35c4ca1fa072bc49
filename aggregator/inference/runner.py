"""Runs cut models over the fleet: has nodes given what they need, and takes requests through the schedule.

prepare   graphs, weights, constants to the nodes       (delivery.py, holding.py)
infer     a lane (lanes.py); a request (requests.py) decides, and is performed (running_request.py): a trip
          for the segments that can run at once, what comes back folds, the next ones run
release   what the nodes hold of it is freed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from aggregator.engine.recipe import Engine
from aggregator.fleet.membership import Member
from aggregator.inference.boundary_room import BoundaryRoom, RecordRoom
from aggregator.inference.calls import CallTerms, KnownWeight, SegmentCalls, job_scope, lane_scope
from aggregator.inference.course import PEAK_BYTES, Course
from aggregator.inference.delivery import CutFiles, NodeDeliveries, StoredPiece
from aggregator.inference.feeds import require_feeds
from aggregator.inference.holding import Pick, ShapeHolders, Told, roomiest
from aggregator.inference.known_graphs import KnownGraphs, LoadedSessions, SessionOfNode
from aggregator.inference.lanes import RequestLanes
from aggregator.inference.model_answer import ModelAnswer, SegmentRun
from aggregator.inference.part_pieces import changing_pieces, course_of, pieces_of, tables_in
from aggregator.inference.requests import ModelRequest
from aggregator.inference.running_request import RunningRequest, ShapeOfModel
from aggregator.inference.warming import warm_part
from edge_attention.core.errors import Cancelled, DeadlineExceeded, NotFound, ResourceExhausted
from edge_attention.core.messages.program import Drop
from edge_attention.core.schedule.schedule import Schedule, Weight
from edge_attention.core.tensors import Array, require_stored

__all__ = ["ChangingWeights", "HeldRequest", "ModelRunner"]

log = logging.getLogger(__name__)

RECORDED_BYTES = 256 * 1024 * 1024
"""Boundaries of all requests that are kept only in case a node goes. What is beyond it is forgotten: a
request that needs it then begins again from its feeds."""
BOUNDARY_BYTES = 1024 * 1024 * 1024
"""Of all requests' at a time: more wait."""
FREED = 256
"""Scopes that one node, away, is to free when it comes; then those of longest ago are left to their age."""


@dataclass(eq=False)
class _Deployed:
    """A deployment."""

    lanes: RequestLanes = field(default_factory=RequestLanes)
    shapes: dict[str, ShapeOfModel] = field(default_factory=dict)
    weights: dict[Weight, KnownWeight] = field(default_factory=dict)
    """Those that were looked at."""
    graphs: KnownGraphs = field(default_factory=KnownGraphs)
    loaded: LoadedSessions = field(default_factory=LoadedSessions)


@dataclass(frozen=True, eq=False)
class ChangingWeights:
    """A version of the weights that change. `read`: the elements of a piece of one; it may block."""

    number: int
    read: Callable[[Weight], Array]


@dataclass(frozen=True, eq=False)
class HeldRequest:
    """A request that has its results, whose lane on the nodes nobody else has yet.

    Attributes:
        nodes: part -> the node that ran it.
        moves: how often a part went on on another node: what that one kept only is not there.
    """

    lane: int
    nodes: Mapping[int, str]
    moves: int
    results: Mapping[str, Array]


class ModelRunner:
    """Runs deployments.

    Attributes:
        pick: who is given a part whose nodes have gone; None: who has most room.
    """

    def __init__(self, engine: Engine, pick: Pick | None = None) -> None:
        self._trips = engine.trips
        self._bulk = engine.bulk
        self._membership = engine.membership
        self.pick = pick or roomiest(engine.membership)
        self._deliveries = NodeDeliveries(engine.trips, engine.bulk)
        self._deployed: dict[str, _Deployed] = {}
        self._record = RecordRoom(RECORDED_BYTES)
        self._room = BoundaryRoom(BOUNDARY_BYTES)
        self._running: set[RunningRequest] = set()
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
        terms: CallTerms | None = None,
        version: ChangingWeights | None = None,
        may: Callable[[int, str], bool] = lambda part, node: True,
        known: dict[Weight, KnownWeight] | None = None,
        seek: bool = False,
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
            terms: in place of `halves`, where there is more to be said.
            version: of the weights that change (`terms.changing`), the one to begin with. Shapes of one
                deployment share these, too: the others of its shapes rest, until they are renewed.
            known: weights that need not be hashed; those that were hashed now are put there.
            may: whether a node may hold a part, where its own nodes have gone.
            seek: a part whose nodes have gone is given to another one now, and not when a request needs it.

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
        terms = terms or CallTerms(halves)
        require_stored(f"{job_scope(deployment)}{shape}/c/x")
        deployed = self._deployed.setdefault(deployment, _Deployed())
        course = await asyncio.to_thread(course_of, schedule, files, deployed.graphs)
        if course.peak > PEAK_BYTES:
            raise ResourceExhausted(
                f"bound request-boundaries: what passes the aggregator in one request takes {course.peak:,} "
                f"bytes at a time, and {PEAK_BYTES:,} is the most: cut the model into fewer parts, or by "
                "layers, or send less at a time"
            )
        if known is not None:
            known.update(deployed.weights)
            deployed.weights = known
        if version is not None:
            await self._rest(deployed, tuple(deployed.shapes), until)
        if shape in deployed.shapes:
            await self._end_shape(deployed, shape)
        pieces = await asyncio.to_thread(
            lambda: [
                pieces_of(deployment, shape, course, part, files, deployed.weights, terms.changing)
                for part in range(schedule.parts)
            ]
        )
        tables = await asyncio.to_thread(tables_in, schedule, files, deployed.weights, deployed.graphs)
        calls = SegmentCalls(deployment, shape, course, deployed.weights, tables, terms)
        graphs = tuple(dict.fromkeys(schedule.graphs.values()))
        for digest in graphs:
            path = files.graph(digest)
            self._bulk.lend_file(digest, path, 0, path.stat().st_size)

        async def warm(node: str, part: int) -> None:
            life = held.life(node)

            def loaded(session: SessionOfNode) -> bool:
                return (node, life, session) in deployed.loaded

            sessions = await warm_part(self._trips, self._bulk, course, calls, node, part, warmed, loaded)
            deployed.loaded.add(node, life, sessions)

        held = ShapeHolders(
            self._membership, self._deliveries, pieces, holders, self.pick, warm, self._load, self._look, may
        )
        if version is not None:
            held.renew(version.number, await _pieces_of_version(deployment, course, terms, version))
        deployed.shapes[shape] = ShapeOfModel(course, calls, held, graphs)
        held.ensure(say)
        if not await held.settled(max(until - time.monotonic(), 0.0), seek=seek):
            part = held.lacking[0]
            raise DeadlineExceeded(f"no node holds part {part} after {seconds:.3g} s: {held.why(part)}")

    async def renew(self, deployment: str, shape: str, version: ChangingWeights, seconds: float) -> None:
        """Have the nodes given the weights that change, for requests of that shape from now on.

        To be called when no request of the deployment is under way, and no other call of this or of
        `prepare`. The deployment's other shapes of such weights rest until they are renewed: a node has one
        copy, and it is this shape's. Returns as `prepare` does; a part whose nodes have gone is given to
        another one.

        Raises:
            NotFound: nothing is deployed so.
            DeadlineExceeded, ResourceExhausted, InvalidArgument, PermissionDenied: as `prepare`.
        """
        made = self._shape(deployment, shape)
        until = time.monotonic() + seconds
        pieces = await _pieces_of_version(deployment, made.course, made.calls.terms, version)
        deployed = self._deployed[deployment]
        await self._rest(deployed, [name for name in deployed.shapes if name != shape], until)
        made.holders.renew(version.number, pieces)
        if not await made.holders.settled(max(until - time.monotonic(), 0.0), seek=True):
            part = made.holders.lacking[0]
            raise DeadlineExceeded(
                f"no node holds part {part} after {seconds:.3g} s: {made.holders.why(part)}"
            )

    async def infer(
        self,
        deployment: str,
        shape: str,
        feeds: Mapping[str, Array],
        seconds: float,
        *,
        partial: bool = False,
        then: Callable[[HeldRequest], Awaitable[None]] | None = None,
    ) -> ModelAnswer:
        """The model's outputs for `feeds`, in `seconds` at most.

        `then`: what is still to be done with what nodes keep of it; so long nobody else has its lane. What it
        raises is raised.

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
        made = self._shape(deployment, shape)
        deployed = self._deployed[deployment]
        require_feeds(made.calls.feeds, feeds)
        peak = made.course.peak
        await self._room.take(peak, seconds)
        with ExitStack() as room:
            room.callback(self._room.give_back, peak)
            return await self._infer(deployment, deployed, made, feeds, began, seconds, partial, then, room)

    async def _infer(
        self,
        deployment: str,
        deployed: _Deployed,
        made: ShapeOfModel,
        feeds: Mapping[str, Array],
        began: float,
        seconds: float,
        partial: bool,
        then: Callable[[HeldRequest], Awaitable[None]] | None,
        room: ExitStack,
    ) -> ModelAnswer:
        lane = await deployed.lanes.take(max(began + seconds - time.monotonic(), 0.0))
        clean = False
        try:
            now = time.monotonic()
            go_on = now + max(began + seconds - now, 0.0) / 2 if partial else None
            machine = ModelRequest(made.course, made.holders, self._record, now, began + seconds, go_on)
            request = RunningRequest(self._trips, self._bulk, made, machine, lane, feeds)
            self._running.add(request)
            try:
                await request.run()
                clean = request.clean
            finally:
                self._running.discard(request)
            if then is not None:
                room.close()  # its boundaries are results now, and whoever waits may be waited for by `then`
                clean = False
                nodes = {part: machine.of(part)[1] for part in range(made.course.schedule.parts)}
                await then(HeldRequest(lane, nodes, machine.moves, machine.results()))
                clean = request.clean
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

    def seek(self, deployment: str) -> None:
        """Have parts of which no holder is there given to other nodes, without a request that needs them."""
        deployed = self._deployed.get(deployment)
        for made in list(deployed.shapes.values()) if deployed is not None else ():
            for part in made.holders.lacking:
                made.holders.seek(part, frozenset())

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

    def waits(self, deployment: str, shape: str) -> str:
        """For a person: what requests of that shape wait for; empty: nothing that is worth a word."""
        deployed = self._deployed.get(deployment)
        made = deployed.shapes.get(shape) if deployed is not None else None
        if made is None:
            return "the parts are prepared"
        if lacking := made.holders.lacking:
            return f"nobody holds part {lacking[0]}: {made.holders.why(lacking[0])}"
        found = next((request for request in self._running if request.shape is made), None)
        return found.machine.waits() if found is not None else ""

    def unneeded(self, member: Member) -> tuple[str, ...]:
        """What a node that has come may forget: what was freed while it was away."""
        return tuple(self._freed.pop(member.name, ()))

    # Inside

    def _shape(self, deployment: str, shape: str) -> ShapeOfModel:
        """Raises NotFound."""
        deployed = self._deployed.get(deployment)
        made = deployed.shapes.get(shape) if deployed is not None else None
        if made is None:
            raise NotFound(f"nothing is deployed as {deployment[:80]!r} for inputs of shape {shape[:80]!r}")
        return made

    async def _rest(self, deployed: _Deployed, shapes: Sequence[str], until: float) -> None:
        """Have no version of these shapes' given to nodes. Raises DeadlineExceeded."""
        for name in shapes:
            made = deployed.shapes.get(name)
            if made is None or not made.calls.terms.changing:
                continue
            if not await made.holders.rest(max(until - time.monotonic(), 0.0)):
                raise DeadlineExceeded(
                    f"nodes are still being given weights for inputs of shape {name[:80]!r}: they are given "
                    "those of another shape after that"
                )

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
        self._deliveries.freed(scope)
        for node in nodes:
            if self._membership.live(node):
                self._trips.post(node, (Drop((scope,)),))
            else:
                freed = self._freed.setdefault(node, OrderedDict())
                if not any(scope.startswith(wider) for wider in freed):
                    freed[scope] = None
                while len(freed) > FREED:
                    freed.popitem(last=False)

    def _load(self, node: str) -> int:
        return sum(request.machine.nodes.count(node) for request in self._running)

    def _look(self) -> None:
        """Something has changed with the nodes."""
        for deployed in self._deployed.values():
            for made in deployed.shapes.values():
                made.holders.ensure()
        for request in list(self._running):
            request.look()


async def _pieces_of_version(
    deployment: str, course: Course, terms: CallTerms, version: ChangingWeights
) -> list[list[StoredPiece]]:
    return await asyncio.to_thread(changing_pieces, deployment, course, terms.changing, version.read)
