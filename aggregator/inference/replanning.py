"""When a deployment is planned anew: not for a moment's absence, and not over and over. A pure state machine.

    steady ──a part is orphaned, a node is new──> settling ──for long enough──> planning ──> resting ──┐
      ^                                              │ it is as it was                                 │
      └──────────────────────────────────────────────┴─────────────────────────────────────────────────┘

A part is orphaned where all nodes that were to hold it are lost, not just suspect. A node is new that may
hold parts and was not here when the plan was made, or when it was last asked whether another plan would be
quicker.

Whatever comes of it, a rest follows. It doubles each time, so that a fleet whose nodes come and go is planned
anew ever more seldom, and is FIRST_REST again once nothing has changed for as long as CALM_SECONDS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from edge_attention.core.transitions import Transition, recent

__all__ = ["PlanAnew", "ReplanEnd", "ReplanReason", "ReplanState", "Replanning", "SeenFleet"]

GONE_SECONDS = 30.0
"""So long a part is orphaned before the shares are planned anew. Its requests go on meanwhile."""
CAME_SECONDS = 60.0
"""So long a node has been here before a plan is made with it."""
FIRST_REST, MOST_REST = 30.0, 3600.0
CALM_SECONDS = 3600.0


class ReplanState(Enum):
    STEADY = "steady"
    SETTLING = "settling"
    PLANNING = "planning"
    RESTING = "resting"


class ReplanReason(Enum):
    """GONE: any plan will do that can be; CAME: one that gains enough."""

    GONE = "gone"
    CAME = "came"


class ReplanEnd(Enum):
    """What came of it: another plan serves; the old one is kept; it could not be planned or delivered."""

    SWAPPED = "swapped"
    KEPT = "kept"
    FAILED = "failed"


@dataclass(frozen=True)
class SeenFleet:
    """What is seen of the fleet at a moment.

    Attributes:
        here: nodes that are here and may hold parts.
        orphans: nodes that are lost, of parts that no other node was to hold which is here or may come back.
    """

    here: frozenset[str]
    orphans: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PlanAnew:
    """Plan over `here`, because `nodes` are gone, or have come. Tell of its end by `ended`."""

    reason: ReplanReason
    nodes: tuple[str, ...]
    here: frozenset[str]

    def __str__(self) -> str:
        names = ", ".join(self.nodes[:8]) + (
            f" and {len(self.nodes) - 8} more" if len(self.nodes) > 8 else ""
        )
        if self.reason is ReplanReason.CAME:
            return f"node {names} {'has' if len(self.nodes) == 1 else 'have'} come"
        return f"node {names} {'is' if len(self.nodes) == 1 else 'are'} gone"


class Replanning:
    """Of one deployed model, over all its plans. Times are seconds of any steady clock.

    Args:
        known: the nodes that the plan was made with.
        gone: seconds in place of GONE_SECONDS; those of a node that has come are twice as many.
    """

    def __init__(self, known: Collection[str], gone: float = GONE_SECONDS) -> None:
        self.state = ReplanState.STEADY
        self.transitions: deque[Transition] = recent()
        self._known = frozenset(known)
        self._gone_seconds = gone
        self._came_seconds = gone * CAME_SECONDS / GONE_SECONDS
        self._first_rest = gone * FIRST_REST / GONE_SECONDS
        self._rest = 0.0
        """The last; 0: there was none."""
        self._until = 0.0
        self._since: dict[tuple[ReplanReason, str], float] = {}
        """When each node was first seen to be orphaned, or new."""
        self._asked: PlanAnew | None = None

    def look(self, seen: SeenFleet, now: float) -> PlanAnew | None:
        """What is seen now; what is to be done about it. Call it every second or so."""
        if self.state is ReplanState.PLANNING:
            return None
        if self.state is ReplanState.RESTING and now >= self._until:
            self._turn(ReplanState.STEADY, now, "has rested")
        self._notice(seen, now)
        if self.state is ReplanState.RESTING:
            return None
        for reason, seconds in (
            (ReplanReason.GONE, self._gone_seconds),
            (ReplanReason.CAME, self._came_seconds),
        ):
            since = {node: at for (why, node), at in self._since.items() if why is reason}
            due = any(now - at >= seconds for at in since.values())
            if due and seen.here:
                # Of nodes that come one after another those that have just come are counted in, too: the
                # plan is made over all that are here.
                self._asked = PlanAnew(reason, tuple(sorted(since)), seen.here)
                self._turn(ReplanState.PLANNING, now, str(self._asked))
                return self._asked
        state = ReplanState.SETTLING if self._since else ReplanState.STEADY
        if state is not self.state:
            self._turn(state, now, "something has changed" if self._since else "it is as it was")
        return None

    def ended(self, end: ReplanEnd, now: float) -> None:
        """What `look` asked for has come to its end."""
        assert self.state is ReplanState.PLANNING, f"ended, and is {self.state.value}"
        assert self._asked is not None
        if end is ReplanEnd.SWAPPED:
            self._known = self._asked.here
        elif end is ReplanEnd.KEPT:
            gone = self._asked.nodes if self._asked.reason is ReplanReason.GONE else ()
            self._known = (self._known | self._asked.here) - set(gone)
        self._asked = None
        self._since.clear()
        calm = not self._rest or now - self._until > CALM_SECONDS
        self._rest = self._first_rest if calm else min(2 * self._rest, MOST_REST)
        self._until = now + self._rest
        self._turn(ReplanState.RESTING, now, end.value)

    @property
    def rests(self) -> float:
        """Seconds of its last rest."""
        return self._rest

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert (self.state is ReplanState.PLANNING) == (self._asked is not None)
        assert self._rest <= max(MOST_REST, self._first_rest)
        assert self.state is not ReplanState.STEADY or not self._since, "steady, and something has changed"

    def _notice(self, seen: SeenFleet, now: float) -> None:
        found = {(ReplanReason.GONE, node) for node in seen.orphans}
        found |= {(ReplanReason.CAME, node) for node in seen.here - self._known}
        for key in self._since.keys() - found:
            del self._since[key]
        for key in found:
            self._since.setdefault(key, now)

    def _turn(self, state: ReplanState, now: float, why: str) -> None:
        self.transitions.append((now, ("plan", why), self.state, state))
        self.state = state
