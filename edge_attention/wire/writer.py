"""Writes messages to an open gRPC stream, each begun in the step that has it, in whatever thread that is."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

__all__ = ["StreamWriter"]

log = logging.getLogger(__name__)


class StreamWriter:
    """The writing side of one stream: one message at a time, the next as soon as gRPC has taken the last.

    To await `write` in a task puts a turn of the event loop at least between a message and the wire, and from
    a worker thread a wake-up of the loop's, too: beside kernels these are the longest waits on its way. So
    the coroutine is stepped by hand. Its first step hands the bytes to gRPC, which sends them in the calling
    thread; the rest, to hear that they are gone, the loop does later. (gRPC's core may be called from any
    thread. Of grpc.aio that step only builds objects, under Python's own lock, and nobody else is inside
    `write` then.)

    Args:
        write: the stream's, as `grpc.aio.ServicerContext.write`. Its first call must be on the loop's thread.
        next: what is to be written now, None for nothing; asked again when that is done. It is called in the
            thread of `kick`, or the loop's, and never by two at a time.
        written: told how long a message was, on the loop, when gRPC has taken it.

    A stream that has ended takes nothing more, and `next` is not asked; whoever reads from it learns why.
    """

    def __init__(
        self,
        write: Callable[[bytes], Coroutine[Any, Any, None]],
        next: Callable[[], bytes | None],
        written: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._write = write
        self._next = next
        self._written = written
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._busy = False
        self._closed = False
        self._again = False
        """Whether there was a kick that nobody has looked into."""
        self._free = asyncio.Event()
        self._awaited = False
        """Whether somebody waits for `_free`."""

    def kick(self) -> None:
        """Look for something to write. It may be called from any thread, and from within `next`, too."""
        with self._lock:
            if self._busy or self._closed:
                self._again = True
                return
            self._busy = True
        self._go()

    def close(self) -> None:
        """Write nothing more; what gRPC was given it still sends. To be called before the call ends."""
        with self._lock:
            self._closed = True

    async def idle(self, seconds: float) -> None:
        """Returns when nothing is being written, after `seconds` at the latest."""
        with self._lock:
            if not self._busy:
                return
            self._awaited = True
            self._free.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._free.wait()
        except TimeoutError:
            log.debug("the other side has not taken a message for %g s", seconds)

    def _go(self) -> None:
        while (data := self._taken()) is not None and self._begun(data):
            pass

    def _taken(self) -> bytes | None:
        """The message to write now; None: there is none, and from here on another thread may look."""
        while True:
            self._again = False
            if not self._closed and (data := self._next()) is not None:
                return data
            with self._lock:
                if self._closed or not self._again:
                    self._busy = False
                    awaited, self._awaited = self._awaited, False
                    break
        if awaited:
            self._tell(self._free.set)
        return None

    def _begun(self, data: bytes) -> bool:
        """Whether `data` is written already; otherwise the loop goes on with it, or the stream has ended."""
        coroutine = self._write(data)
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._tell(self._written, len(data))
            return True
        except (Exception, asyncio.CancelledError) as error:
            self._end(error)
            return False
        self._tell(self._follow, coroutine, len(data), future)
        return False

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            callback(*args)
        else:
            self._loop.call_soon_threadsafe(callback, *args)

    def _follow(self, coroutine: Coroutine[Any, Any, None], size: int, future: Any) -> None:
        """Go on when `future`, which the coroutine waits for, is done: as a task would."""
        if future is None:  # it only gave way
            self._loop.call_soon(self._go_on, coroutine, size, None)
            return
        future._asyncio_future_blocking = False
        future.add_done_callback(partial(self._go_on, coroutine, size))

    def _go_on(self, coroutine: Coroutine[Any, Any, None], size: int, _: object) -> None:
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._go()
            self._written(size)
        except (Exception, asyncio.CancelledError) as error:
            self._end(error)
        else:
            self._follow(coroutine, size, future)

    def _end(self, error: BaseException) -> None:
        log.debug("the stream takes no more: %r", error)
        self.close()
        self._busy = False
        self._tell(self._free.set)
