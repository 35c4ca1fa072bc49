"""The choices of one request for text, made side by side: their events as they come, each with its place."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from aggregator.inference.generation.request import GenerationEvent
from edge_attention.core.errors import Overloaded

__all__ = ["ALIVE_SECONDS", "AT_ONCE", "Choices"]

AT_ONCE = 8
"""Choices of one request that are made at a time."""
ALIVE_SECONDS = 10.0
"""It is told so often that nothing has come."""
AGAIN_SECONDS = 0.5
"""After which a choice that found no room is begun again."""

Begins = Callable[[], AsyncGenerator[GenerationEvent]]
"""Begins the generation of a choice."""


class Choices:
    """Makes `generations` until `until`, a time of time.monotonic().

    A choice that finds no room waits until another of the request has ended: what is made already is not
    thrown away. A request of which there is no room for any is refused.
    """

    def __init__(self, generations: Sequence[Begins], until: float) -> None:
        self._left = deque(enumerate(generations))
        self._until = until
        self._queue: asyncio.Queue[tuple[int, GenerationEvent] | Exception | None] = asyncio.Queue(1)
        self._working = 0
        self._came = False

    async def events(self) -> AsyncGenerator[tuple[int, GenerationEvent] | None]:
        """The events of all; None where none has come for ALIVE_SECONDS. The first that fails ends all.

        Close it where it is left early: that ends them.
        """
        task = asyncio.create_task(self._make(), name="choices")
        try:
            while True:
                try:
                    async with asyncio.timeout(ALIVE_SECONDS):
                        found = await self._queue.get()
                except TimeoutError:
                    yield None
                    continue
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    return
                yield found
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _make(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(self._left))):
                    group.create_task(self._work(), name="generation")
            await self._queue.put(None)
        except* Exception as errors:
            await self._queue.put(errors.exceptions[0])

    async def _work(self) -> None:
        """Make one choice after the other. A task has all of a generation: its deadlines are that task's."""
        while self._left:
            place, generation = self._left.popleft()
            self._working += 1
            begun = False
            try:
                async with aclosing(generation()) as events:
                    async for one in events:
                        begun = self._came = True
                        await self._queue.put((place, one))
            except Overloaded:
                alone = self._working == 1
                if begun or (alone and (not self._came or time.monotonic() > self._until)):
                    raise
                self._left.appendleft((place, generation))
                if not alone:
                    return  # the others come to it
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                self._working -= 1
