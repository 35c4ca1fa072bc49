"""What became of an append whose answer did not come: learned from the aggregator, or said to be unknown.

The aggregator appends when it has the whole of a call, so one that broke before all was sent is not appended.
Of any other it is asked by the append's id. That also ends it, if it has not been made: it never will be
under this id. Called again by its caller, it goes on under the next of its ids, of which one at most is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from edge_attention.core.errors import AlreadyExists, EdgeAttentionError, NotFound, Unavailable
from edge_attention.core.messages.attention import AppendRequest, AppendResponse
from edge_attention.wire import services
from edge_attention.wire.caller import Caller

ASK_SECONDS = 10.0
"""So long an aggregator that went away is asked for the outcome, within the call's own time."""
TURNS = 9
"""Ids of one append: each but the last was given up."""


class Attempt:
    """One append of a call, by the caller's `request_id` and the `part` of a divided one; `sent`: wholly."""

    def __init__(self, context: str, request_id: str, part: str, timeout: float) -> None:
        self.context = context
        self.request_id = request_id
        self._part = part
        self._until = time.monotonic() + timeout
        self.turn = 1
        self.sent = False

    @property
    def id(self) -> str:
        return self.request_id + self._part + (f"-{self.turn}" if self.turn > 1 else "")

    @property
    def left(self) -> float:
        """Seconds until its caller stops waiting."""
        return max(self._until - time.monotonic(), 0.0)


AppendCall = Callable[[Attempt], Coroutine[Any, Any, AppendResponse]]


async def appended(call: AppendCall, caller: Caller, attempt: Attempt) -> AppendResponse:
    """The answer of `call`, made under the first of the attempt's ids that was not given up before.

    Raises:
        what the aggregator answered; where the connection broke its error, with what is known of the outcome.
    """
    while True:
        try:
            return await _settled(call(attempt), caller, attempt)
        except AlreadyExists:
            if attempt.turn == TURNS:
                raise
        attempt.turn, attempt.sent = attempt.turn + 1, False


async def _settled(
    call: Coroutine[Any, Any, AppendResponse], caller: Caller, attempt: Attempt
) -> AppendResponse:
    try:
        return await call
    except EdgeAttentionError as error:
        if error.told:
            raise
        broken = error
    if not attempt.sent:
        raise _saying(broken, "it was not appended")
    until, pause = time.monotonic() + min(attempt.left, ASK_SECONDS), 0.1
    while (left := until - time.monotonic()) > 0:
        try:
            return await caller.send(services.APPEND, partial(_question, attempt), left)
        except NotFound as error:
            if error.told:
                raise _saying(broken, "it was not appended") from None
        except Unavailable:
            pass
        except EdgeAttentionError:
            break
        await asyncio.sleep(min(pause, max(until - time.monotonic(), 0.0)))
        pause = min(2 * pause, 1.0)
    raise _saying(
        broken,
        f"whether it was appended is not known: call again with request_id={attempt.request_id!r}, which "
        "appends nothing twice, or look at the context's tokens",
    )


async def _question(attempt: Attempt) -> AsyncIterator[AppendRequest]:
    yield AppendRequest(attempt.context, "", request_id=attempt.id)


def _saying(error: EdgeAttentionError, outcome: str) -> EdgeAttentionError:
    return type(error)(f"{error.message} ({outcome})")
