"""A synchronous round: ask the selected nodes, wait for them, close. A pure state machine, times in seconds.

The shell performs the actions, runs one task a node, tells what becomes of it, and calls `tick` at `wake`.

A node goes   asked -> computes -> uploads -> finished
                '----------'----------'-----> left out   (failed, refused, or too late)

Without a deadline a round waits for every node asked; with one, it goes on at the deadline without the
others if it has its quorum, and otherwise as soon as it has. When its patience ends, it goes on with a
quorum and is to be run again without.

An answer that is not finite may be the node's fault or the model's: that is known when the others have
answered. Where one of them is finite it is the node's, which is quarantined; where none is the run diverges.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.federated import SelectionSpec
from edge_attention.core.rounds.progress import NodeProgress, NodeWork, name_nodes, seconds_until
from edge_attention.core.rounds.selection import share_of
from edge_attention.core.rounds.timings import Timings
from edge_attention.core.sentence import Sentence
from edge_attention.core.transitions import Transition, recent

QUARANTINED = "quarantined: "
"""What the reason begins with for which a node takes no more part in a run."""


class Ask(NamedTuple):
    """Run the round's task on the node, and run it again whenever the node was away."""

    node: str


class LeaveOut(NamedTuple):
    """Nobody waits for the node any more: cancel its task if it still runs, free what came of it."""

    node: str
    reason: str


class Quarantine(NamedTuple):
    """As LeaveOut, and do not select the node again until a person brings it back. A node whose answer was
    not finite is left out first, and quarantined at the end of the round."""

    node: str
    reason: str


class Close(NamedTuple):
    """The round is over: fold what these returned, in this order."""

    participants: tuple[str, ...]


class Again(NamedTuple):
    """The round is over without its quorum: cancel all its tasks, free what came, run it again or give up."""

    reason: str


class Diverge(NamedTuple):
    """The round is over: what each node returned is not finite. To run it again is no use."""

    reasons: Mapping[str, str]


Action = Ask | LeaveOut | Quarantine | Close | Again | Diverge


@dataclass(frozen=True)
class RoundRules:
    """When a round is over.

    Attributes:
        quorum: share of the nodes asked that it needs, in (0, 1].
        minimum: nodes it needs at least, as far as so many were asked.
        deadline_seconds: after which it goes on with a quorum; None: it waits for all.
        patience_seconds: after which it ends in any case.
    """

    quorum: float = 1.0
    minimum: int = 1
    deadline_seconds: float | None = None
    patience_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.quorum <= 1:
            raise InvalidArgument(f"selection: quorum is {self.quorum}; it is above 0 and at most 1")
        limits = {"deadline_seconds": self.deadline_seconds, "patience_seconds": self.patience_seconds}
        for name, seconds in limits.items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise InvalidArgument(f"{name} is {seconds}; it is a number of seconds above 0")

    @classmethod
    def of(cls, selection: SelectionSpec, timings: Timings, patience_seconds: float) -> RoundRules:
        """A job's rules now. A fixed deadline limits an adaptive one, and stands in until that is known."""
        adaptive = timings.deadline(selection.adaptive) if selection.adaptive is not None else None
        deadlines = [d for d in (selection.deadline_seconds, adaptive) if d is not None]
        deadline = min(deadlines, default=None)
        return cls(selection.quorum, selection.minimum, deadline, patience_seconds)


class RoundState(Enum):
    """How a round stands."""

    OPEN = "open"
    CLOSED = "closed"
    """It has its quorum, and nobody is waited for any more."""
    WITHOUT_QUORUM = "without quorum"
    """It cannot have its quorum any more, or its patience has ended."""
    DIVERGED = "diverged"
    """Nothing that was returned is finite."""


class Round:
    """Round `number` over parameters of `version`, asked of `selected` at `now`.

    Events return actions, each once; after Close, Again or Diverge there are none. Time counts first: an
    answer that comes after the deadline, but before `tick` said so, is late all the same.

    Attributes:
        needed: nodes that make its quorum.
        transitions: the last changes, of its nodes and its own, for the log.

    Raises:
        InvalidArgument: no node is selected, or one twice.
    """

    def __init__(
        self, number: int, version: int, rules: RoundRules, selected: Sequence[str], now: float
    ) -> None:
        if not selected or len(set(selected)) != len(selected):
            raise InvalidArgument(f"round {number} selects no node, or one twice: {', '.join(selected)}")
        self.number = number
        self.version = version
        self.selected = tuple(selected)
        self.needed = min(len(selected), max(rules.minimum, share_of(rules.quorum, len(selected))))
        self.state = RoundState.OPEN
        self.transitions: deque[Transition] = recent()
        self.left_out: dict[str, str] = {}
        """Node that is left out -> why; nodes in quarantine are in it too."""
        self.quarantined: dict[str, str] = {}
        self.nonfinite: dict[str, str] = {}
        """Node whose answer is not finite -> what it was; in `left_out`, too."""
        self.samples: dict[str, int] = {}
        """Node that has finished -> samples its update stands for."""
        self.seconds: dict[str, float] = {}
        """Node that has finished -> seconds it took."""
        self.late = 0
        """How many answers came of nodes that had been left out."""
        self._began = now
        deadline = rules.deadline_seconds
        self._gives_up = now + rules.patience_seconds
        self._deadline = math.inf if deadline is None else min(now + deadline, self._gives_up)
        self._open = {node: NodeProgress(now) for node in selected}

    # Events

    def start(self) -> list[Action]:
        """Ask all that are selected. To be called once, before any other event."""
        return [Ask(node) for node in self.selected]

    def started(self, node: str, now: float) -> list[Action]:
        """The node has the task and works on it; told again, it does so from the beginning."""
        actions = self._settle(now)
        if node in self._open:
            before = self._open[node].work
            self._open[node].started(now)
            self._note(node, before, NodeWork.COMPUTES, now)
        return actions

    def progress(self, node: str, done: int, total: int, now: float) -> list[Action]:
        """`done` of the `total` chunks of the node's answer have come."""
        actions = self._settle(now)
        if node in self._open:
            before = self._open[node].work
            self._open[node].uploaded(done, total, now)
            self._note(node, before, self._open[node].work, now)
        return actions

    def finished(self, node: str, samples: int, now: float) -> list[Action]:
        """The node's answer is here, whole and checked."""
        actions = self._settle(now)
        if node not in self._open:
            self.late += node in self.selected and node not in self.samples
            return actions
        self._note(node, self._open.pop(node).work, NodeWork.FINISHED, now)
        self.samples[node] = samples
        self.seconds[node] = now - self._began
        return actions + self._settle(now)

    def failed(self, node: str, reason: str, now: float) -> list[Action]:
        """The node cannot do its task: it is out of this round."""
        actions = self._settle(now)
        if not self._take_out(node, reason, now):
            return actions
        return [*actions, LeaveOut(node, reason), *self._settle(now)]

    def refused(self, node: str, reason: str, now: float) -> list[Action]:
        """What the node returned must not be folded (a wrong shape, say): it is out, and stays out."""
        actions = self._settle(now)
        if not self._take_out(node, reason, now):
            return actions
        self.quarantined[node] = reason
        return [*actions, Quarantine(node, reason), *self._settle(now)]

    def diverged(self, node: str, reason: str, now: float) -> list[Action]:
        """What the node returned is not finite: it is out, and stays out if what another returned is."""
        actions = self._settle(now)
        if not self._take_out(node, reason, now):
            return actions
        self.nonfinite[node] = reason
        return [*actions, LeaveOut(node, reason), *self._settle(now)]

    def lost(self, node: str, now: float) -> list[Action]:
        """The node's connection is gone; it may come back and still answer."""
        actions = self._settle(now)
        if node in self._open:
            self._open[node].lost = True
        return actions

    def back(self, node: str, now: float) -> list[Action]:
        """The node is connected again."""
        actions = self._settle(now)
        if node in self._open:
            self._open[node].back(now)
        return actions

    def tick(self, now: float) -> list[Action]:
        """What is due by `now`, a reading of the clock. Call it at `wake`; earlier does no harm."""
        return self._settle(now)

    # What can be asked

    @property
    def over(self) -> bool:
        return self.state is not RoundState.OPEN

    @property
    def wake(self) -> float | None:
        """When to call `tick`, if nothing else happens before."""
        if self.over:
            return None
        # Past the deadline without a quorum, only an answer or the end of patience can change anything.
        return self._deadline if self._has_quorum and self._deadline < math.inf else self._gives_up

    @property
    def waited(self) -> tuple[str, ...]:
        """The nodes it waits for."""
        return tuple(self._open)

    @property
    def missing(self) -> int:
        """Nodes that lack for its quorum, with all that work on it and are not lost."""
        at_work = sum(not progress.lost for progress in self._open.values())
        return 0 if self.over else max(self.needed - len(self.samples) - at_work, 0)

    def waits(self, now: float) -> str:
        """As "round 41 waits for edge-3: 12 of 40 chunks, idle 4.2 s, leaves it out in 6 s"."""
        if self.over:
            return ""
        waited = name_nodes(self._open, now)
        return Sentence(f"round {self.number} waits for ", waited, f", {self._ending(now)}")

    def doing(self, now: float) -> Mapping[str, str]:
        """Node -> what it does, for a person: "computes for 3.0 s", "done", or why it is left out."""
        texts = {node: progress.describe(now) for node, progress in self._open.items()}
        texts |= dict.fromkeys(self.samples, "done")
        texts |= {node: f"left out: {reason}" for node, reason in self.left_out.items()}
        return {node: texts[node] for node in self.selected if node in texts}

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        parts = [*self._open, *self.samples, *self.left_out]
        assert len(set(parts)) == len(parts), "a node is at two things at once"
        assert set(parts) <= set(self.selected), "a node that was not asked"
        assert self.samples.keys() == self.seconds.keys()
        assert self.quarantined.keys() <= self.left_out.keys(), "in quarantine, and not left out"
        assert self.nonfinite.keys() <= self.left_out.keys(), "not finite, and not left out"
        assert (self.wake is None) == self.over
        assert not (self.over and self._open), "over, and still waiting"
        if self.state is RoundState.OPEN:
            assert len(parts) == len(self.selected), "a node that was asked is nowhere"
            possible = len(self.samples) + len(self._open) >= self.needed
            assert possible or (self.nonfinite and self._open), "it cannot have its quorum"
            assert self._open or not self._has_quorum, "everybody is here, and it waits"
        assert self.state is not RoundState.CLOSED or self._has_quorum, "closed without its quorum"

    # Inside

    def _note(self, node: str, before: NodeWork, after: NodeWork, now: float) -> None:
        if before is not after:
            self.transitions.append((now, (node,), before, after))

    def _end(self, state: RoundState, now: float) -> None:
        self.transitions.append((now, (f"round {self.number}",), self.state, state))
        self.state = state
        self._open = {}

    @property
    def _has_quorum(self) -> bool:
        return len(self.samples) >= self.needed

    def _ending(self, now: float) -> str:
        """What happens if nothing happens."""
        gives_up = f"gives up in {seconds_until(self._gives_up, now)}"
        them = "it" if len(self._open) == 1 else "them"
        if self._has_quorum:
            return f"leaves {them} out in {seconds_until(min(self._deadline, self._gives_up), now)}"
        missing = self.needed - len(self.samples)
        if missing == len(self._open):
            return gives_up
        if now < self._deadline < self._gives_up:
            return f"needs {missing} of {them}, leaves the others out in {seconds_until(self._deadline, now)}"
        return f"needs {missing} of {them}, {gives_up}"

    def _take_out(self, node: str, reason: str, now: float) -> bool:
        """False if it was out already, or the round is over."""
        if self.over or (node not in self._open and node not in self.samples):
            return False
        progress = self._open.pop(node, None)
        before = progress.work if progress is not None else NodeWork.FINISHED
        self._note(node, before, NodeWork.LEFT_OUT, now)
        self.samples.pop(node, None)
        self.seconds.pop(node, None)
        self.left_out[node] = reason
        return True

    def _settle(self, now: float) -> list[Action]:
        """End the round if it can be ended, or has to be, at `now`."""
        if self.over:
            return []
        if self._has_quorum and (not self._open or now >= min(self._deadline, self._gives_up)):
            return self._close(now)
        possible = len(self.samples) + len(self._open)
        if possible < self.needed and not (self.nonfinite and self._open and now < self._gives_up):
            others = self._open or self.samples
            if self.nonfinite and self.nonfinite.keys() == self.left_out.keys() and not others:
                self._end(RoundState.DIVERGED, now)
                return [Diverge(dict(self.nonfinite))]
            why = "; ".join(f"{node}: {reason}" for node, reason in self.left_out.items())
            return self._again(f"it needs {self.needed} nodes of {len(self.selected)}: {why}", now)
        if now >= self._gives_up:
            waited = name_nodes(self._open, now)
            return self._again(
                f"{len(self.samples)} of the {self.needed} nodes it needs answered within "
                f"{self._gives_up - self._began:.0f} s; it waited for {waited}",
                now,
            )
        return []

    def _alone(self) -> list[Action]:
        """Those whose answers are not finite, where another's is: they, and nobody else, are at fault."""
        if not self.samples:
            return []
        self.quarantined |= self.nonfinite
        return [Quarantine(node, reason) for node, reason in self.nonfinite.items()]

    def _close(self, now: float) -> list[Action]:
        took = now - self._began
        late: list[Action] = []
        for node, progress in self._open.items():
            self.left_out[node] = f"not done after {took:.1f} s: {progress.describe(now)}"
            late.append(LeaveOut(node, self.left_out[node]))
            self._note(node, progress.work, NodeWork.LEFT_OUT, now)
        self._end(RoundState.CLOSED, now)
        return [*late, *self._alone(), Close(tuple(node for node in self.selected if node in self.samples))]

    def _again(self, reason: str, now: float) -> list[Action]:
        self._end(RoundState.WITHOUT_QUORUM, now)
        return [*self._alone(), Again(f"round {self.number} cannot end: {reason}")]
