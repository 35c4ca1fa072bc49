"""Blocking work that many may wait for at a time: it is done once, and nobody waits longer than he likes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """`work`, in a thread of its own; who asks while it is done gets the same result.

    The thread is one that a process does not wait for at its end: work that hangs (the look-up of a name, a
    peer that says nothing) holds up nobody.

    Args:
        keep_seconds: for how long a result is given to others who ask. What it raises is not kept.
    """

    def __init__(self, work: Callable[[], T], keep_seconds: float = 0.0) -> None:
        self._work = work
        self._keep = keep_seconds
        self._future: asyncio.Future[T] | None = None
        self._ended = 0.0

    async def result(self, seconds: float | None = None) -> T:
        """What `work` returns, or raises.

        Raises:
            TimeoutError: it was not done in `seconds`; it goes on, for who asks next.
        """
        future = self._future
        if future is None or (future.done() and not self._kept(future)):
            future = self._future = self._start()
        await asyncio.wait([future], timeout=seconds)
        if not future.done():
            raise TimeoutError
        return future.result()

    def _kept(self, future: asyncio.Future[T]) -> bool:
        return (
            not future.cancelled()
            and future.exception() is None
            and time.monotonic() < self._ended + self._keep
        )

    def _start(self) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(_looked_at)

        def done(result: T | None, error: BaseException | None) -> None:
            self._ended = time.monotonic()
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # T, where there is no error

        def run() -> None:
            result: T | None = None
            failed: BaseException | None = None
            try:
                result = self._work()
            except Exception as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody asks any more
                loop.call_soon_threadsafe(done, result, failed)

        threading.Thread(target=run, name="once", daemon=True).start()
        return future


def _looked_at(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()  # who asked may have gone: nobody is to hear of that
