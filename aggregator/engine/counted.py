"""Counts the calls each caller has under way: each takes a task and its messages."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from aggregator.bounds.bounds import CALLS
from aggregator.bounds.budget import Budgets
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


def _counted(method: AnyMethod, handler: Handler, budgets: Budgets) -> Handler:
    async def unary(request: Any, call: Any) -> Any:
        with budgets.take(CALLS, caller_of(call)):
            return await handler(request, call)

    async def stream(request: Any, call: Any) -> Any:
        with budgets.take(CALLS, caller_of(call)):
            async with contextlib.aclosing(handler(request, call)) as responses:
                async for response in responses:
                    yield response
                    del response

    return stream if method.streams_response else unary
