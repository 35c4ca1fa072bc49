"""Lists of contexts, nodes or runs: a long one is made and written out by a thread, and callers take turns.

To list ten thousand contexts takes the event loop's thread a quarter of a second, of which nothing else would
have any; a viewer who asks again and again would have it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from aggregator.bounds.turns import Turns
from aggregator.trust.callers import caller_of
from edge_attention.wire.methods import Method

__all__ = ["AT_ONCE", "listed"]

AT_ONCE = 256
"""Things that are listed without a thread: each takes some 20 us."""

SECONDS = 30.0
"""What a call has that says nothing of it, or more."""

Q = TypeVar("Q")
R = TypeVar("R")


async def listed(
    method: Method[Q, R], call: Any, count: int, make: Callable[[], R], turns: Turns
) -> R | bytes:
    """What `make` gives, the response of `method` that lists `count` things; of many its bytes.

    `make` may be called by a thread.

    Raises:
        Overloaded: other long lists take the time this call has.
        MessageTooLarge: it does not fit a message.
    """
    if count <= AT_ONCE:
        return make()
    left = call.time_remaining()
    seconds = SECONDS if left is None else min(max(float(left), 0.0), SECONDS)
    async with turns.lists.turn(caller_of(call), 0, seconds):
        return await asyncio.to_thread(lambda: method.response.encode(make()))
