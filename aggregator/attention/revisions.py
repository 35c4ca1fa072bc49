"""Numbers of changes: a node refuses a change whose number is below one it has seen in the same context.

    one append attempt     takes r and r + 1
    its instructions       carry r
    what undoes it         carries r + 1: an instruction of the attempt that comes later yet is refused

They grow over restarts, since they are durable before one is used; and over a state that was put back from a
copy, since they are at least the milliseconds since 1970.
"""

from __future__ import annotations

import asyncio
import time

from aggregator.store.state import State

BLOCK = 1024
"""Numbers made durable at a time: one write to the disk for half as many changes."""


class Revisions:
    """Gives numbers for changes, each once in the life of `state`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._left = range(0)
        self._taking = asyncio.Lock()

    async def take(self) -> int:
        """A number r for a change, larger than every one before; r + 1 is for what undoes it.

        Raises:
            ResourceExhausted, Internal: it could not be made durable; nothing may be sent.
        """
        async with self._taking:
            if len(self._left) < 2:
                now = int(time.time() * 1000)
                self._left = await asyncio.to_thread(self._state.take_numbers, "revision", BLOCK, now)
            revision, self._left = self._left[0], self._left[2:]
            return revision
