"""The page's data: /api/state at once, /api/events as it changes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from aggregator.http.feed import Feed, event
from aggregator.http.guard import PageGuard
from edge_attention.core.errors import EdgeAttentionError

ALIVE_SECONDS = 5.0
"""A stream without news says so often: the page notices a connection that is dead, this end who may not see
it any more."""
STUCK_SECONDS = 30.0
"""A browser that takes nothing for so long is gone."""
RETRY_MILLISECONDS = 2000


class Live:
    def __init__(self, feed: Feed, guard: PageGuard) -> None:
        self._feed = feed
        self._guard = guard

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/state", self.state),
            web.get("/api/events", self.events, allow_head=False),
            web.head("/api/events", self.would),
        ]

    async def state(self, request: web.Request) -> web.Response:
        return web.json_response({**self._feed.whole(), "you": self._you(request)})

    async def would(self, request: web.Request) -> web.Response:
        """Why there are no events, for a page that was refused them: a browser does not tell it."""
        self._feed.require_room(self._who(request))
        return web.Response(headers={"Content-Type": "text/event-stream"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: `state`, then `change` after `change`; `alive` when nothing else is said."""
        you = self._you(request)
        watcher = self._feed.watch(self._who(request))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            first = event("state", {**self._feed.whole(), "you": you})
            await _write(response, f"retry: {RETRY_MILLISECONDS}\n\n".encode() + first)
            while True:
                taken = await watcher.take(ALIVE_SECONDS)
                if watcher.closed:
                    break
                self._guard.admit(request)
                if watcher.lagging:
                    watcher.lagging = False
                    taken = [event("state", {**self._feed.whole(), "you": you})]
                await _write(response, b"".join(taken) or event("alive", {"now": time.time()}))
        except EdgeAttentionError:
            # The sign-in ended. The browser comes again, and is told.
            pass
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._feed.leave(watcher)
        return response

    def _who(self, request: web.Request) -> str:
        """Whose page it is; "" where there is no sign-in."""
        peer = self._guard.admit(request)
        return peer.subject if peer is not None else ""

    def _you(self, request: web.Request) -> dict[str, Any] | None:
        peer = self._guard.admit(request)
        return {"name": peer.name, "role": peer.role} if peer is not None else None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(STUCK_SECONDS):
        await response.write(data)
