"""Lanes: where requests under way keep tensors on nodes, each apart from the others, so many at a time.

    job/<deployment>/lane0/p3/k7

The next request in a lane writes over what the last one kept. A lane in which something may still be written,
as it was given up and not ended, is used by nobody else: another number takes its place.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque

from edge_attention.core.errors import Overloaded

__all__ = ["LANES", "RequestLanes"]

LANES = 32
"""Requests of one deployment that are under way at a time, however many stages it has."""
WAITING = 64
"""Requests of one deployment that wait for a lane; then more are refused."""


class RequestLanes:
    """The lanes of one deployment. The one with the lowest number is given first: few are ever used."""

    def __init__(self, lanes: int = LANES) -> None:
        self._free = list(range(lanes))
        self._next = lanes
        self._waiting: deque[asyncio.Future[int]] = deque()

    async def take(self, seconds: float) -> int:
        """A lane, as soon as one is free. `give_back` it.

        Raises:
            Overloaded: none was free in time, or too many wait.
        """
        if self._free and not self._waiting:
            return heapq.heappop(self._free)
        if len(self._waiting) >= WAITING:
            raise Overloaded(f"bound waiting-requests: {WAITING} requests of this model wait already")
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result(), True)
            raise Overloaded(f"all lanes of this model were taken for {seconds:.3g} s: try again") from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result(), True)
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def give_back(self, lane: int, clean: bool) -> None:
        """The request that had the lane is over. `clean`: nothing that it asked for can still be running."""
        if not clean:
            lane, self._next = self._next, self._next + 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(lane)
                return
        heapq.heappush(self._free, lane)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)
