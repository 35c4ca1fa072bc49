"""Admission: so many calls run at once, others wait, and what cannot be answered in time is refused. Pure.

A pure machine: calls and the time in, tickets out; `gate.py` waits with them.

    offered --> running --> done            where there is room
       |           ^
       '-> waiting -'--> late               its turn came when its time was as good as over
       '-> refused                          it could not have been answered in time

How many run at once is found out as networks do it: one more for every round in which nothing queued behind
it, a quarter fewer where calls queued at a node or missed their deadlines (additive increase, multiplicative
decrease). More than that answers nothing sooner, and once callers give up, nothing at all.

Callers take turns, one call each. Of what may run one caller has no more than it leaves free, so a caller
that comes beside one with a thousand calls waits for none of those.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.errors import Overloaded
from edge_attention.core.transitions import Transition, recent

__all__ = ["Admission", "Ticket", "TicketState"]

CUT = 0.75
SMOOTHING = 0.1
"""How much a call's seconds weigh in their mean."""
LEAST_RETRY, MOST_RETRY = 0.05, 30.0


class TicketState(Enum):
    OFFERED = "offered"
    """It has just come."""
    WAITING = "waiting"
    """It has a place in its caller's queue."""
    RUNNING = "running"
    ENDED = "ended"
    """It was answered, or nobody waits for it any more."""
    LATE = "late"
    """Its turn came when its time was as good as over: whoever waits for it is to be refused."""
    REFUSED = "refused"
    """It never got a place."""


@dataclass(eq=False)
class Ticket:
    """One call: whose, the bytes it has in memory while it runs, and when its time is over."""

    caller: str
    size: int
    until: float
    began: float = 0.0
    state: TicketState = TicketState.OFFERED


@dataclass
class Admission:
    """Calls of one kind.

    Attributes:
        name: of the bound, for errors.
        most_bytes: of those that run at once, together; a larger one runs alone.
        least, most: between these is `limit`, how many run at once. Equal: it does not move.
        share: of those at most so many are one caller's; 0: as many as it leaves free.
        alike: what the last calls took says what the next will take. Otherwise a short queue is always waited
            in, and who comes to its turn runs with the time that is left.
        seconds: the mean of what a call took lately, once it ran; `spread`: its mean deviation.
        running: calls that run, and `size` the bytes they have in memory together.
        transitions: the last changes of calls' states, for the log.
    """

    name: str
    most_bytes: int
    least: int = 4
    most: int = 256
    share: int = 0
    alike: bool = True
    limit: float = field(init=False)
    seconds: float = field(init=False, default=0.0)
    spread: float = field(init=False, default=0.0)
    running: int = field(init=False, default=0)
    size: int = field(init=False, default=0)
    transitions: deque[Transition] = field(init=False, default_factory=recent)

    def __post_init__(self) -> None:
        self.limit = float(min(self.most, 2 * self.least))
        self._of: dict[str, int] = {}
        self._size_of: dict[str, int] = {}
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._cut_at = float("-inf")
        self._pressed = False
        self._stalled = False

    @property
    def expected(self) -> float:
        """Seconds within which most calls are answered once they run."""
        return self.seconds + 2 * self.spread

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def offer(self, caller: str, size: int, until: float, now: float) -> Ticket:
        """A call came: its ticket, which runs or waits.

        Raises:
            Overloaded: its time would be over before it was answered; says when to come again.
        """
        ticket = Ticket(caller, size, until)
        # Who waits for bytes is not overtaken: small calls would do so for ever.
        if not self._stalled and not self._queues.get(caller) and self._room(ticket):
            self._start(ticket, now)
            return ticket
        self._pressed = True
        own = len(self._queues.get(caller, ()))
        ahead = 1 + sum(min(len(queue), own + 1) for queue in self._queues.values())
        limit = max(1, int(self.limit))
        wait = self.seconds * ahead / limit + (self.expected if self.alike else 0.0)
        if now + wait > until and (self.alike or self.waiting >= limit):
            self._turn(ticket, TicketState.REFUSED, now)
            raise self.refusal(wait, until - now)
        self._queues.setdefault(caller, deque()).append(ticket)
        self._turn(ticket, TicketState.WAITING, now)
        return ticket

    def done(self, ticket: Ticket, now: float, congested: bool = False) -> list[Ticket]:
        """The call was answered. `congested`: it queued at a node, or missed its deadline.

        Returns tickets whose state has changed: who waits for one that runs goes on, for one that is late is
        refused.
        """
        if ticket.state is TicketState.RUNNING:
            took = max(now - ticket.began, 0.0)
            if self.seconds:
                self.spread += (abs(took - self.seconds) - self.spread) * SMOOTHING
                self.seconds += (took - self.seconds) * SMOOTHING
            else:
                self.seconds = took
            if congested:
                if now - self._cut_at >= took:  # once for all that ran beside each other
                    self.limit, self._cut_at = max(float(self.least), self.limit * CUT), now
            elif self._pressed:
                self.limit = min(float(self.most), self.limit + 1 / self.limit)
                self._pressed = bool(self._queues)
        return self.leave(ticket, now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Nobody waits for the call any more: it failed, or its caller has gone. Returns as `done`."""
        if ticket.state is TicketState.RUNNING:
            self.running -= 1
            self.size -= ticket.size
            self._of[ticket.caller] -= 1
            self._size_of[ticket.caller] -= ticket.size
            if not self._of[ticket.caller]:
                del self._of[ticket.caller], self._size_of[ticket.caller]
        elif ticket.state is TicketState.WAITING:
            queue = self._queues[ticket.caller]
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.caller]
        else:
            return []
        self._turn(ticket, TicketState.ENDED, now)
        return self._next(now)

    def refusal(self, wait: float, left: float) -> Overloaded:
        """The error of a call that would have to wait for `wait` seconds and has `left` until it is late."""
        # When those ahead are answered. Sooner, whoever is refused would come so often as to cost the others.
        retry = min(max(wait, LEAST_RETRY), MOST_RETRY)
        return Overloaded(
            f"bound {self.name}: {self.running} run and {self.waiting} wait, so this call would take about "
            f"{max(wait, 0.01):.2f} s and has {max(left, 0.0):.2f}; give it more time, have fewer calls "
            f"under way, or try again in {retry:.2f} s",
            retry_after=retry,
        )

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert self.least <= self.limit <= self.most
        assert self.running == sum(self._of.values()) >= 0
        assert all(count > 0 for count in self._of.values())
        assert self._size_of.keys() == self._of.keys()
        assert self.size == sum(self._size_of.values())
        assert all(queue for queue in self._queues.values())
        assert all(t.state is TicketState.WAITING for queue in self._queues.values() for t in queue)
        assert self.size <= self.most_bytes or self.running == 1
        assert (self.running == 0) <= (self.size == 0)
        assert self.running or not self._queues, "somebody waits for nobody"

    def _room(self, ticket: Ticket) -> bool:
        if not self.running:
            return True
        free = int(self.limit) - self.running - 1
        if free < 0 or self.size + ticket.size > self.most_bytes:
            return False
        return ticket.caller not in self._of or self._fair(ticket)

    def _fair(self, ticket: Ticket) -> bool:
        """Whether a caller that has some running leaves as much free as it has then: calls, and bytes."""
        most = self.share or int(self.limit) - self.running - 1
        count, size = self._of.get(ticket.caller, 0) + 1, self._size_of.get(ticket.caller, 0) + ticket.size
        return count <= most and size <= self.most_bytes - self.size - ticket.size

    def _turn(self, ticket: Ticket, state: TicketState, now: float) -> None:
        self.transitions.append((now, (ticket.caller,), ticket.state, state))
        ticket.state = state

    def _start(self, ticket: Ticket, now: float) -> None:
        self._turn(ticket, TicketState.RUNNING, now)
        ticket.began = now
        self.running += 1
        self.size += ticket.size
        caller = ticket.caller
        self._of[caller] = self._of.get(caller, 0) + 1
        self._size_of[caller] = self._size_of.get(caller, 0) + ticket.size

    def _next(self, now: float) -> list[Ticket]:
        """Start the calls whose turn it is; one that would be answered too late for certain is late now."""
        changed: list[Ticket] = []
        passed, self._stalled = 0, False
        while passed < len(self._queues) and (not self.running or self.running < int(self.limit)):
            caller, queue = next(iter(self._queues.items()))
            ticket = queue[0]
            late = now + (self.expected if self.alike and self.running else 0.0) >= ticket.until
            if not late and not self._room(ticket):
                if ticket.caller not in self._of or self._fair(ticket):
                    self._stalled = True
                    break
                self._queues.move_to_end(caller)
                passed += 1
                continue
            passed = 0
            queue.popleft()
            if queue:
                self._queues.move_to_end(caller)
            else:
                del self._queues[caller]
            changed.append(ticket)
            if late:
                self._turn(ticket, TicketState.LATE, now)
            else:
                self._start(ticket, now)
        return changed
