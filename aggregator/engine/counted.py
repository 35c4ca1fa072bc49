"""Counts what each caller has under way: its calls, each a task, and its answers that it has not read yet.

gRPC holds an answer in memory until the caller's side has taken it, and only then has the call ended. A
caller that stops reading would have as many answers kept as it had asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from aggregator.bounds.bounds import ANSWER_BYTES, CALLS
from aggregator.bounds.budget import Budgets, Lease
from aggregator.serving.rpc import Handler
from aggregator.trust.callers import caller_of
from edge_attention.wire.link import LINK
from edge_attention.wire.methods import AnyMethod


def counted(handlers: Mapping[AnyMethod, Handler], budgets: Budgets) -> dict[AnyMethod, Handler]:
    """`handlers`, those of clients within CALLS. Nodes are bounded by their number (membership.py)."""
    return {
        method: handler if method.service == LINK else _counted(method, handler, budgets)
        for method, handler in handlers.items()
    }


def answer_room(budgets: Budgets) -> Callable[[Any, int], None]:
    """Takes room for an answer of so many bytes until its call, the first argument, has ended.

    What it gives raises `Overloaded` where the caller, or all together, leave too many unread (ANSWER_BYTES).
    """

    def take(call: Any, size: int) -> None:
        _until_ended(call, budgets.take(ANSWER_BYTES, caller_of(call), size))

    return take


def _counted(method: AnyMethod, handler: Handler, budgets: Budgets) -> Handler:
    async def unary(request: Any, call: Any) -> Any:
        _until_ended(call, budgets.take(CALLS, caller_of(call)))
        return await handler(request, call)

    async def stream(request: Any, call: Any) -> Any:
        _until_ended(call, budgets.take(CALLS, caller_of(call)))
        async with contextlib.aclosing(handler(request, call)) as responses:
            async for response in responses:
                yield response
                del response

    return stream if method.streams_response else unary


def _until_ended(call: Any, lease: Lease) -> None:
    """Have `lease` given back when gRPC has done with `call`: answered and taken, refused or broken off."""
    call.add_done_callback(lambda _: lease.give_back())
