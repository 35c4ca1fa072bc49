"""Performs what a request through a cut model decides (requests.py): asks nodes, folds, goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aggregator.engine.bulk import Bulk
from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.returned import Returned
from aggregator.engine.spool import SpooledTensor
from aggregator.engine.trip import Errand, Trips
from aggregator.inference.calls import SegmentCall, SegmentCalls, SentTensor
from aggregator.inference.course import Course
from aggregator.inference.holding import ShapeHolders
from aggregator.inference.lending import lend
from aggregator.inference.model_answer import MakesNaN, SegmentRun
from aggregator.inference.request_actions import Action, AskSegment, Ended, Seek, Supply
from aggregator.inference.requests import FoldOutputs, ModelRequest
from edge_attention.core.errors import (
    Cancelled,
    EdgeAttentionError,
    Internal,
    InvalidProgram,
    InvalidTensor,
    NotFinite,
    NotFound,
)
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.tensors import Array
from edge_attention.core.transitions import told

__all__ = ["RunningRequest", "ShapeOfModel"]

log = logging.getLogger(__name__)

BESIDE = 2 * 1024 * 1024
"""Bytes of a segment's boundaries from which they are checked, folded and made beside the loop: on it they
would hold it for a millisecond or more, and a thread costs 0.1."""
END_SECONDS = 1.0
"""What nodes were asked before it began again has so long to end, once there is an answer; a lane in which it
has not is used by nobody else."""


@dataclass(eq=False)
class ShapeOfModel:
    """A deployment for inputs of one shape."""

    course: Course
    calls: SegmentCalls
    holders: ShapeHolders
    graphs: tuple[str, ...]
    """Digests that are lent."""


class RunningRequest:
    """Performs what one request decides."""

    def __init__(
        self,
        trips: Trips,
        bulk: Bulk,
        shape: ShapeOfModel,
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
        self._turn = asyncio.Lock()
        """Whoever folds beside the loop holds it."""
        self._folds = False
        self._later: deque[Callable[[], Sequence[Action]]] = deque()
        """Events that wait until it has."""

    async def run(self) -> None:
        """Returns when there is an answer. Raises what the request ended with."""
        try:
            self._perform(self.machine.start())
            self._set_clock()
            await self._over
            self.clean = not (self._lost or self.machine.abandoned)
            if self.clean and self._tasks:
                # Nothing is open, so they end by themselves; but for what was asked before it began again.
                _, going_on = await asyncio.wait(self._tasks, timeout=END_SECONDS)
                self.clean = not (self._lost or going_on)
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
        self._event(lambda: self.machine.look(time.monotonic()))

    def end(self, error: EdgeAttentionError) -> None:
        """End it with `error`."""
        self._event(lambda: self.machine.end(error))

    def _set_clock(self) -> None:
        delay = max(self.machine.wake - time.monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._event(self._ticked)

    def _ticked(self) -> Sequence[Action]:
        actions = self.machine.tick(time.monotonic())
        if self.machine.over is None:
            self._set_clock()
        return actions

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
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it has begun

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
        meetings = self.machine.meetings
        asks = {f"part{ask.one.part}.step{ask.one.step}": ask for ask in calls}
        loans: list[str] = []

        def take(answer: Returned) -> None:
            ask = asks[answer.shard]
            call = calls[ask]
            self.received[ask.node] += call.up
            on_disk = any(isinstance(tensor, SpooledTensor) for tensor in answer.tensors.values())
            if on_disk or call.up >= BESIDE or self._folds:
                self._start(self._fold_beside(ask, call, answer))
                return
            self._came(ask, call, {name: answer.array(name) for name in answer.tensors})

        try:
            errands: list[Errand] = []
            for shard, ask in asks.items():
                call, part = calls[ask], ask.one.part
                large = await self._large(call, meetings)
                self.sent[ask.node] += call.down
                errands.append(
                    Errand(
                        shard=shard,
                        holders=(ask.node,),
                        coverage=range(part, part + 1),
                        instructions=call.instructions,
                        wanted=call.wanted,
                        inline=await self._inline(call, meetings),
                        lent=await lend(self._bulk, large, loans) if large else (),
                        prepared=call.prepared,
                        releases=call.releases,
                    )
                )
            outcome = await self._trips.make(
                errands, self._left, take, believed=(), patient=False, spooled=True, lying=True
            )
        finally:
            for digest in loans:
                self._bulk.take_back(digest)
        for shard, node in outcome.answered.items():
            ask, run = asks[shard], outcome.run_seconds.get(shard, 0.0)
            call, one = calls[ask], ask.one
            self.seconds[f"part {one.part}"] += run
            took = outcome.seconds.get(shard, 0.0)
            alone = shard in outcome.alone
            self.segments.append(SegmentRun(one.step, one.part, node, run, took, call.down, call.up, alone))
        self._missed(asks, outcome)

    def _came(self, ask: AskSegment, call: SegmentCall, outputs: Mapping[str, Array]) -> None:
        """Fold what a segment returned. Raises what is wrong with it."""
        began = time.monotonic()
        call.require_held(outputs)
        actions = self.machine.came(ask.number, outputs, began)
        self.seconds["fold"] += time.monotonic() - began
        self._perform(actions)

    async def _fold_beside(self, ask: AskSegment, call: SegmentCall, answer: Returned) -> None:
        """The same of what is large, or on the disk: it is read, checked and folded beside the loop.

        One at a time of a request: what folds first is the machine's to say, and it hears of nothing else
        meanwhile.
        """

        def read() -> dict[str, Array]:
            return {name: answer.array(name) for name in answer.tensors}

        try:
            async with self._turn:
                outputs = await asyncio.to_thread(read)
                fold = self.machine.folding(ask.number)
                if fold is None:
                    return
                began = time.monotonic()
                self._folds = True
                try:
                    complete = await asyncio.to_thread(_folded, fold, call, outputs)
                finally:
                    self._folds = False
                self.seconds["fold"] += time.monotonic() - began
                self._perform(self.machine.folded(ask.number, complete, time.monotonic()))
        except EdgeAttentionError as error:
            named = _of_inputs(type(error)(f"node {ask.node!r}: {error.message}"))
            self._event(lambda: self.machine.failed(ask.number, named, time.monotonic()))
        finally:
            answer.close()
            self._catch_up()

    def _event(self, event: Callable[[], Sequence[Action]]) -> None:
        """Tell the machine of something: now, or once what folds beside the loop has been folded."""
        if self._folds:
            self._later.append(event)
        else:
            self._perform(event())

    def _catch_up(self) -> None:
        while self._later and not self._folds:
            self._perform(self._later.popleft()())

    async def _inline(self, call: SegmentCall, meetings: Meetings) -> dict[str, Array]:
        """What comes with the call, as it travels: made beside the loop where it is large."""
        if sum(tensor.nbytes for tensor in call.slots.values()) < BESIDE:
            return _elements(call.slots, self._feeds, meetings)
        return await asyncio.to_thread(_elements, call.slots, self._feeds, meetings)

    async def _large(self, call: SegmentCall, meetings: Meetings) -> dict[str, tuple[SentTensor, Array]]:
        if not call.lent:
            return {}
        made = await asyncio.to_thread(_elements, call.lent, self._feeds, meetings)
        return {name: (tensor, made[name]) for name, tensor in call.lent.items()}

    def _missed(self, asks: Mapping[str, AskSegment], outcome: Outcome) -> None:
        for shard, missing in outcome.missing.items():
            self._lost = True
            if missing.kind is MissingKind.LATE:
                continue  # the clock says so
            error = missing.error or missing.cause(missing.text)
            error = _of_inputs(error)
            away, lacks = missing.kind is MissingKind.LOST, isinstance(missing.error, NotFound)
            number = asks[shard].number
            self._event(partial(self.machine.failed, number, error, time.monotonic(), away=away, lacks=lacks))

    @property
    def _left(self) -> float:
        return max(self.machine.deadline - time.monotonic(), 0.001)


def _folded(fold: FoldOutputs, call: SegmentCall, outputs: Mapping[str, Array]) -> Sequence[str]:
    call.require_held(outputs)
    return fold(outputs)


def _elements(
    tensors: Mapping[str, SentTensor], feeds: Mapping[str, Array], meetings: Meetings
) -> dict[str, Array]:
    return {name: tensor.elements(feeds, meetings) for name, tensor in tensors.items()}


def _of_inputs(error: EdgeAttentionError) -> EdgeAttentionError:
    """The same, in words of who asked, where it is what was asked that parts cannot go on with."""
    if isinstance(error, InvalidProgram):
        # The program is ours, and has been loaded: it is what came into it that it cannot run with.
        return InvalidTensor(f"the model cannot be computed of these inputs: {error.message}")
    if isinstance(error, NotFinite):
        return MakesNaN(error.message)
    return error
