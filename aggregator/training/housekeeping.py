"""Keeps the state folder as the settings say: old runs go that have ended, and files that nobody names."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aggregator.observe.metrics import Metrics
from aggregator.store.disk import folder_bytes, scarce, state_bytes
from aggregator.store.retention import EndedRun, Retention, surplus
from aggregator.store.settled_clock import FolderClock
from aggregator.store.state import State
from aggregator.training.runs import Runs
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["Housekeeping"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
"""Between two looks."""
AT_ONCE = 100
"""Runs that one look deletes: others want the disk, too."""


class Housekeeping:
    """Looks now and then.

    `clock`: seconds since 1970, by default the machine's once it is settled. `let_go`: has what is kept for
    speed alone go, where little of the disk is left.
    """

    def __init__(
        self,
        state: State,
        runs: Runs,
        retention: Retention,
        metrics: Metrics,
        clock: Callable[[], float] | None = None,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._state = state
        self._runs = runs
        self._retention = retention
        self._clock = clock or FolderClock(state.directory)
        self._let_go = let_go
        self._sizes: dict[str, tuple[int, int]] = {}
        """Run that has ended -> (its round, bytes of its files): these do not change."""
        make = metrics.make
        self._bytes = make.gauge("state_bytes", "Bytes of the state folder by what they are of.", "kind")
        self._deleted = make.counter(
            "runs_deleted_total", "Runs deleted because a setting of the aggregator says so.", "setting"
        )
        self._freed = make.counter("blob_bytes_freed_total", "Bytes of files removed that no run named.")
        for setting in ("--keep-runs", "--keep-run-days", "--keep-run-bytes"):
            self._deleted.labels(setting)
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._watch(), name="housekeeping")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def look(self) -> None:
        """Have what is too much go."""
        await asyncio.to_thread(self._state.keep_reserve)
        if self._let_go is not None and await asyncio.to_thread(scarce, self._state.directory):
            await self._let_go()
        ended = await asyncio.to_thread(self._ended)
        now = await asyncio.to_thread(self._clock)
        for id, setting in surplus(ended, self._retention, now)[:AT_ONCE]:
            try:
                await self._runs.delete(id)
            except EdgeAttentionError as error:  # somebody has resumed it, or deleted it, meanwhile
                log.info("run %s stays: %s", id, error.message)
                continue
            self._sizes.pop(id, None)
            self._deleted.labels(setting).inc()
            log.info("run %s is deleted, as %s says", id, setting)
        freed = await asyncio.to_thread(self._sweep)
        if freed:
            self._freed.inc(freed)
            log.info("%d bytes of files that no run names are removed", freed)
        for kind, size in (await asyncio.to_thread(state_bytes, self._state.directory)).items():
            self._bytes.labels(kind).set(size)

    def _ended(self) -> list[EndedRun]:
        last = self._state.last_commits()
        found = []
        for run in self._runs.ended():
            known = self._sizes.get(run.id)
            if known is None or known[0] != run.round:
                size = folder_bytes(self._state.directory / "runs" / run.id)
                known = self._sizes[run.id] = (run.round, size)
            found.append(EndedRun(run.id, max(last.get(run.id, 0.0), run.created), known[1]))
        for id in self._sizes.keys() - {run.id for run in found}:
            del self._sizes[id]  # somebody has deleted it, or it goes on
        return found

    def _sweep(self) -> int:
        ahead = time.time() - self._clock()  # of a clock that was set far off
        seconds = self._retention.blob_seconds + max(ahead, 0.0)
        return self._state.drop_blobs(self._state.unused_blobs(seconds), seconds)

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except (EdgeAttentionError, OSError) as error:
                log.warning("the state folder cannot be looked after now: %s", error)
            await asyncio.sleep(LOOK_SECONDS)
