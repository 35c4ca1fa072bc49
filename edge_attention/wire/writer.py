"""Writes messages to an open gRPC stream, each begun in the step that has it, in whatever thread that is."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

__all__ = ["StreamWriter"]

log = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A write that gRPC was given, and what it waits for."""

    coroutine: Coroutine[Any, Any, None]
    future: Any


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
        written: told how long a message was, on the loop, when gRPC has taken it; where nothing more is to be
            written, when gRPC was given it.
        more: whether there may be more to write now; None: nobody knows. Where there is not, the loop does
            not look when gRPC has taken a message; who has the next one does. It is a turn less a message.

    A stream that has ended takes nothing more, and `next` is not asked; whoever reads from it learns why.
    """

    def __init__(
        self,
        write: Callable[[bytes], Coroutine[Any, Any, None]],
        next: Callable[[], bytes | None],
        written: Callable[[int], None] = lambda size: None,
        more: Callable[[], bool] | None = None,
    ) -> None:
        self._write = write
        self._next = next
        self._written = written
        self._more = more
        self._left: _Begun | None = None
        """A write that the loop does not follow: who kicks goes on with it. To be taken under the lock."""
        self._flows = False
        """Whether a message was written to its end: before the first one the stream has to begin."""
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
            left = self._left
            if self._closed or (self._busy and left is None):
                self._again = True
                return
            self._left, self._busy = None, True
        if left is None:
            self._go()
        elif left.future.done():
            if self._ended(left.coroutine):
                self._go()
        else:
            self._tell(self._follow, left.coroutine, None, left.future)

    def close(self) -> None:
        """Write nothing more; what gRPC was given it still sends. To be called before the call ends."""
        with self._lock:
            self._closed = True
        self._take_up()

    def _take_up(self) -> None:
        """Have the loop follow what it has left, if anything."""
        with self._lock:
            left, self._left = self._left, None
        if left is not None:
            self._tell(self._follow, left.coroutine, None, left.future)

    async def idle(self, seconds: float) -> None:
        """Returns when nothing is being written, after `seconds` at the latest."""
        self._take_up()
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
        if not self._leaves(coroutine, len(data), future):
            self._tell(self._follow, coroutine, len(data), future)
        return False

    def _leaves(self, coroutine: Coroutine[Any, Any, None], size: int, future: Any) -> bool:
        """Whether the loop need not follow the write: on its own thread, where there is nothing more."""
        known = self._more is not None and self._flows and future is not None
        if not known or threading.get_ident() != self._thread:
            return False
        with self._lock:
            assert self._more is not None
            if self._closed or self._again or self._awaited or self._more():
                return False
            self._left = _Begun(coroutine, future)
        self._written(size)
        return True

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            callback(*args)
        else:
            self._loop.call_soon_threadsafe(callback, *args)

    def _follow(self, coroutine: Coroutine[Any, Any, None], size: int | None, future: Any) -> None:
        """Go on when `future`, which the coroutine waits for, is done, as a task would. `size`: to tell."""
        if future is None:  # it only gave way
            self._loop.call_soon(self._go_on, coroutine, size, None)
            return
        future._asyncio_future_blocking = False
        future.add_done_callback(partial(self._go_on, coroutine, size))

    def _go_on(self, coroutine: Coroutine[Any, Any, None], size: int | None, _: object) -> None:
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._flows = True
            self._go()
            if size is not None:
                self._written(size)
        except (Exception, asyncio.CancelledError) as error:
            self._end(error)
        else:
            self._follow(coroutine, size, future)

    def _ended(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Whether a write whose future is done has ended well; else the loop goes on with it, or nobody."""
        try:
            future = coroutine.send(None)
        except StopIteration:
            return True
        except (Exception, asyncio.CancelledError) as error:
            self._end(error)
        else:
            self._tell(self._follow, coroutine, None, future)
        return False

    def _end(self, error: BaseException) -> None:
        log.debug("the stream takes no more: %r", error)
        self.close()
        self._busy = False
        self._tell(self._free.set)
