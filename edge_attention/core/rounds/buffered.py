"""Rounds without waiting: nodes are always at work, and every K updates make a step of the server.

FedBuff (Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2022,
https://arxiv.org/abs/2106.06639), as a pure state machine; times in seconds. The shell performs the actions,
runs the tasks, tells what becomes of them, and calls `tick` at `wake`.

A node goes   idle -> busy -> idle, or out for good. A node that finishes while a step is taken is asked again
when the step is committed, so that it starts from the new version. Nobody waits for a node that is slow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.rounds.progress import NodeProgress, NodeWork, name_nodes, seconds_until
from edge_attention.core.rounds.synchronous import QUARANTINED
from edge_attention.core.rounds.synchronous import Again as Again
from edge_attention.core.rounds.synchronous import Quarantine as Quarantine
from edge_attention.core.sentence import Sentence
from edge_attention.core.transitions import Transition, recent


class AskTurn(NamedTuple):
    """Run a task on the node, from parameters of `version`, over its rows of round `turn`."""

    node: str
    version: int
    turn: int


class BufferedUpdate(NamedTuple):
    """An update of a node: what it started from, which of its turns, and versions committed since."""

    node: str
    version: int
    turn: int
    staleness: int


class TakeStep(NamedTuple):
    """Fold these, step, commit, then call `committed`. By node and turn."""

    contributions: tuple[BufferedUpdate, ...]


class DropUpdate(NamedTuple):
    """Free what the node returned in that turn: it is too old to be folded."""

    node: str
    turn: int
    staleness: int


Action = AskTurn | TakeStep | DropUpdate | Quarantine | Again


@dataclass(frozen=True)
class BufferRules:
    """How many updates make a step, and what is too old.

    Attributes:
        buffer: updates a step takes (K).
        concurrency: nodes at work at a time; None: all.
        max_staleness: versions an update may lie behind when it is folded; None: any number.
        patience_seconds: without any answer, after which it gives up.
    """

    buffer: int
    concurrency: int | None = None
    max_staleness: int | None = None
    patience_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise InvalidArgument(f"the buffer is of {self.buffer} updates; it is 1 or more")
        if self.concurrency is not None and self.concurrency < 1:
            raise InvalidArgument(f"concurrency is {self.concurrency}; it is 1 or more")
        if self.max_staleness is not None and self.max_staleness < 0:
            raise InvalidArgument(f"max_staleness is {self.max_staleness}; it is 0 or more")
        if not 0 < self.patience_seconds < math.inf:
            raise InvalidArgument(
                f"patience_seconds is {self.patience_seconds}; it is a number of seconds above 0"
            )


class _Waiting(NamedTuple):
    """An update that waits to be folded."""

    node: str
    version: int
    turn: int


@dataclass
class _BusyTask:
    version: int
    turn: int
    progress: NodeProgress


class BufferState(Enum):
    COLLECTING = "collecting"
    STEPPING = "stepping"
    """A step was asked for and is not committed yet."""
    OVER = "over"
    """It has given up waiting: nothing more is asked."""


class Buffered:
    """All rounds of a run after `version`, over `nodes`.

    Turns begin after `version` on every node, so that a run that goes on after a restart takes other rows
    than at its start.

    Attributes:
        transitions: the last changes, of its nodes and its own, for the log.

    Raises:
        InvalidArgument: no node, or one twice.
    """

    def __init__(self, rules: BufferRules, nodes: Sequence[str], version: int, now: float) -> None:
        if not nodes or len(set(nodes)) != len(nodes):
            raise InvalidArgument(f"no node trains, or one twice: {', '.join(nodes)}")
        self._rules = rules
        self.version = version
        self.state = BufferState.COLLECTING
        self.transitions: deque[Transition] = recent()
        self.failures: dict[str, str] = {}
        """Node that failed since the last commit -> why. It is asked again after the next."""
        self.quarantined: dict[str, str] = {}
        self.dropped = 0
        """How many updates were too old to be folded."""
        self._turns = dict.fromkeys(nodes, version)
        self._idle = dict.fromkeys(nodes)  # in the order of asking: who has rested longest comes first
        self._busy: dict[str, _BusyTask] = {}
        self._buffer: list[_Waiting] = []
        self._heard = now

    # Events

    def start(self, now: float) -> list[Action]:
        """Put nodes to work. To be called once, before any other event."""
        return self._go_on(now)

    def started(self, node: str, now: float) -> list[Action]:
        """The node has the task and works on it."""
        if node in self._busy:
            progress = self._busy[node].progress
            before = progress.work
            progress.started(now)
            self._note(node, before, progress.work, now)
        return self._go_on(now)

    def progress(self, node: str, done: int, total: int, now: float) -> list[Action]:
        """`done` of the `total` chunks of the node's answer have come."""
        if node in self._busy:
            progress = self._busy[node].progress
            before = progress.work
            progress.uploaded(done, total, now)
            self._note(node, before, progress.work, now)
        return self._go_on(now)

    def finished(self, node: str, now: float) -> list[Action]:
        """The node's answer is here, whole and checked."""
        task = self._busy.pop(node, None)
        if task is not None:
            self._heard = now
            self._idle[node] = None
            self._note(node, task.progress.work, NodeWork.FINISHED, now)
            self._buffer.append(_Waiting(node, task.version, task.turn))
        return self._go_on(now)

    def failed(self, node: str, reason: str, now: float) -> list[Action]:
        """The node cannot do its task: it rests until the next version."""
        task = self._busy.pop(node, None)
        if task is not None:
            self.failures[node] = reason
            self._note(node, task.progress.work, NodeWork.IDLE, now)
        return self._go_on(now)

    def refused(self, node: str, reason: str, now: float) -> list[Action]:
        """What the node returned must not be folded (NaN, a wrong shape): it is out, and stays out.

        What it returned before and still waits goes too.
        """
        task = self._busy.pop(node, None)
        if task is None:
            return self._go_on(now)
        self._note(node, task.progress.work, NodeWork.LEFT_OUT, now)
        self.quarantined[node] = reason
        self._buffer = [waiting for waiting in self._buffer if waiting.node != node]
        return [Quarantine(node, reason), *self._go_on(now)]

    def lost(self, node: str, now: float) -> list[Action]:
        """The node's connection is gone: another may work in its place. It may come back and still answer."""
        if node in self._busy:
            self._busy[node].progress.lost = True
        return self._go_on(now)

    def back(self, node: str, now: float) -> list[Action]:
        """The node is connected again and goes on with its task."""
        if node in self._busy:
            self._busy[node].progress.back(now)
        return self._go_on(now)

    def committed(self, version: int, now: float) -> list[Action]:
        """The step asked for is taken, and `version` is current."""
        if self.state is BufferState.STEPPING:
            self._turn(BufferState.COLLECTING, now)
        self.version = version
        self._heard = now
        self._idle |= dict.fromkeys(self.failures)
        self.failures.clear()
        return self._go_on(now)

    def tick(self, now: float) -> list[Action]:
        """What is due by `now`, a reading of the clock. Call it at `wake`; earlier does no harm."""
        return self._go_on(now)

    # What can be asked

    @property
    def over(self) -> bool:
        return self.state is BufferState.OVER

    @property
    def stepping(self) -> bool:
        """Whether a step was asked for that is not committed yet."""
        return self.state is BufferState.STEPPING

    @property
    def wake(self) -> float | None:
        """When to call `tick`, if nothing else happens before."""
        return None if self.over or self.stepping else self._heard + self._rules.patience_seconds

    @property
    def waited(self) -> tuple[str, ...]:
        """The nodes at work."""
        return tuple(sorted(self._busy))

    @property
    def missing(self) -> int:
        """1 where nobody works who is not lost: one node is enough to go on."""
        at_work = any(not task.progress.lost for task in self._busy.values())
        return int(not (self.over or self.stepping or at_work))

    def waits(self, now: float) -> str:
        """As "round 8 waits for 2 more of 5 updates from edge-3: computes for 3.0 s, gives up in 118 s"."""
        if self.over:
            return ""
        if self.stepping:
            return f"round {self.version + 1} waits for version {self.version + 1} to be committed"
        missing, until = self._rules.buffer - len(self._buffer), self._heard + self._rules.patience_seconds
        return Sentence(
            f"round {self.version + 1} waits for {missing} more of {self._rules.buffer} updates from ",
            name_nodes(self._at_work(), now),
            f", gives up in {seconds_until(until, now)}",
        )

    def doing(self, now: float) -> Mapping[str, str]:
        """Node -> what it does, for a person."""
        texts = dict.fromkeys(self._idle, "idle")
        texts |= {node: progress.describe(now) for node, progress in self._at_work().items()}
        texts |= {node: f"failed: {reason}" for node, reason in self.failures.items()}
        texts |= {node: f"{QUARANTINED}{reason}" for node, reason in self.quarantined.items()}
        return {node: texts[node] for node in self._turns if node in texts}

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        parts = [*self._idle, *self._busy, *self.failures, *self.quarantined]
        assert len(set(parts)) == len(parts), "a node is at two things at once"
        assert set(parts) <= self._turns.keys(), "a node that is none of the run's"
        waiting = [(update.node, update.turn) for update in self._buffer]
        assert len(set(waiting)) == len(waiting), "an update waits twice"
        assert all(turn <= self._turns[node] for node, turn in waiting), "of a turn to come"
        assert not {node for node, _ in waiting} & self.quarantined.keys(), "of a node in quarantine"
        assert (self.wake is None) == (self.state is not BufferState.COLLECTING)
        if self.state is BufferState.OVER:
            assert not self._busy, "over, and still waiting"
            return
        assert len(parts) == len(self._turns), "a node is nowhere"
        assert all(task.version <= self.version for task in self._busy.values()), "from a version to come"
        if self.state is BufferState.COLLECTING:
            assert len(self._buffer) < self._rules.buffer, "enough for a step, and none is taken"

    # Inside

    def _note(self, node: str, before: NodeWork, after: NodeWork, now: float) -> None:
        if before is not after:
            self.transitions.append((now, (node,), before, after))

    def _turn(self, state: BufferState, now: float) -> None:
        self.transitions.append((now, (f"version {self.version}",), self.state, state))
        self.state = state

    def _at_work(self) -> dict[str, NodeProgress]:
        return {node: self._busy[node].progress for node in self.waited}

    def _go_on(self, now: float) -> list[Action]:
        """Do all that can be done at `now`: take a step, or ask idle nodes."""
        if self.over or self.stepping:
            return []
        actions = self._drop_old()
        if len(self._buffer) >= self._rules.buffer:
            return [*actions, self._step(now)]
        actions += self._ask(now)
        if not self._busy:
            quarantined = {node: f"{QUARANTINED}{reason}" for node, reason in self.quarantined.items()}
            why = "; ".join(f"{node}: {text}" for node, text in (self.failures | quarantined).items())
            return [*actions, self._give_up(f"no node can be asked: {why}", now)]
        if now >= self._heard + self._rules.patience_seconds:
            waited = name_nodes(self._at_work(), now)
            reason = f"no answer within {self._rules.patience_seconds:.0f} s from {waited}"
            return [*actions, self._give_up(reason, now)]
        return actions

    def _drop_old(self) -> list[Action]:
        limit = self._rules.max_staleness
        if limit is None:
            return []
        old = [waiting for waiting in self._buffer if self.version - waiting.version > limit]
        self._buffer = [waiting for waiting in self._buffer if self.version - waiting.version <= limit]
        self.dropped += len(old)
        return [DropUpdate(waiting.node, waiting.turn, self.version - waiting.version) for waiting in old]

    def _step(self, now: float) -> TakeStep:
        taken, self._buffer = self._buffer[: self._rules.buffer], self._buffer[self._rules.buffer :]
        self._turn(BufferState.STEPPING, now)
        # In order of name, not of arrival: the same updates give the same bits.
        taken.sort()
        return TakeStep(tuple(BufferedUpdate(*waiting, self.version - waiting.version) for waiting in taken))

    def _ask(self, now: float) -> list[Action]:
        """Put idle nodes to work, as many as may be; lost ones do not count."""
        free = len(self._idle)
        if free and self._rules.concurrency is not None:
            at_work = sum(not task.progress.lost for task in self._busy.values())
            free = self._rules.concurrency - at_work
        actions: list[Action] = []
        for node in list(self._idle)[: max(free, 0)]:
            del self._idle[node]
            self._turns[node] += 1
            self._busy[node] = _BusyTask(self.version, self._turns[node], NodeProgress(now))
            self._note(node, NodeWork.IDLE, NodeWork.ASKED, now)
            actions.append(AskTurn(node, self.version, self._turns[node]))
        return actions

    def _give_up(self, reason: str, now: float) -> Again:
        self._busy = {}
        self._turn(BufferState.OVER, now)
        return Again(f"round {self.version + 1} cannot end: {reason}")
