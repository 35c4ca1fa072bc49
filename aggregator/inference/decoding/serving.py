"""One deployed decoder with its sessions: performs what the machine (scheduling.py) decides."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.engine.recipe import Engine
from aggregator.engine.trip import Errand
from aggregator.inference.calls import KnownWeight
from aggregator.inference.course import Course
from aggregator.inference.decoding.actions import (
    Action,
    CallAnswered,
    CallRefused,
    Fly,
    ForgetLane,
    ForgetSession,
    SeekHolder,
    SupplyHolder,
)
from aggregator.inference.decoding.ahead import Begun, ends_and_begins
from aggregator.inference.decoding.decoder_session import DecoderSession
from aggregator.inference.decoding.flights import Flight, SessionRows, TokenSpan
from aggregator.inference.decoding.flying import FlightLost, fly
from aggregator.inference.decoding.owed_drops import OwedDrops
from aggregator.inference.decoding.programs import (
    AskedSegment,
    FlightPrograms,
    RowsCut,
    cache_scope,
    lane_of,
    rows_shape,
    slot_scope,
)
from aggregator.inference.decoding.routes import FlightRoutes
from aggregator.inference.decoding.scheduling import SessionScheduler
from aggregator.inference.delivery import NodeDeliveries, StoredPiece
from aggregator.inference.holding import Pick, ShapeHolders
from aggregator.inference.part_pieces import pieces_of
from aggregator.inference.placement import Holders
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    Internal,
)
from edge_attention.core.messages.program import Drop
from edge_attention.core.schedule.pieces import (
    DecoderForm,
    GraphPiece,
    loads_ends,
    loads_pieces,
    loads_tables,
)
from edge_attention.core.schedule.schedule import Weight
from edge_attention.core.tensors import Array, Float32
from edge_attention.core.transitions import told
from edge_attention.graphs.axes.folder import CutFolder

__all__ = ["DecoderServing"]

log = logging.getLogger(__name__)

CACHE_PART = 0.5
"""Of a node's memory limit that sessions may store, at most; and no more than weights leave."""
FLIGHTS = 4
"""Trips of one decoder under way at a time, where parts work one behind the other."""
WARM_ROWS = frozenset({1, 2})
"""Nodes load a decoder's graphs for these before there are sessions; all numbers of rows have the same."""


class DecoderServing:
    """A decoder, its sessions, and the nodes that hold it.

    Args:
        folder: what `write_decoder` wrote.
        taken: bytes of weights that a node holds, of all models.
        require_whole: awaited before a file is read; raises where the disk has changed one.
    """

    def __init__(
        self,
        engine: Engine,
        deployment: str,
        model: Path,
        folder: Path,
        form: DecoderForm,
        holders: Holders,
        pick: Pick,
        taken: Callable[[str], int],
        require_whole: Callable[[], Awaitable[None]],
    ) -> None:
        self.form = form
        self._require_whole = require_whole
        self._engine = engine
        self._trips = engine.trips
        self._bulk = engine.bulk
        self._membership = engine.membership
        self._deployment = deployment
        self._model = model
        self._folder = folder
        self._assigned = holders
        self._pick = pick
        self._taken = taken
        self.life = secrets.token_hex(4)
        self._weights: dict[Weight, KnownWeight] = {}
        self._programs = FlightPrograms(deployment, self.life, self._weights)
        self._routes = FlightRoutes(self._programs, form.ids)
        self._begun: Begun | None = None
        """What the last flight went ahead with: of any other than the next one it is not to be."""
        self._cuts: dict[int, RowsCut] = {}
        self._graphs: tuple[str, ...] = ()
        self._holders: ShapeHolders | None = None
        self._machine: SessionScheduler | None = None
        self._answers: dict[int, asyncio.Future[Array]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._owed = OwedDrops(
            engine.trips, engine.membership, self._start, lambda slot: self.machine.freed(slot)
        )
        self._untried = 0
        """How often a node could not be tried with a part."""
        self._timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Task[None] | None = None
        self._closed = False

    # Calls

    async def ready(self, seconds: float) -> None:
        """Wait until each part is held by a node that is there.

        Raises:
            DeadlineExceeded: says what was waited for; it goes on.
            EdgeAttentionError: nodes that are to hold it say that they cannot, or its files are damaged.
        """
        if self._ready is None or (self._ready.done() and not self._serves()):
            self._ready = asyncio.create_task(self._prepare(), name="decoder")
        done, _ = await asyncio.wait([self._ready], timeout=seconds)
        if not done:
            held = self._holders
            part = held.lacking[0] if held is not None and held.lacking else 0
            why = held.why(part) if held is not None else "it is read"
            raise DeadlineExceeded(f"no node holds part {part} of the decoder after {seconds:.3g} s: {why}")
        if self._ready.cancelled():
            raise FailedPrecondition("the model was undeployed meanwhile")
        self._ready.result()

    @property
    def machine(self) -> SessionScheduler:
        assert self._machine is not None
        return self._machine

    @property
    def lacking(self) -> str:
        """Why logits are not the whole model's, to rounding in its types; "": they are. `ready` first."""
        return next((cut.course.schedule.lacking for cut in self._cuts.values()), "")

    def open(
        self, owner: str, memory: Float32 | None = None, priority: int = 0, greedy: bool = False
    ) -> DecoderSession:
        """A new session; `ready` has returned. Arguments, and what is raised, as the machine's."""
        session = self.machine.open(owner, time.monotonic(), memory, priority, greedy)
        self._set_clock()
        return session

    async def extend(self, session: int, ids: Sequence[int], seconds: float) -> Array:
        """Logits after each of the new tokens, float32 [tokens, vocabulary]. Raises as the machine's."""
        now = time.monotonic()
        answer: asyncio.Future[Array] = asyncio.get_running_loop().create_future()
        if session in self._answers:
            raise FailedPrecondition("the session is being extended: wait for that, and then ask")
        before = self.machine.require(session).length
        self._answers[session] = answer
        try:
            self._perform(self.machine.extend(session, ids, now, now + seconds))
            return await answer
        except asyncio.CancelledError:
            self._answers.pop(session, None)
            error, now = Cancelled("nobody waits for the logits"), time.monotonic()
            self._perform(self.machine.cancel(session, error, now))
            if _answered(answer) and session in self.machine.sessions:
                self.machine.truncate(session, before, now)  # in the same moment: nobody has heard it
            raise
        finally:
            self._answers.pop(session, None)

    def truncate(self, session: int, length: int) -> None:
        self.machine.truncate(session, length, time.monotonic())

    def close_session(self, session: int) -> None:
        if self._machine is not None:
            self._perform(self._machine.close(session, time.monotonic()))

    def look(self) -> None:
        """Something has changed with the nodes."""
        if self._closed:
            return
        if self._holders is not None:
            self._holders.ensure()
        self._owed.look()
        if self._machine is not None:
            self._perform(self._machine.look(time.monotonic()))

    async def close(self, error: EdgeAttentionError) -> None:
        """End all sessions with `error`; nodes keep nothing of them if they are there."""
        self._closed = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *([self._ready] if self._ready is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._holders is not None:
            await self._holders.close()
            for node in self._holders.nodes:
                if self._membership.live(node):
                    self._trips.post(node, (Drop((cache_scope(self._deployment),)),))
        for digest in self._graphs:
            self._bulk.take_back(digest)
        self._graphs = ()

    # Getting ready

    def _serves(self) -> bool:
        return self._ready is not None and not self._ready.cancelled() and self._ready.exception() is None

    async def _prepare(self) -> None:
        if self._holders is None:
            await self._require_whole()
            pieces = await asyncio.to_thread(self._read)
            paths: dict[str, Path] = {}
            for rows, cut in self._cuts.items():
                own = [one.graph for of in cut.pieces.values() for one in of if isinstance(one, GraphPiece)]
                for graph in (*own, *cut.ends.values()):
                    paths[graph] = self._folder / str(rows) / "graphs" / f"{graph}.onnx"
            for digest, path in paths.items():
                self._bulk.lend_file(digest, path, 0, path.stat().st_size)
            self._graphs = tuple(paths)
            self._holders = ShapeHolders(
                self._membership, NodeDeliveries(self._trips, self._bulk), pieces, self._assigned, self._pick,
                self._warm, lambda node: 0, self.look,
            )  # fmt: skip
            self._routes.ends = ends_and_begins(self._cuts[self.form.rows[0]], self.form)
            lanes = min(len(self._cuts[self.form.rows[0]].course.schedule.steps), FLIGHTS)
            alone = all(
                len(step.segments) == 1 for step in self._cuts[self.form.rows[0]].course.schedule.steps
            )
            self._machine = SessionScheduler(
                self.form, self._holders, self._room, lanes if alone else 1, bool(self._routes.ends)
            )
        self._holders.ensure()
        await self._holders.settled(math.inf, seek=True)

    def _read(self) -> list[list[StoredPiece]]:
        """The cuts, and by part what a node needs for all of them. Blocks."""
        found: list[dict[str, StoredPiece]] = [{} for _ in self.form.caches]
        for rows in self.form.rows:
            folder = self._folder / str(rows)
            files = CutFolder(self._model, folder)
            course = Course(files.schedule())
            cut = loads_pieces((folder / "pieces.json").read_text())
            tables = loads_tables((folder / "tables.json").read_text())
            ends = folder / "ends.json"  # of more rows there is none, nor of what earlier releases cut
            joined = loads_ends(ends.read_text()) if ends.exists() else {}
            self._cuts[rows] = RowsCut(rows, course, cut, tables, joined)
            for part, own in enumerate(found):
                pieces = pieces_of(self._deployment, rows_shape(rows), course, part, files, self._weights)
                own |= {piece.name: piece for piece in pieces}
        return [list(own.values()) for own in found]

    async def _warm(self, node: str, part: int) -> None:
        """Have the node load the part's graphs, with its weights in them; and forget what an earlier life of
        this aggregator had it store."""
        failed = self._untried
        scope = f"{cache_scope(self._deployment, self.life)}warm{failed or ''}.p{part}/"
        lane = -1 - part - failed * len(self.form.caches)
        try:
            for rows in sorted(self._cuts.keys() & WARM_ROWS):
                spans = (TokenSpan(part, 0, 1),) if self.form.by_tokens else ()
                chunk = SessionRows(0, 0, 0, (0,), spans, memory=1)
                if self.form.states:
                    states = np.zeros((1, self.form.states_width), np.float32)
                    remembered = SessionRows(0, 0, 0, (), memory=1, states=states)
                    await self._warm_up(node, part, scope, lane, Flight(0, 0, rows, (), (remembered,)))
                await self._warm_up(node, part, scope, lane, Flight(0, 0, rows, (), (chunk,)))
        except EdgeAttentionError:
            # It may have stored some of it, and drops that when it is back. Tried again it is by other names:
            # what it drops late must not be what it stores then.
            self._untried += 1
            for one in (scope, lane_of(self._deployment, self.life, lane)):
                self._owed.owe(one, (node,))
            raise
        self._trips.post(node, (Drop((scope, lane_of(self._deployment, self.life, lane))),))

    async def _warm_up(self, node: str, part: int, scope: str, lane: int, flight: Flight) -> None:
        cut = self._cuts[flight.rows]
        own, ends = cut.course.parts[part], self._routes.ends
        asked = [[one] for one in map(AskedSegment, own)]
        if flight.memory:
            asked = [[one] for (one,) in asked if self._programs.remembers(cut, one.one)]
        elif cut.ends and part in ends:
            asked.append([AskedSegment(own[-1]), AskedSegment(own[0], (ends[part], self.form.ids))])
        for number, asks in enumerate(asked):
            call = self._programs.call(cut, asks, (scope,), lane, flight.memory)
            errand = Errand(
                shard=f"warm.part{part}.{number}",
                holders=(node,),
                coverage=range(part, part + 1),
                instructions=call.instructions,
                wanted=call.wanted,
                inline=call.zeros(flight, self.form),
                prepared=call.prepared,
            )
            outcome = await self._trips.make([errand], WARM_SECONDS, believed=())
            for missing in outcome.missing.values():
                log.info("node %s, part %d, step %d: %s", node, part, asks[0].one.step, missing.text)
                raise missing.error or missing.cause(missing.text)

    def _room(self, node: str) -> int:
        """Bytes that sessions may store on a node."""
        member = self._membership.get(node)
        if member is None:
            return 0
        limit = member.register.memory_limit
        return int(min(CACHE_PART * limit, max(limit - self._taken(node), 0)))

    # Performing

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Fly(flight):
                    self._start(self._fly(flight))
                case CallAnswered(session, logits):
                    self._end(session, logits)
                case CallRefused(session, error):
                    log.info("a session's call ended badly: %s", told(self.machine.transitions))
                    self._end(session, error)
                case ForgetSession(slot, nodes):
                    self._owed.owe(slot_scope(self._deployment, self.life, slot), nodes, slot)
                case ForgetLane(lane, nodes):
                    self._owed.owe(lane_of(self._deployment, self.life, lane), nodes)
                case SeekHolder(part):
                    if self._holders is not None:
                        self._holders.seek(part, frozenset())
                case SupplyHolder(part, node):
                    if self._holders is not None:
                        self._holders.supply(part, node)
        self._set_clock()

    def _end(self, session: int, answer: Array | EdgeAttentionError) -> None:
        future = self._answers.get(session)
        if future is None or future.done():
            return
        if isinstance(answer, EdgeAttentionError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, flight: Flight) -> None:
        again, clean, lacks = False, False, None
        try:
            begun, self._begun = self._begun, None
            flown = await fly(self._trips, self._routes, self.form, self._cuts[flight.rows], flight, begun)
            logits = flown.logits
            self._begun = flown.begun
            if not np.isfinite(logits).all():
                log.warning("a decoder's logits are not all finite")
            self._perform(self.machine.landed(flight.number, logits, time.monotonic()))
            return
        except FlightLost as lost:
            error, again, clean, lacks = lost.error, lost.again, lost.clean, lost.lacks
        except EdgeAttentionError as problem:
            error = problem
        except Exception as problem:
            log.exception("a trip of sessions cannot go on")
            error = Internal(f"a trip of sessions cannot go on: {problem!r}")
        now = time.monotonic()
        self._perform(self.machine.lost(flight.number, error, now, again=again, clean=clean, lacks=lacks))

    def _set_clock(self) -> None:
        """Have the machine's time come. A timer that is too early stays: nobody sets one for each token."""
        wake = math.inf if self._machine is None or self._closed else self._machine.wake
        if self._timer is not None:
            if self._timer.when() <= wake < math.inf:
                return
            self._timer.cancel()
            self._timer = None
        if wake < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(loop.time() + max(wake - time.monotonic(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self.machine.tick(time.monotonic()))


def _answered(answer: asyncio.Future[Array]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None


WARM_SECONDS = 600.0
"""Loading one piece with its weights takes no longer."""
