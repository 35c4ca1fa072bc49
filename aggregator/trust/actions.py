"""Audit lines of what clients do that matters to others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from aggregator.serving.rpc import Handler
from aggregator.trust.audit import Audit
from aggregator.trust.guard import caller
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.wire import services
from edge_attention.wire.methods import AnyMethod

Details = Callable[[Any, Any], dict[str, Any]]
"""Of a request and its response (None if it failed): the line's own fields."""

EVENTS: Mapping[AnyMethod, tuple[str, Details]] = {
    services.CREATE_CONTEXT: ("context_created", lambda q, r: {"context": q.spec.name}),
    services.DROP_CONTEXT: ("context_dropped", lambda q, r: {"context": q.context}),
    services.START_RUN: ("run_started", lambda q, r: {"run": r.run.id if r else "", "job": _job(q)}),
    services.STOP_RUN: ("run_stopped", lambda q, r: {"run": q.run}),
    services.RESUME_RUN: ("run_resumed", lambda q, r: {"run": q.run}),
    services.GET_MODEL: ("model_read", lambda q, r: {"run": q.run, "version": q.version}),
    services.GET_PARAMETERS: ("parameters_read", lambda q, r: {"run": q.run, "version": q.version}),
}


def audited(handlers: Mapping[AnyMethod, Handler], audit: Audit) -> dict[AnyMethod, Handler]:
    """`handlers`, those of EVENTS with an audit line each."""
    return {
        method: _audited(method, handler, audit) if method in EVENTS else handler
        for method, handler in handlers.items()
    }


def _audited(method: AnyMethod, handler: Handler, audit: Audit) -> Handler:
    event, details = EVENTS[method]

    def write(call: Any, outcome: str, reason: str, request: Any, response: Any) -> None:
        peer = caller()
        audit.write(
            event,
            outcome=outcome,
            subject=peer.subject if peer is not None else "",
            peer=call.peer(),
            reason=reason,
            **details(request, response),
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

    return stream if method.streams_response else unary


def _job(request: Any) -> str:
    job = request.job or request.federated
    return str(getattr(job, "name", ""))
