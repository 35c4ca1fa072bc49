"""One snapshot for all who watch, told as changes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aggregator.observe.page import Sections
from edge_attention.core.errors import ResourceExhausted, Unavailable

log = logging.getLogger(__name__)

WATCHERS = 64
"""Of all; of one who has signed in at most as many as it leaves free, so that others find one."""
WAITING = 16
"""Changes kept for a watcher that takes its time; beyond that it is told the whole again."""
TICK_SECONDS = 0.5
SHARE = 0.02
"""Of the event loop's time that pages may take: in a large fleet they are told less often."""


def changes(before: Sections, after: Sections) -> Sections:
    """What to change in `before` to have `after`: values by section and key; None: there is none any more."""
    found: Sections = {}
    for section, values in after.items():
        old = before.get(section, {})
        part = {key: value for key, value in values.items() if key not in old or old[key] != value}
        part |= {key: None for key in old if key not in values}
        if part:
            found[section] = part
    return found


def event(kind: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n".encode()


class Watcher:
    """What one watcher is still to be sent. `lagging`: it took too long, and starts over with the whole."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.lagging = False
        self.closed = False

    def put(self, data: bytes) -> None:
        if len(self._events) >= WAITING:
            self._events.clear()
            self.lagging = True
        if not self.lagging:
            self._events.append(data)
        self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    async def take(self, seconds: float) -> list[bytes]:
        """What there is to send, after waiting for it so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return []
        self._news.clear()
        taken = list(self._events)
        self._events.clear()
        return taken


class Feed:
    """Takes snapshots while somebody watches, and tells everybody the same changes."""

    def __init__(self, take: Callable[[], Sections]) -> None:
        self._take = take
        self._watchers: dict[Watcher, str] = {}
        self._told: Sections = {}
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    def require_room(self, who: str = "") -> None:
        """Refuse a watcher there is no room for. `who` it is; "": nobody in particular.

        Raises:
            Unavailable: the aggregator is stopping.
            ResourceExhausted: there are too many.
        """
        if self.closed:
            raise Unavailable("the aggregator is stopping; try again when it is back")
        watchers, own = len(self._watchers), list(self._watchers.values()).count(who) if who else 0
        if watchers >= WATCHERS:
            raise ResourceExhausted(
                f"{WATCHERS} pages watch this aggregator already; close one of them and try again"
            )
        if own and own >= WATCHERS - watchers - 1:
            raise ResourceExhausted(
                f"{own} pages of yours watch this aggregator already, and {WATCHERS - watchers} are left for "
                "others; close one of them and try again"
            )

    def watch(self, who: str = "") -> Watcher:
        """A new watcher; it begins with `whole`. Arguments, and what it raises, as of `require_room`."""
        self.require_room(who)
        if not self._watchers:
            self._told = self._take()
        watcher = Watcher()
        self._watchers[watcher] = who
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), name="feed")
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = None

    def whole(self) -> dict[str, Any]:
        """Everything, as the changes told next go on from."""
        return {"now": time.time(), **(self._told if self._watchers else self._take())}

    async def _tell(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(TICK_SECONDS, took / SHARE))
            began = time.perf_counter()
            try:
                now = self._take()
                changed = changes(self._told, now)
                if changed:
                    data = event("change", {"now": time.time(), **changed})
                    self._told = now
                    for watcher in self._watchers:
                        watcher.put(data)
            except Exception:
                # The page is not worth the aggregator: it is told of the next one.
                log.exception("the page could not be told what changed")
            took = time.perf_counter() - began

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        for watcher in self._watchers:
            watcher.close()
        if self._task is not None:
            self._task.cancel()
            self._task = None
