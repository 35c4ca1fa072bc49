"""The caller that a call, or what it leaves behind, is counted for in bounds and turns."""

from __future__ import annotations

from typing import Any

from aggregator.trust.guard import caller


def caller_of(call: Any) -> str:
    """Whose a call under way is: the certificate's or token's subject; without TLS its connection."""
    peer = caller()
    return peer.subject if peer is not None else str(call.peer())


def owner_of(call: Any) -> str:
    """Whose what stays is: the same, but "" without TLS, where connections come and go and have no name."""
    peer = caller()
    return peer.subject if peer is not None else ""
