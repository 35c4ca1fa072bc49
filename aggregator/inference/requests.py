"""One request through a cut model: which part runs which segment on which node next. A pure state machine.

    waits for boundaries ──> asked ──> its contributions fold ──> ...    until the results are complete
             ^                 |
             '── its node has gone: another one runs again what this one had kept, and goes on

A part goes    idle -> runs -> idle -> ... -> (through)
                 '---> waits for a node ---'        or is left out, where the caller takes what is partial

What a part keeps on its node follows from the feeds and from the boundaries, which all passed here. So when
the node goes, another one that holds the part runs those of its earlier segments again whose results it
needs; nothing of that is folded a second time. Where a boundary that this takes is not recorded any more, the
request begins again from its feeds.

The shell performs the actions: runs segments, looks for nodes, and tells what came of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aggregator.inference.boundary_room import RecordRoom
from aggregator.inference.course import Course
from aggregator.inference.left_out import holes_without, may_leave_out
from aggregator.inference.part_of_request import PartOfRequest, PartPhase, PartsNodes
from aggregator.inference.request_actions import Action, AskSegment, Ended, Seek, Supply
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, Unavailable
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.schedule.extents import Extent, extent_shape, place
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.tensors import Array
from edge_attention.core.transitions import Transition, recent

__all__ = ["FoldOutputs", "ModelRequest"]

FoldOutputs = Callable[[Mapping[str, Array]], Sequence[str]]
"""Folds a segment's outputs; returns the boundaries that are complete by it."""

RESTARTS = 3
"""Times that one request begins again from its feeds; then it is refused."""
LACKED = 3
"""Times that one node may say, in one request, that it lacks what it was given for a part."""
AWAY = 8
"""Times that one node may be lost in the middle of one request's segments; then it is not asked again."""


class ModelRequest:
    """One request of the course, which has to be over at `deadline` of the clock.

    Call `start` first and perform what each event returns, in order; times are readings of one steady clock.

    Args:
        nodes: what is known of nodes, now.
        record: where boundaries that may be needed again are counted.
        go_on: when it goes on without parts that wait for a node, where what comes of it still says
            something; None: it never does.

    Attributes:
        meetings: its boundaries.
        over: the last action, once it has ended.
        transitions: the last changes of its parts, for the log.
        restarts: how often it has begun again.
        moves: how often a part went on on another node, or another process of it.
        abandoned: whether something was asked still when it ended.
    """

    def __init__(
        self, course: Course, nodes: PartsNodes, record: RecordRoom, now: float, deadline: float,
        go_on: float | None = None,
    ) -> None:  # fmt: skip
        self.course = course
        self.meetings = Meetings(course.folds)
        self.over: Ended | None = None
        self.transitions: deque[Transition] = recent()
        self.restarts = 0
        self.moves = 0
        self.abandoned = False
        self._nodes = nodes
        self._record = record
        self.deadline = deadline
        self._go_on = go_on
        self._numbers = 0
        self._parts = [PartOfRequest(part) for part in range(len(course.parts))]
        self._asked: dict[int, tuple[PartOfRequest, AskSegment]] = {}
        self._forgotten: set[str] = set()
        self._counted = 0
        self._now = now
        self._began = now

    # Events

    def start(self) -> list[Action]:
        """Ask for what needs nothing of another part. To be called once, before any other event."""
        return self._advance(self._parts)

    def came(self, number: int, outputs: Mapping[str, Array], now: float) -> list[Action]:
        """What was asked as `number` has run; `outputs`: what the graph's outputs are that it returns.

        Nothing where nobody waits for that any more.

        Raises:
            EdgeAttentionError: it is not what was asked for. Nothing has changed: tell of it by `failed`.
        """
        fold = self.folding(number)
        return [] if fold is None else self.folded(number, fold(outputs), now)

    def folding(self, number: int) -> FoldOutputs | None:
        """The first half of `came`: what folds the outputs, in any thread, and raises as `came`.

        Until `folded` is told what it returned there must be no other event: boundaries change meanwhile.
        None: nobody waits for that any more.
        """
        _, ask = self._asked.get(number, (None, None))
        if ask is None or self.over is not None:
            return None
        if ask.again or not ask.one.contributes:
            return lambda outputs: []
        meetings, one = self.meetings, ask.one
        return lambda outputs: meetings.add(one.step, one.part, outputs)

    def folded(self, number: int, complete: Sequence[str], now: float) -> list[Action]:
        """The other half: what was asked as `number` is folded, and these boundaries are complete by it."""
        self._now = now
        part, ask = self._asked.pop(number, (None, None))
        if part is None or ask is None or self.over is not None:
            return []
        part.number = 0
        self._turn(part, PartPhase.IDLE, f"has run step {ask.one.step}")
        if ask.again:
            part.again.remove(ask.one.index)
            return self._advance([part])
        part.next += 1
        if complete and all(self.meetings.complete(name) for name in self.course.results):
            return self._end(None)
        if complete:
            self._tidy()
        return self._advance(self._parts if complete else [part])

    def failed(
        self, number: int, error: EdgeAttentionError, now: float, *, away: bool = False, lacks: bool = False
    ) -> list[Action]:
        """What was asked as `number` did not come to its end.

        `away`: the node has gone; `lacks`: it says that it does not have what it was given.
        """
        self._now = now
        part, ask = self._asked.pop(number, (None, None))
        if part is None or ask is None or self.over is not None:
            return []
        part.number = 0
        node = ask.node
        self._turn(part, PartPhase.IDLE, f"not run by {node}")
        if away or lacks:
            times = part.away if away else part.lacked
            times[node] = times.get(node, 0) + 1
            if times[node] < (AWAY if away else LACKED):
                if away:
                    return self._advance([part])
                part.node = ""
                return [Supply(part.part, node), *self._advance([part])]
        part.tried[node] = error
        part.node = ""
        if any(holder not in part.tried for holder in self._nodes.holders(part.part)):
            return self._advance([part])
        return self._end(error)

    def look(self, now: float) -> list[Action]:
        """Something has changed with the nodes: who is there, or who holds what."""
        self._now = now
        return [] if self.over is not None else self._advance(self._parts)

    def tick(self, now: float) -> list[Action]:
        """What is due by `now`. Call it at `wake`; earlier does no harm."""
        self._now = now
        if self.over is not None:
            return []
        if now >= self.deadline:
            return self._end(DeadlineExceeded(f"no answer in {now - self._began:.3g} s: {self.waits()}"))
        if self._go_on is not None and now >= self._go_on:
            self._go_on = None
            waiting = [part for part in self._parts if part.phase is PartPhase.WAITS]
            gone = {part.part for part in waiting}
            if gone and may_leave_out(self.course, gone, self._nexts):
                for part in waiting:
                    self._turn(part, PartPhase.LEFT_OUT, "is left out")
                    self.meetings.leave_out(part.part)
                if all(self.meetings.complete(name) for name in self.course.results):
                    return self._end(None)
                return self._advance(self._parts)
        return []

    def end(self, error: EdgeAttentionError) -> list[Action]:
        """Nobody waits for it any more."""
        return [] if self.over is not None else self._end(error)

    # What can be asked

    @property
    def wake(self) -> float:
        """When to call `tick`."""
        return self.deadline if self._go_on is None else min(self._go_on, self.deadline)

    @property
    def open(self) -> tuple[int, ...]:
        """The numbers of what is asked now."""
        return tuple(self._asked)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node of each part that has one and is not through."""
        done = self.over is not None
        return tuple(p.node for p in self._parts if p.node and not done)

    def of(self, part: int) -> tuple[PartPhase, str, int]:
        """How a part stands: its phase, its node, and which of its segments is to contribute next."""
        return self._parts[part].phase, self._parts[part].node, self._parts[part].next

    def waits(self) -> str:
        """For a person: what the request waits for."""
        found = []
        for part in self._parts:
            own = self.course.parts[part.part]
            if part.phase is PartPhase.RUNS:
                step = self._asked[part.number][1].one.step
                found.append(f"part {part.part} waits for node {part.node!r} to run step {step}")
            elif part.phase is PartPhase.WAITS:
                said = [self._nodes.why(part.part), *(error.message for error in part.tried.values())]
                step = own[part.next].step
                found.append(f"part {part.part} cannot run step {step}: {'; '.join(filter(None, said))}")
        return "; ".join(found) or "nothing"

    def results(self) -> dict[str, Array]:
        """The model's outputs, once it has ended without an error. What nobody contributed is NaN."""
        found: dict[str, Array] = {}
        for output, boundary in self.course.schedule.results.items():
            if boundary not in self.course.schedule.boundaries:
                continue
            array = self.meetings.whole(boundary)
            if not self.meetings.holds(boundary):
                array = array.copy()
                for extent in self._holes().get(boundary, ()):
                    _fill(array, extent)
            found[output] = array
        return found

    @property
    def lacking(self) -> str:
        """In words, what an answer lacks; empty: nothing."""
        said = [self.course.schedule.lacking] if self.course.schedule.lacking else []
        for part in self._parts:
            if part.phase is PartPhase.LEFT_OUT:
                step = self.course.parts[part.part][part.next].step
                said.append(f"part {part.part} from step {step} on: no node held it in time")
        return "; ".join(said)

    @property
    def coverage(self) -> float:
        """How much of the model's work an answer stands on; 1.0: all of it."""
        gone = 0.0
        for name, extents in self._holes().items():
            shape = self.course.schedule.boundaries[name].spec.shape
            size = sum(_size(extent_shape(shape, extent)) for extent in extents)
            gone = max(gone, size / max(_size(shape), 1))
        return self.course.schedule.coverage * (1.0 - min(gone, 1.0))

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        for part in self._parts:
            own = self.course.parts[part.part]
            assert 0 <= part.next <= len(own)
            assert (part.phase is PartPhase.RUNS) == (part.number in self._asked and self.over is None), part
            assert part.phase is not PartPhase.RUNS or part.node, "runs nowhere"
            assert all(index < part.next for index in part.again), "to run again what has not run"
            if part.phase is PartPhase.WAITS:
                assert part.next < len(own), "through, and waits for a node"
        assert all(self._parts[ask.one.part].number == n for n, (_, ask) in self._asked.items())
        if self.over is not None:
            assert not self._asked, "over, and something is asked"
            assert self._counted == 0, "over, and something is recorded"

    # Inside

    def _turn(self, part: PartOfRequest, phase: PartPhase, *words: str) -> None:
        self.transitions.append((self._now, (f"part {part.part}", *words), part.phase, phase))
        part.phase = phase

    def _end(self, error: EdgeAttentionError | None) -> list[Action]:
        self.over = Ended(error)
        self.abandoned = bool(self._asked)
        for part in self._parts:
            part.number = 0
            if part.phase in (PartPhase.RUNS, PartPhase.WAITS):
                self._turn(part, PartPhase.IDLE, "the request is over")
        self._asked.clear()
        self._record.change(-self._counted)
        self._counted = 0
        return [self.over]

    def _advance(self, parts: Sequence[PartOfRequest]) -> list[Action]:
        """Ask for what can run now of these."""
        actions: list[Action] = []
        for part in parts:
            if self.over is not None:
                break
            actions += self._go(part)
        return actions

    def _go(self, part: PartOfRequest) -> list[Action]:
        own = self.course.parts[part.part]
        if part.phase is PartPhase.LEFT_OUT or part.next == len(own):
            return []
        if part.phase is PartPhase.RUNS:
            if self._there(part):
                return []
            del self._asked[part.number]
            part.number = 0
            self._turn(part, PartPhase.IDLE, f"{part.node} is {self._nodes.state(part.node).value}")
        one = own[part.next]
        if not all(self.meetings.complete(name) for name in one.boundaries):
            return []  # where it runs is decided when it can
        node = self._choose(part)
        if not node:
            if part.phase is not PartPhase.WAITS:
                self._turn(part, PartPhase.WAITS)
            back = part.node and self._nodes.state(part.node) is NodeState.SUSPECT
            held = any(
                self._nodes.state(n) is NodeState.SUSPECT
                for n in self._nodes.holders(part.part)
                if n not in part.tried
            )
            return [] if back or held else [Seek(part.part, frozenset(part.tried))]
        life = self._nodes.life(node)
        if (node, life) != (part.node, part.life):
            self.moves += bool(part.life)
            part.node, part.life = node, life
            part.again = list(self.course.again(part.part, part.next))
            if self.course.recorded(part.part, part.next) & self._forgotten:
                return self._restart()
        if part.again:
            one = own[part.again[0]]
        self._numbers += 1
        ask = AskSegment(self._numbers, node, one, bool(part.again))
        self._asked[ask.number] = part, ask
        part.number = ask.number
        self._turn(part, PartPhase.RUNS, f"step {one.step} asked of", node)
        return [ask]

    def _there(self, part: PartOfRequest) -> bool:
        return self._live(part.node) and self._nodes.life(part.node) == part.life

    def _live(self, node: str) -> bool:
        return self._nodes.state(node) in (NodeState.READY, NodeState.DRAINING)

    def _choose(self, part: PartOfRequest) -> str:
        """The node that has what the part kept, if it is there; else the holder that has least in hand."""
        there = [n for n in self._nodes.holders(part.part) if n not in part.tried and self._live(n)]
        if part.node in there:
            return part.node
        ready = [n for n in there if self._nodes.state(n) is NodeState.READY]
        return min(ready or there, key=self._nodes.load, default="")

    def _restart(self) -> list[Action]:
        self.restarts += 1
        if self.restarts > RESTARTS:
            return self._end(
                Unavailable(f"nodes went {self.restarts} times in the middle of the request: try again")
            )
        self._asked.clear()
        self.meetings = Meetings(self.course.folds)
        self._forgotten.clear()
        self._record.change(-self._counted)
        self._counted = 0
        for part in self._parts:
            part.number = part.next = 0
            part.node = part.life = ""
            part.again = []
            if part.phase is not PartPhase.LEFT_OUT:
                self._turn(part, PartPhase.IDLE, "begins again")
        return self._advance(self._parts)

    def _tidy(self) -> None:
        """Forget boundaries that nobody needs, and if there is no room those that only another node would."""
        sent: set[str] = set(self.course.results)
        recorded: set[str] = set()
        for part in self._parts:
            if part.phase is not PartPhase.LEFT_OUT:
                sent |= self.course.sent(part.part, part.next)
                recorded |= self.course.recorded(part.part, part.next)
        kept = [name for name in self.course.folds.pieces if name not in self._forgotten]
        for name in kept:
            if name not in sent and name not in recorded and self.meetings.complete(name):
                self.meetings.drop(name)
                self._forgotten.add(name)
        only = [n for n in kept if n in recorded and n not in sent and n not in self._forgotten]
        size = sum(self.meetings.size(name) for name in only)
        fits = self._record.change(size - self._counted)
        self._counted = size
        if fits:
            return
        for name in only:
            freed = self.meetings.drop(name)
            self._forgotten.add(name)
            self._counted -= freed
            if self._record.change(-freed):
                return

    # Without some parts

    def _holes(self) -> dict[str, list[Extent]]:
        """What the boundaries lack without the parts that are left out."""
        return holes_without(self.course, self._left_out(), self._nexts)

    def _left_out(self) -> set[int]:
        return {part.part for part in self._parts if part.phase is PartPhase.LEFT_OUT}

    @property
    def _nexts(self) -> list[int]:
        return [part.next for part in self._parts]


def _fill(array: Array, extent: Extent) -> None:
    place(array, extent, np.full(extent_shape(array.shape, extent), np.nan, array.dtype))


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)
