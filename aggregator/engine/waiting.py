"""Deadlines for a stream of messages: for each message, and for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from edge_attention.core.errors import DeadlineExceeded

T = TypeVar("T")


async def each_within(
    items: AsyncIterator[T], idle: float, what: str, whole: float = math.inf
) -> AsyncGenerator[T]:
    """The messages of the stream `items`, in order, until it ends or a deadline passes.

    Close it (`contextlib.aclosing`) where it may be left before its end.

    Args:
        idle: seconds that the sender may take for one message, from when it is asked for.
        whole: seconds for all of them, from the first one's being asked for.
        what: what the next message is called in the error, as "the next chunk of the upload".

    Raises:
        DeadlineExceeded: a message did not come in its time; says what and how long was waited.
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
