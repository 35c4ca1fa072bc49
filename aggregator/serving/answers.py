"""Answers kept for a while: a call that changes something can be asked again, and is not done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from edge_attention.core.errors import DataLoss, InvalidArgument

__all__ = ["Answers", "Key"]

KEPT_SECONDS = 120.0
"""How long a call can be asked again by its id."""

KEPT_OF_CALLER, KEPT = 64, 4096
"""Answers kept of one caller and of all; then the oldest go."""

ANSWER_BYTES = 64 * 1024
"""The largest answer that is kept; of a larger one it is only kept that it was given."""

ID_LETTERS = 64

Key = tuple[str, str, str]
"""Who calls, what, and the id that the caller has given the call."""


class Answers:
    """What was answered to whom. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[Key, asyncio.Future[None]] = {}
        self._kept: OrderedDict[Key, tuple[float, bytes | None]] = OrderedDict()
        self._of = Counter[str]()

    async def once(self, key: Key, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """What `work` gives, or gave when a call of this key had it done. A failure is not kept.

        Raises:
            DataLoss: it was done, but the answer was too large to keep.
            InvalidArgument: the id is too long.
        """
        if len(key[2]) > ID_LETTERS:
            raise InvalidArgument(f"the id of a call has at most {ID_LETTERS} letters")
        while (running := self._running.get(key)) is not None:
            # Its connection may have ended and taken it along: then this call does the work.
            await asyncio.wait([running])
        if key in self._kept:
            data = self._kept[key][1]
            if data is None:
                raise DataLoss("this was done when it was first asked for; the answer was too large to keep")
            return data
        done = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            data = await work()
            self._keep(key, data)
            return data
        finally:
            del self._running[key]
            done.set_result(None)

    def _keep(self, key: Key, data: bytes) -> None:
        now = self._clock()
        while self._kept and now - next(iter(self._kept.values()))[0] > KEPT_SECONDS:
            self._forget(next(iter(self._kept)))
        if self._of[key[0]] >= KEPT_OF_CALLER:
            self._forget(next(other for other in self._kept if other[0] == key[0]))
        elif len(self._kept) >= KEPT:
            self._forget(next(iter(self._kept)))
        self._kept[key] = (now, data if len(data) <= ANSWER_BYTES else None)
        self._of[key[0]] += 1

    def _forget(self, key: Key) -> None:
        del self._kept[key]
        self._of[key[0]] -= 1
        if not self._of[key[0]]:
            del self._of[key[0]]
