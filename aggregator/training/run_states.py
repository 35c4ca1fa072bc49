"""How runs have ended, written down in the order in which they did; later where the disk refuses it now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aggregator.engine.endings import to_the_end
from aggregator.store.state import State
from aggregator.training import disk_room
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.training import RunState

log = logging.getLogger(__name__)


class RunStates:
    """Writes states of runs into `state`. For one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._unsaved: dict[str, tuple[RunState, str]] = {}
        self._saving = asyncio.Lock()
        """Held by whoever writes down states of runs: they get there in the order in which they were so."""
        self._saver: asyncio.Task[None] | None = None
        self._closed = False

    async def keep(self, id: str, state: RunState, detail: str) -> None:
        """Write down how a run has ended. Where that cannot be done now it is done later: it has ended."""
        self._unsaved[id] = (state, detail)
        await self._save()
        if self._unsaved and (self._saver is None or self._saver.done()) and not self._closed:
            self._saver = asyncio.create_task(self._save_later(), name="states of runs")

    @contextlib.asynccontextmanager
    async def replaced(self, id: str) -> AsyncIterator[None]:
        """A block that writes down what becomes of a run that had ended: how it ended is then of no more use.

        Where the block raises, it still is.
        """
        async with self._saving:
            yield
            self._unsaved.pop(id, None)

    async def close(self) -> None:
        """Try once more to write down what could not be; then no more of it is tried."""
        self._closed = True
        if self._saver is not None:
            self._saver.cancel()
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            for id, how in list(self._unsaved.items()):
                state, detail = how
                try:
                    # To the end: the lock is given back when the thread is done.
                    await to_the_end(asyncio.to_thread(self._state.set_run_status, id, state.value, detail))
                except EdgeAttentionError as error:
                    log.error(
                        "run %s is %s, which cannot be written down: %s", id, state.value, error.message
                    )
                else:
                    if self._unsaved.get(id) == how:  # or it has ended in another way meanwhile
                        del self._unsaved[id]

    async def _save_later(self) -> None:
        while self._unsaved:
            await asyncio.sleep(disk_room.ROOM_RETRY_SECONDS[1])
            await self._save()
