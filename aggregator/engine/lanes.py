"""Reads only so many streams at a time: the memory that messages take does not grow with their senders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


class Lanes:
    """Room for `count` messages. A stream has one of the lanes while a message of it is read and used.

    A message that is not asked for stays with its sender, where gRPC's flow control holds it. A sender that
    takes longer than `patience` seconds for a message gives its lane up until that has come, so that slow
    senders do not hold up fast ones.
    """

    def __init__(self, count: int, patience: float = 0.5) -> None:
        self._free = asyncio.Semaphore(count)
        self._patience = patience

    async def each(self, items: AsyncIterator[T]) -> AsyncGenerator[T]:
        """The messages of `items`; a lane is taken for each, and given back when the next is asked for.

        Close it (`contextlib.aclosing`) where it may be left before its end: else its lane stays taken.
        """
        slow = False
        while True:
            held = not slow
            if held:
                await self._free.acquire()
            reading = asyncio.create_task(_next(items))
            try:
                await asyncio.wait((reading,), timeout=self._patience)
                slow = not reading.done()
                if slow:
                    if held:
                        self._free.release()
                        held = False
                    await asyncio.wait((reading,))
                if not held:
                    await self._free.acquire()
                    held = True
                found = reading.result()
                if not found:
                    return
                # Neither the task nor this frame keeps the item while the next is waited for.
                yield found.pop()
            finally:
                reading.cancel()
                if held:
                    self._free.release()


async def _next(items: AsyncIterator[T]) -> list[T]:
    """A list of the next message, which the reader empties; an empty list at the end of the stream."""
    async for item in items:
        return [item]
    return []
