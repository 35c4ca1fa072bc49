"""A method as it is served: who does it, who may call it, and what the audit log is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aggregator.serving.rpc import Handler
from edge_attention.trust.names import Role
from edge_attention.wire.methods import AnyMethod


@dataclass(frozen=True)
class AuditLine:
    """The line of a call: its `event`, and its own fields, of the request and of the response (None where the
    call failed, or where responses are a stream)."""

    event: str
    details: Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """One method. Without an `audit` line its calls leave none.

    `role`: what the caller needs at least:

    viewer    sees: nodes, contexts, runs
    user      works: creates and fills contexts, attends, starts runs, reads what they made
    operator  ends what others may rely on: drops contexts, stops and resumes runs
    node      is one: the node link, under its own name
    """

    method: AnyMethod
    handler: Handler
    role: Role
    audit: AuditLine | None = None
