"""Requests that are still coming: so many at a time, and fair between who sends them.

gRPC holds what it was asked to receive, up to its largest message, and a sender may take its time. A message
that is not asked for stays with its sender but for 64 KiB. So a request is asked for only when its caller may
call at all, and when few others are coming; nobody is asked for more than a half of those, and slow ones end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterable

from edge_attention.core.errors import Damaged, DeadlineExceeded, InvalidArgument, Overloaded

__all__ = ["Arrivals"]

MOST = 128
"""Requests coming at a time."""
SECONDS = 30.0
"""For one to come, and before that until it may."""


class Arrivals:
    """Receives requests of one message. `name`: of the bound, for its error."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS, name: str = "arrivals") -> None:
        self._name = name
        self._most = most
        self._seconds = seconds
        self._coming = 0
        self._of: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def one(self, who: str, raw: AsyncIterable[bytes], sealed: bool = False) -> bytes:
        """The request that `who` sends; `sealed`: a client of ours, which sends one with a checksum.

        Raises:
            InvalidArgument: the call has no request.
            Damaged: the same of a client of ours: its end came, the request was lost on the way.
            DeadlineExceeded: it did not come in time.
            Overloaded: so many others were coming all that time.
        """
        await self._enter(who)
        try:
            async with asyncio.timeout(self._seconds):
                async for data in raw:
                    return data
        except TimeoutError:
            message = f"the request did not arrive in {self._seconds:g} s; send it faster, or a smaller one"
            raise DeadlineExceeded(message) from None
        finally:
            self._leave(who)
        if sealed:
            raise Damaged("the request was lost on the way, and nothing was done; send it again")
        raise InvalidArgument("the call has no request; send one message")

    def _room(self, who: str) -> bool:
        free = self._most - self._coming - 1
        return free >= 0 and (who not in self._of or self._of[who] + 1 <= free)

    async def _enter(self, who: str) -> None:
        if not self._room(who):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((who, turn))
            try:
                async with asyncio.timeout(self._seconds):
                    await turn
            except BaseException as error:
                if turn.done() and not turn.cancelled():
                    self._leave(who)  # its turn came in the same moment
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove((who, turn))
                if isinstance(error, TimeoutError):
                    raise Overloaded(
                        f"bound {self._name}: {self._coming} of {self._most} requests are coming; send fewer "
                        "at a time",
                        retry_after=1.0,
                    ) from None
                raise
        else:
            self._take(who)

    def _take(self, who: str) -> None:
        self._coming += 1
        self._of[who] += 1

    def _leave(self, who: str) -> None:
        self._coming -= 1
        self._of[who] -= 1
        if not self._of[who]:
            del self._of[who]
        passed = 0
        while passed < len(self._waiting) and self._coming < self._most:
            who, turn = self._waiting[0]
            if not turn.done() and not self._room(who):
                self._waiting.rotate(-1)
                passed += 1
                continue
            self._waiting.popleft()
            if not turn.done():
                self._take(who)
                turn.set_result(None)
