"""For whom something is done, which nodes are told: who made the call, or who started the run."""

from __future__ import annotations

import contextvars

from aggregator.trust.guard import caller

__all__ = ["acting_for", "context_of"]

_starter: contextvars.ContextVar[str | None] = contextvars.ContextVar("starter", default=None)


def acting_for() -> str:
    """As `user/ana`; "" without TLS, and where nobody called."""
    if (starter := _starter.get()) is not None:
        return starter
    peer = caller()
    return "" if peer is None else peer.subject


def context_of(starter: str) -> contextvars.Context:
    """A context in which all is done for `starter`, whoever calls: for the task of a run."""
    context = contextvars.copy_context()
    context.run(_starter.set, starter)
    return context
