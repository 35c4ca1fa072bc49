"""One step of a model that trains through the split. A pure state machine; times are seconds of one clock.

    renews ──> runs ──> (all pieces folded) ──> over
      ^         |                └─ collects ─────^    where nodes have the sums of gradients
      |         v  a piece, the renewal, or what is collected has failed
    waits <── drains (what is under way ends first)

A step's samples go through the parts in pieces, several at a time, which is what fills the pipeline. Their
gradients fold in the pieces' order, whatever the order in which they come: the same bits. A piece that fails
is run again, and nothing that was folded is folded a second time: all of it is of the same version. Before
that the parts are renewed, so that whoever took over has that version. Where nodes have the sums of the
gradients, what a node had of them may be gone with it: the step begins again, with its first piece.

The shell performs the actions, tells what became of them, and calls `tick` at `wake`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

from edge_attention.core.errors import (
    Damaged,
    DeadlineExceeded,
    EdgeAttentionError,
    NotFound,
    Unavailable,
)
from edge_attention.core.transitions import Transition, recent

__all__ = [
    "BeginAgain",
    "CollectSums",
    "FoldPiece",
    "GiveUp",
    "RenewParts",
    "RunPiece",
    "SplitAction",
    "SplitStep",
    "StepOver",
    "StepPhase",
]

AGAIN = (Unavailable, DeadlineExceeded, NotFound, Damaged)
"""What time may mend: nodes that are away, or have lost what they were given."""
PAUSE_SECONDS = (0.2, 5.0)
"""Between two tries, first and at most."""


class RenewParts(NamedTuple):
    """Have each part held, with the version's weights. Tell of it by `renewed` or `renewal_failed`."""


class RunPiece(NamedTuple):
    """Take piece `piece` forward and backward through the parts. Tell of it by `came` or `failed`."""

    piece: int


class FoldPiece(NamedTuple):
    """Add what came of the piece to what was folded before."""

    piece: int


class BeginAgain(NamedTuple):
    """Forget what was folded, and what nodes have added."""


class CollectSums(NamedTuple):
    """Have the sums sent that nodes have. Tell of it by `collected` or `collection_failed`."""


class StepOver(NamedTuple):
    """All pieces are folded: step the optimizer, and commit."""


class GiveUp(NamedTuple):
    """The step cannot be done: the run fails with `error`, and nothing of the step is kept."""

    error: EdgeAttentionError


SplitAction = RenewParts | RunPiece | FoldPiece | BeginAgain | CollectSums | StepOver | GiveUp


class StepPhase(Enum):
    """How a step stands."""

    RENEWS = "renews"
    """Parts are given the version's weights."""
    RUNS = "runs"
    COLLECTS = "collects"
    """All pieces are folded, and what nodes have added comes."""
    DRAINS = "drains"
    """Something has failed: what is under way comes to its end."""
    WAITS = "waits"
    """For another try."""
    OVER = "over"


class SplitStep:
    """One step, of `pieces` pieces of which `at_once` are under way, or wait to be folded, at a time.

    Args:
        patience: seconds in which no further piece has ended after which it gives up.
        sums: whether nodes have the sums of what pieces come to.

    Attributes:
        phase: how it stands.
        tries: how often it has begun again.
        transitions: the last changes, for the log.
    """

    def __init__(self, pieces: int, at_once: int, patience: float, now: float, *, sums: bool = False) -> None:
        self.phase = StepPhase.RENEWS
        self.tries = 0
        self.transitions: deque[Transition] = recent()
        self._pieces = pieces
        self._at_once = max(at_once, 1)
        self._patience = patience
        self._sums = sums
        self._most = 0
        """Pieces that have come in one try, at most."""
        self._since = now
        self._now = now
        self._folded = 0
        """How many are, which are the first ones."""
        self._came: set[int] = set()
        """Those that have come and wait for their turn."""
        self._running: set[int] = set()
        self._until = 0.0
        self._trouble: EdgeAttentionError | None = None

    # Events

    def start(self) -> list[SplitAction]:
        """To be called once, before any other event."""
        return [RenewParts()]

    def renewed(self, now: float) -> list[SplitAction]:
        """Each part is held, with the version's weights."""
        self._now = now
        if self.phase is not StepPhase.RENEWS:
            return []
        self._turn(StepPhase.RUNS, "parts are renewed")
        return self._next()

    def renewal_failed(self, error: EdgeAttentionError, now: float) -> list[SplitAction]:
        """Some part is not."""
        self._now = now
        if self.phase is not StepPhase.RENEWS:
            return []
        return self._failed(error)

    def came(self, piece: int, now: float) -> list[SplitAction]:
        """The piece has gone through, and what came of it is there to be folded."""
        self._now = now
        if self.phase is StepPhase.OVER or piece not in self._running:
            return []
        self._running.discard(piece)
        self._came.add(piece)
        if (come := self._folded + len(self._came)) > self._most:
            self._most = come
            self._since = now
        actions: list[SplitAction] = []
        while self._folded in self._came:
            self._came.discard(self._folded)
            actions.append(FoldPiece(self._folded))
            self._folded += 1
        if self._folded == self._pieces:
            if self._sums:
                self._turn(StepPhase.COLLECTS, "all pieces are folded")
                return [*actions, CollectSums()]
            self._turn(StepPhase.OVER, "all pieces are folded")
            return [*actions, StepOver()]
        return [*actions, *self._next()]

    def collected(self, now: float) -> list[SplitAction]:
        """The sums have come."""
        self._now = now
        if self.phase is not StepPhase.COLLECTS:
            return []
        self._turn(StepPhase.OVER, "the sums have come")
        return [StepOver()]

    def collection_failed(self, error: EdgeAttentionError, now: float) -> list[SplitAction]:
        """They have not."""
        self._now = now
        if self.phase is not StepPhase.COLLECTS:
            return []
        return self._failed(error)

    def failed(self, piece: int, error: EdgeAttentionError, now: float) -> list[SplitAction]:
        """The piece has not gone through."""
        self._now = now
        if self.phase is StepPhase.OVER or piece not in self._running:
            return []
        self._running.discard(piece)
        return self._failed(error)

    def tick(self, now: float) -> list[SplitAction]:
        """What is due by `now`. Call it at `wake`; earlier does no harm."""
        self._now = now
        if self.phase is not StepPhase.WAITS or now < self._until:
            return []
        self._turn(StepPhase.RENEWS, "another try")
        return [RenewParts()]

    # What can be asked

    @property
    def wake(self) -> float | None:
        """When to call `tick`; None: when something else has happened."""
        return self._until if self.phase is StepPhase.WAITS else None

    @property
    def deadline(self) -> float:
        """When what is under way has to have ended."""
        return self._since + self._patience

    @property
    def trouble(self) -> str:
        """For a person: why it waits; empty: it does not."""
        waits = self.phase in (StepPhase.WAITS, StepPhase.DRAINS)
        return self._trouble.message if waits and self._trouble is not None else ""

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert not self._running & self._came
        assert all(self._folded < piece < self._pieces for piece in self._came), "it had its turn"
        assert all(self._folded <= piece < self._pieces for piece in self._running)
        assert len(self._running) + len(self._came) <= self._at_once
        if self.phase in (StepPhase.RENEWS, StepPhase.WAITS):
            assert not self._running, "parts change while pieces are under way"
            assert not self._sums or not (self._folded or self._came), "sums may be gone"
        if self.phase is StepPhase.COLLECTS:
            assert self._folded == self._pieces
        if self.phase is StepPhase.RUNS:
            assert self._running, "nothing goes on"
        if self.phase is StepPhase.DRAINS:
            assert self._running
            assert self._trouble is not None

    # Inside

    def _next(self) -> list[SplitAction]:
        """Pieces that can begin now, or what comes once those under way have ended."""
        if self.phase is StepPhase.DRAINS:
            return [] if self._running else self._wait()
        actions: list[SplitAction] = []
        for piece in range(self._folded, min(self._folded + self._at_once, self._pieces)):
            if piece not in self._running and piece not in self._came:
                self._running.add(piece)
                actions.append(RunPiece(piece))
        return actions

    def _failed(self, error: EdgeAttentionError) -> list[SplitAction]:
        if not isinstance(error, AGAIN):
            return self._end(error)
        self._trouble = error
        if self._running:
            if self.phase is not StepPhase.DRAINS:
                self._turn(StepPhase.DRAINS, type(error).__name__)
            return []
        return self._wait()

    def _wait(self) -> list[SplitAction]:
        assert self._trouble is not None
        if self._now >= self.deadline:
            said = f"no further piece of the step has ended for {self._now - self._since:.0f} s"
            return self._end(DeadlineExceeded(f"{said}: {self._trouble.message}"))
        first, most = PAUSE_SECONDS
        self._until = min(self._now + min(most, first * 2.0 ** min(self.tries, 16)), self.deadline)
        self.tries += 1
        self._turn(StepPhase.WAITS, type(self._trouble).__name__)
        if not self._sums:
            return []
        self._folded = 0
        self._came.clear()
        return [BeginAgain()]

    def _end(self, error: EdgeAttentionError) -> list[SplitAction]:
        self._running.clear()
        self._turn(StepPhase.OVER, type(error).__name__)
        return [GiveUp(error)]

    def _turn(self, phase: StepPhase, *words: str) -> None:
        self.transitions.append((self._now, words or ("",), self.phase, phase))
        self.phase = phase
