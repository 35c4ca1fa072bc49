"""The connection that a client's calls go over, and another in its place when it has died without a word.

A box that lost its power, or a NAT that forgot, tells nobody: TCP waits, and keepalive takes 50 s. So who
waits for an answer and has heard nothing over a line for a while has it checked: a ping over it, and a little
later one over a new connection beside it. The line that answers first is the one to go on with: an old one
that a new one has overtaken is dead, or as good as dead. Calls that can be made again are, over the new one;
others keep theirs, and it is closed when nobody uses it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from edge_attention.wire.methods import AnyMethod

QUIET_SECONDS = 2.0
"""Who waits for an answer, and has heard nothing over the line for so long, has it checked."""
QUIET_PART = 0.25
"""Or for this part of his time, if that is less."""
STREAM_QUIET_SECONDS = 5.0
"""The same for streams, on which it may be quiet for long, or a link be busy with what is sent."""
HEAD_SECONDS = 0.25
"""The old line's start before a new one is tried."""
CHECK_SECONDS = 10.0
"""What a check takes at most; then the line stays."""

Open = Callable[[], "Awaitable[grpc.aio.Channel]"]

_PING = "/grpc.health.v1.Health/Check"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Line:
    """One connection: its calls, and when something was last heard over it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.dead = False
        self.heard = time.monotonic()
        self._methods: dict[AnyMethod, Any] = {}
        self._users = 0
        self._again: set[Any] = set()
        self._closing: asyncio.Task[None] | None = None

    def method(self, method: AnyMethod) -> Any:
        """What calls `method` over this line."""
        call = self._methods.get(method)
        if call is None:
            kinds = {
                (False, False): self.channel.unary_unary,
                (False, True): self.channel.unary_stream,
                (True, False): self.channel.stream_unary,
                (True, True): self.channel.stream_stream,
            }
            call = self._methods[method] = kinds[method.streams_request, method.streams_response](
                method.path, None, None
            )
        return call

    @property
    def used(self) -> bool:
        """Whether calls are under way over it."""
        return self._users > 0

    def hear(self) -> None:
        """Something came: it is alive."""
        self.heard = time.monotonic()

    @contextlib.contextmanager
    def using(self, call: Any, again: bool) -> Iterator[None]:
        """A block within which `call` is under way. One that can be made `again` ends when the line dies."""
        self._users += 1
        if again:
            self._again.add(call)
        try:
            yield
        finally:
            self._users -= 1
            self._again.discard(call)
            self._leave()

    def die(self) -> None:
        """Another line is in its place: calls that can be made again end here, and the last one closes it."""
        self.dead = True
        for call in list(self._again):
            call.cancel()
        self._leave()

    def _leave(self) -> None:
        if self.dead and not self._users and self._closing is None:
            self._closing = asyncio.ensure_future(self.close())

    async def close(self) -> None:
        await self.channel.close(None)

    async def ping(self) -> bool:
        """Whether the server says anything: that it does not know the method is an answer, too."""
        try:
            await self.channel.unary_unary(_PING, None, None)(b"", timeout=CHECK_SECONDS)
        except grpc.RpcError as error:
            call: Any = error
            if call.code() in _NO_ANSWER:
                return False
        self.hear()
        return True


class Lines:
    """The line that calls go over now. `open` makes a channel; without it `channel` is the only one."""

    def __init__(self, open: Open | None, channel: Any = None) -> None:
        self._open = open
        self._line = None if channel is None else Line(channel)
        self._opening: asyncio.Task[Line] | None = None
        self._check: asyncio.Task[None] | None = None
        self._old: list[Line] = []
        self.closed = False

    @property
    def opened(self) -> Line:
        """The line that is open now. To be asked for only once one was opened."""
        assert self._line is not None
        return self._line

    async def now(self, seconds: float | None) -> Line:
        """The line to call over, opened if there is none.

        Raises:
            TimeoutError: it was not opened in `seconds`.
            EdgeAttentionError: why it cannot be.
        """
        if self._line is None:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._another(), name="opening")
                self._opening.add_done_callback(_looked_at)
            opening = self._opening
            # Of many who wait none ends the others' waiting.
            await asyncio.wait([opening], timeout=seconds)
            if not opening.done():
                raise TimeoutError
            self._line = self._line or opening.result()
        return self._line

    def suspect(self, line: Line) -> asyncio.Task[None] | None:
        """Have `line` checked, once at a time; None: there is no other to be had, or it is there already."""
        if self._open is None or line is not self._line or self.closed:
            return None
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._checked(line), name="checking")
            self._check.add_done_callback(_looked_at)
        return self._check

    def watch(self, line: Line, quiet: float, late: Callable[[float], bool] | None = None) -> Watch:
        """Has `line` checked whenever nothing was heard for `quiet` seconds, until it is stopped."""
        return Watch(self, line, quiet, late)

    async def close(self) -> None:
        """End all calls under way and every connection."""
        self.closed = True
        for task in (self._opening, self._check):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        for line in (*self._old, self._line):
            if line is not None:
                await line.close()

    async def _another(self) -> Line:
        assert self._open is not None
        return Line(await self._open())

    async def _checked(self, line: Line) -> None:
        pings = {asyncio.create_task(line.ping())}
        fresh: Line | None = None
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await asyncio.wait(pings, timeout=HEAD_SECONDS)
                if any(ping.done() and ping.result() for ping in pings):
                    return
                fresh = await self._another()
                new = asyncio.create_task(fresh.ping())
                pings.add(new)
                waiting = set(pings)
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if any(ping.result() for ping in done if ping is not new):
                        return
                    if new in done and new.result():
                        self._line, fresh = fresh, None
                        line.die()
                        self._old = [old for old in (*self._old, line) if old.used]
                        return
        except TimeoutError:
            return
        finally:
            for ping in pings:
                ping.cancel()
            await asyncio.gather(*pings, return_exceptions=True)
            if fresh is not None:
                await fresh.close()


class Watch:
    """One call's look at its line. `late` is asked at each look, with the seconds of quiet; True ends it."""

    def __init__(self, lines: Lines, line: Line, quiet: float, late: Callable[[float], bool] | None) -> None:
        self._lines = lines
        self._line = line
        self._quiet = quiet
        self._late = late
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(quiet, self._look)

    def moved(self) -> None:
        """The call goes on, whatever was heard."""
        self._began = time.monotonic()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        if self._late is not None and self._late(now - self._began):
            return
        quiet = now - max(self._began, self._line.heard)
        if quiet < self._quiet:
            self._timer = self._loop.call_later(self._quiet - quiet, self._look)
            return
        if self._lines.suspect(self._line) is not None or self._late is not None:
            self._timer = self._loop.call_later(self._quiet, self._look)


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
