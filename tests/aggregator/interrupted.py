"""Cancels what is under way at each of its waits in turn: in its middle, and in the moment in which it ends.

async for _ in at_each_wait(lambda: runner.infer(...)):
    what must hold however far it came
"""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

MOST = 1000
"""Waits of one call, in a test."""


@types.coroutine
def _until(work: Coroutine[Any, Any, Any], wait: int, ended: bool) -> Any:
    """Run `work`, and cancel the task that does as it comes to its wait of that number: at once, or (`ended`)
    when what it waits for has come and it has not heard of it."""
    task, value, error = asyncio.current_task(), None, None
    for number in itertools.count():
        try:
            future = work.send(value) if error is None else work.throw(error)
        except StopIteration as end:
            return end.value
        if number == wait:
            if ended and future is not None:
                future.add_done_callback(lambda _: task.cancel())  # before the task's own
            else:
                task.cancel()
        try:
            value, error = (yield future), None
        except BaseException as raised:
            value, error = None, raised
    raise AssertionError


async def at_each_wait(call: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[tuple[int, Any]]:
    """After each call that was cancelled the number of its wait, and what it has returned all the same."""
    for wait in range(MOST):
        whole = 0
        for ended in (False, True):

            async def cancelled(wait: int = wait, ended: bool = ended) -> Any:
                return await _until(call(), wait, ended)

            task = asyncio.create_task(cancelled())
            await asyncio.wait([task])
            if not task.cancelled():
                whole += not task.cancelling()
                yield wait, task.result()
            else:
                yield wait, None
        if whole == 2:  # it had no such wait any more
            return
    raise AssertionError(f"more than {MOST} waits")
