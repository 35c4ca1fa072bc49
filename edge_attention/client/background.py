"""One event loop on one thread, shared by every synchronous client of the process while there is one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from edge_attention.core.errors import FailedPrecondition

T = TypeVar("T")


class Background:
    """An event loop that runs while someone has acquired it.

    One for all clients: gRPC's asyncio machinery wants one event loop a process.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Start the loop, or keep it."""
        with self._mutex:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="edge-attention-client", daemon=True
                )
                self._thread.start()

    def release(self) -> None:
        """Give it back; the last one stops the loop and its thread."""
        with self._mutex:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout=10)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; an interruption (Ctrl-C) cancels it.

        Raises:
            FailedPrecondition: called from a callback on the loop's own thread, which would wait forever.
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is threading.current_thread():
            coroutine.close()
            raise FailedPrecondition(
                "the client is closed; make another"
                if loop is None
                else "a client cannot be called from its own callback; hand the work to another thread"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


BACKGROUND = Background()
