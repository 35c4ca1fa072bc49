"""One event loop on one thread, shared by every synchronous client of the process while there is one."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from edge_attention.client.forks import on_fork, pending, stands_still, was_forked
from edge_attention.core.errors import FailedPrecondition

T = TypeVar("T")

Closing = Callable[[], Coroutine[Any, Any, None]]

EXIT_SECONDS = 2.0
"""What closing what was left open may take when the program ends."""
JOIN_SECONDS = 10.0
"""What a stopped loop's thread is waited for."""
STILL_SECONDS = 15.0
"""In a forked child: a loop that turns no more for so long does not turn again."""


class Background:
    """An event loop that runs while someone has acquired it.

    One for all clients: gRPC's asyncio machinery wants one event loop a process.
    """

    def __init__(self) -> None:
        # Reentrant: garbage may be collected, and with it a client, at any step of a thread that has it.
        self._mutex = threading.RLock()
        self._pid = os.getpid()
        self._over = False
        self._still = False
        """Forked, and the loop turns no more."""
        self._ends: dict[object, Closing] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._left: deque[Closing] = deque()
        self._ending: set[asyncio.Task[None]] = set()

    def acquire(self, end: Closing) -> object:
        """Start the loop, or keep it.

        Args:
            end: what is to be run on the loop, by `close`, `forget` or the program's end.

        Returns:
            what to give to `close` or `forget`.
        """
        key = object()
        with self._mutex:
            if self._loop is None:
                # A last one's end may still be under way, and two loops at once are what gRPC does not want.
                self._join(JOIN_SECONDS)
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="edge-attention-client", daemon=True
                )
                self._thread.start()
            self._ends[key] = end
        return key

    def close(self, key: object) -> None:
        """Run the end of what was acquired, and give it back; the last one stops the loop and its thread.

        Nothing happens a second time, nor in a child that was forked meanwhile.
        """
        if self._thread is threading.current_thread():
            self.forget(key)
        elif (end := self._ends.get(key)) is not None and self._pid == os.getpid():
            try:
                self.run(end())
            finally:
                self._release(key)
                if self._loop is None:
                    self._join(JOIN_SECONDS)

    def forget(self, key: object) -> None:
        """`close` in a while, by the loop itself.

        For finalizers, which run on any thread, at any step of it: it takes no lock and waits for nobody.
        """
        if key in self._ends:
            self.soon(lambda: self._end(key))

    def soon(self, end: Closing) -> None:
        """Have `end` run on the loop, if there is one in this process. For finalizers, as `forget` is."""
        loop = self._loop
        if loop is not None and self._pid == os.getpid():
            self._left.append(end)
            with contextlib.suppress(RuntimeError):  # the program's end has closed the loop
                loop.call_soon_threadsafe(self._end_left)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The coroutine's result; an interruption (Ctrl-C) cancels it.

        Raises:
            FailedPrecondition: called from a callback on the loop's own thread, which would wait forever; or
                in a forked child in which gRPC stands still.
            TimeoutError: after `timeout` seconds.
        """
        self.stand_still()
        loop, thread = self._loop, self._thread
        if loop is None or thread is threading.current_thread():
            coroutine.close()
            raise FailedPrecondition(
                "the client is closed; make another"
                if loop is None
                else "a client cannot be called from its own callback; hand the work to another thread"
            )
        if self._still:
            coroutine.close()
            raise stands_still()
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result(timeout) if not was_forked() else self._watched(future, loop, timeout)
        except BaseException:
            future.cancel()
            self.stand_still()
            raise
        finally:
            # It has the error, whose traceback has this frame: as garbage in a cycle they would keep the call
            # that failed, and gRPC dialling for it, also after the client is closed.
            del future

    def _watched(self, future: Future[T], loop: asyncio.AbstractEventLoop, timeout: float | None) -> T:
        """As `future.result(timeout)`, in a forked child, where gRPC may stand still and the loop with it.

        Raises:
            FailedPrecondition: it does.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return future.result(min(STILL_SECONDS, max(until - time.monotonic(), 0.0)))
            except TimeoutError:
                if future.done() or time.monotonic() >= until:
                    raise
            turns = threading.Event()
            loop.call_soon_threadsafe(turns.set)
            if not turns.wait(STILL_SECONDS):
                self._still = True
                raise stands_still()

    def stand_still(self) -> None:
        """Never returns to a daemon thread of a program that ends, whose call was cut off by that.

        Python itself stops daemon threads where they are, a moment later.
        """
        if self._over and threading.current_thread().daemon:
            threading.Event().wait()

    def exit(self) -> None:
        """End what was left open, the loop and its thread: the program ends. Takes EXIT_SECONDS at most."""
        if self._loop is None or self._pid != os.getpid():
            return
        self._over = True
        with contextlib.suppress(Exception):
            self.run(self._end_all(), EXIT_SECONDS)
        for key in list(self._ends):
            self._release(key)
        self._join(EXIT_SECONDS)

    def inherited(self) -> list[Any]:
        """In a forked child: what belongs to its parent's thread. A new client begins with nothing."""
        kept = [*pending(self._loop), self._thread, self._ends, self._left, self._ending]
        vars(self).update(vars(Background()))
        return kept

    def _release(self, key: object) -> None:
        with self._mutex:
            self._ends.pop(key, None)
            if self._ends or self._loop is None:
                return
            loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(loop.stop)

    def _join(self, seconds: float) -> None:
        """Wait for the thread of a loop that was stopped."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not self._still:
            thread.join(seconds)

    def _end_left(self) -> None:
        while self._left:
            task = asyncio.ensure_future(self._left.popleft()())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, key: object) -> None:
        try:
            if (end := self._ends.get(key)) is not None:
                await end()
        finally:
            self._release(key)

    async def _end_all(self) -> None:
        await asyncio.gather(*(end() for end in list(self._ends.values())), return_exceptions=True)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_complain)
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


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler, but for what became of calls of a loop that has ended.

    gRPC has one queue a process: how a call ended that was cut off with its loop is found by the next loop,
    which has nobody to tell.
    """
    gone = isinstance(context.get("exception"), RuntimeError) and "_handle_events" in str(
        context.get("handle")
    )
    if not (gone and "loop is closed" in str(context["exception"])):
        loop.default_exception_handler(context)


BACKGROUND = Background()
on_fork(BACKGROUND.inherited)
atexit.register(BACKGROUND.exit)
