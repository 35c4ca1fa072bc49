"""Writes the audit lines of what clients do that matters to others, as endpoints name them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from aggregator.serving.rpc import Handler
from aggregator.trust.audit import Audit
from aggregator.trust.endpoint import AuditLine, Endpoint
from aggregator.trust.guard import caller
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.wire.methods import AnyMethod


def audited(endpoints: Iterable[Endpoint], audit: Audit) -> dict[AnyMethod, Handler]:
    """Their handlers; a call of one that has an audit line writes it."""
    return {
        one.method: one.handler if one.audit is None else _audited(one, one.audit, audit) for one in endpoints
    }


def _audited(endpoint: Endpoint, line: AuditLine, audit: Audit) -> Handler:
    handler = endpoint.handler

    def write(call: Any, outcome: str, reason: str, request: Any, response: Any) -> None:
        peer = caller()
        audit.write(
            line.event,
            outcome=outcome,
            subject=peer.subject if peer is not None else "",
            peer=call.peer(),
            reason=reason,
            **line.details(request, response),
        )

    async def unary(request: Any, call: Any) -> Any:
        try:
            response = await handler(request, call)
        except EdgeAttentionError as error:
            write(call, "failed", error.message, request, None)
            raise
        write(call, "ok", "", request, response)
        return response

    async def stream(request: Any, call: Any) -> Any:
        write(call, "ok", "", request, None)
        async with contextlib.aclosing(handler(request, call)) as responses:
            async for response in responses:
                yield response

    return stream if endpoint.method.streams_response else unary
