"""Makes calls wait for their turn: the asyncio shell around `admission.py`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType

from aggregator.bounds.admission import Admission, Ticket, TicketState
from edge_attention.core.transitions import told

log = logging.getLogger(__name__)

TOLD_SECONDS = 60.0
"""What led a gate to refuse a call is logged once in so many seconds, at most."""


class Turn:
    """A call whose turn it is.

    Attributes:
        waited: seconds it waited for its turn.
        congested: to be set by the call, before it ends, where it found what it works with congested.
    """

    def __init__(self, waited: float) -> None:
        self.waited = waited
        self.congested = False


class _Entry:
    """One call's way through a gate. A class, not a generator: every answer waits for it."""

    def __init__(self, gate: Gate, caller: str, size: int, seconds: float) -> None:
        self._gate = gate
        self._caller = caller
        self._size = size
        self._seconds = seconds

    async def __aenter__(self) -> Turn:
        gate = self._gate
        came = gate._clock()
        until = came + self._seconds
        try:
            self._ticket = ticket = gate.admission.offer(self._caller, self._size, until, came)
        except BaseException:
            gate._refuse()
            raise
        if ticket.state is TicketState.WAITING:
            await gate._wait(ticket, until)
            self._turn = Turn(gate._clock() - came)
        else:
            self._turn = Turn(0.0)
        return self._turn

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._leave(self._ticket, error is None, self._turn)


class Gate:
    """Lets calls of one kind run as `admission` decides; `refused` is told its name at each refusal."""

    def __init__(
        self,
        admission: Admission,
        refused: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.admission = admission
        self._refused = refused
        self._clock = clock
        self._told_at = float("-inf")
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    def turn(self, caller: str, size: int, seconds: float) -> _Entry:
        """A context manager that runs its block, with a Turn, when it is this call's turn.

        Args:
            size: bytes it has in memory meanwhile.
            seconds: within which the block is to have ended.

        Raises, as it is entered:
            Overloaded: its time would be over before it was answered; nothing was done.
        """
        return _Entry(self, caller, size, seconds)

    def _leave(self, ticket: Ticket, ended: bool, turn: Turn) -> None:
        now = self._clock()
        if ended or turn.congested:
            self._tell(self.admission.done(ticket, now, turn.congested))
        else:
            self._tell(self.admission.leave(ticket, now))

    async def _wait(self, ticket: Ticket, until: float) -> None:
        future = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(max(until - self._clock(), 0.0)):
                await future
        except TimeoutError:
            pass
        except BaseException:
            self._tell(self.admission.leave(ticket, self._clock()))
            raise
        finally:
            del self._waiting[ticket]
        if ticket.state is not TicketState.RUNNING:
            self._tell(self.admission.leave(ticket, self._clock()))
            self._refuse()
            raise self.admission.refusal(self.admission.expected, until - self._clock())

    def _refuse(self) -> None:
        self._refused(self.admission.name)
        now = self._clock()
        if now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            log.info("bound %s refuses a call: %s", self.admission.name, told(self.admission.transitions))

    def _tell(self, changed: list[Ticket]) -> None:
        for ticket in changed:
            future = self._waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)
