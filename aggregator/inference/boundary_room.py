"""Room for boundaries of requests here: of those under way, and of what is kept in case a node goes."""

from __future__ import annotations

import asyncio
from collections import deque

from edge_attention.core.errors import Overloaded

__all__ = ["BoundaryRoom", "RecordRoom"]


class BoundaryRoom:
    """Bytes of boundaries that requests of all deployments have in memory at a time, in order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, size: int, seconds: float) -> None:
        """Room for `size` bytes, as soon as there is; one alone has it in any case. `give_back` it.

        Raises:
            Overloaded: there was none in time.
        """
        if not self._waiting and self._fits(size):
            self.used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                turn.cancel()
                self._next()
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"bound boundary-bytes: requests under way take {self.used:,} of {self.limit:,} bytes; "
                    f"there was no room for {size:,} more in {seconds:.3g} s: try again"
                ) from None
            raise

    def give_back(self, size: int) -> None:
        self.used -= size
        self._next()

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.limit

    def _next(self) -> None:
        while self._waiting and (self._waiting[0][0].done() or self._fits(self._waiting[0][1])):
            turn, size = self._waiting.popleft()
            if not turn.done():  # else whoever waited has gone
                self.used += size
                turn.set_result(None)


class RecordRoom:
    """Room for boundaries that only a node's going would need again: `limit` bytes, of all requests."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def change(self, more: int) -> bool:
        """Count `more` bytes, or fewer; whether they are within the limit."""
        self.used += more
        return self.used <= self.limit
