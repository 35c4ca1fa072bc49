"""Has callers take turns at something of which there are a few, one turn each: who asks a thousand times
holds up nobody who asks once.

Of several places one caller has at most as many as it leaves free, so whoever comes next finds one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

__all__ = ["CallersInTurn"]


class CallersInTurn:
    """`places`: how many turns there are at a time."""

    def __init__(self, places: int = 1) -> None:
        self._free = places
        self._of: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By caller, the one whose turn is next in front."""

    @property
    def busy(self) -> bool:
        """Whether somebody has a turn."""
        return bool(self._of)

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncGenerator[None]:
        """Wait for the caller's turn, which lasts as long as the block."""
        await self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)

    async def enter(self, caller: str) -> None:
        """Wait for the caller's turn. Call `leave` when it is over; not where this raises."""
        if caller not in self._waiting and self._room(caller):
            self._take(caller)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave(caller)  # it came in the same moment
            elif (queue := self._waiting.get(caller)) is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._waiting[caller]
            raise

    def leave(self, caller: str) -> None:
        """The caller's turn is over."""
        self._free += 1
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]
        while (who := next((one for one in self._waiting if self._room(one)), None)) is not None:
            queue = self._waiting[who]
            turn = queue.popleft()
            gone = turn.done()  # it was cancelled, and has not come to take itself out yet
            if not queue:
                del self._waiting[who]
            elif not gone:
                self._waiting.move_to_end(who)
            if not gone:
                self._take(who)
                turn.set_result(None)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert self._free >= 0
        assert all(count > 0 for count in self._of.values())
        assert all(self._waiting.values()), "a caller that waits for nothing"
        assert not any(map(self._room, self._waiting)), "somebody waits though there is room"

    def _room(self, caller: str) -> bool:
        own, left = self._of.get(caller, 0), self._free - 1
        return left >= 0 and (not own or own + 1 <= left)

    def _take(self, caller: str) -> None:
        self._free -= 1
        self._of[caller] += 1
