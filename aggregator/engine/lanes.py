"""Many senders at once, a few of them read at a time: memory does not grow with their number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


class Lanes:
    """`count` lanes. A stream takes one while its next item is read and used, and queues for the next.

    What is not asked for stays with its sender: flow control holds it there. A sender that takes longer than
    `patience` seconds for an item is slow: it gives its lane up, and takes one again when an item has come,
    so that the slow do not hold up the fast.
    """

    def __init__(self, count: int, patience: float = 0.5) -> None:
        self._free = asyncio.Semaphore(count)
        self._patience = patience

    async def each(self, items: AsyncIterator[T]) -> AsyncGenerator[T]:
        """The items, each in a lane."""
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
    """The next item, or none at the end."""
    async for item in items:
        return [item]
    return []
