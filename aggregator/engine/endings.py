"""Work that cannot be called back once it has begun."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns. Cancelled, it is waited for all the same, however often; then CancelledError."""
    task, cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if not cancelled:
        return task.result()
    if (error := task.exception()) is not None:
        log.warning("what was under way when it was stopped has failed: %s", error)
    raise asyncio.CancelledError
