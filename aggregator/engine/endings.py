"""Runs work to its end although whoever waits for it is cancelled: a commit on the disk, above all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def to_the_end(work: Coroutine[Any, Any, Result], *, counts: bool = False) -> Result:
    """Run `work` in a task of its own and return what it returns.

    A cancellation of the caller does not reach `work`: it is waited for all the same, and if it fails then,
    the log says so, since nobody else will.

    `counts`: what it has done counts, whether somebody waits or not. A caller that was cancelled meanwhile
    goes on as if it had not been: it has something to remember, or to answer, and is as good as through.

    Raises:
        CancelledError: the caller was cancelled meanwhile, once or several times; `work` has ended.
        Exception: whatever `work` raises.
    """
    task, cancelled = asyncio.create_task(work), 0
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled += 1
    if not cancelled:
        return task.result()
    if (error := task.exception()) is not None:
        log.warning("what was under way when it was stopped has failed: %s", error)
    elif counts:
        if (caller := asyncio.current_task()) is not None:
            for _ in range(cancelled):
                caller.uncancel()
        return task.result()
    raise asyncio.CancelledError
