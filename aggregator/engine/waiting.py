"""Streams whose sender must not take for ever."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import TypeVar

from edge_attention.core.errors import DeadlineExceeded

T = TypeVar("T")


async def each_within(
    items: AsyncIterator[T], idle: float, what: str, whole: float = math.inf
) -> AsyncIterator[T]:
    """The items, each within `idle` seconds of being asked for, all within `whole`.

    `what`: the next one, for errors.

    Raises:
        DeadlineExceeded: it did not come.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + whole
    iterator = aiter(items)
    while True:
        until = min(loop.time() + idle, end)
        try:
            async with asyncio.timeout_at(until):
                item = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            late = f"in {idle:g} s" if until < end else f"within {whole:g} s of the first"
            raise DeadlineExceeded(f"{what} did not come {late}; send faster, or less in one call") from None
        yield item
        del item
