"""The one translator of the catalogue to gRPC, and the one from it."""

from __future__ import annotations

import re

import grpc

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError

ERROR_KEY = "edge-attention-error"
"""Trailing metadata: the name of the error's class."""

RETRY_KEY = "edge-attention-retry-after-ms"
"""Trailing metadata: in how many milliseconds the call is worth another try."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The same for gRPC's own retries (gRPC A6): a client whose policy has UNAVAILABLE waits so long."""

_BY_STATUS: dict[grpc.StatusCode, type[EdgeAttentionError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.INTERNAL: errors.Internal,
}


_DETAILS_LIMIT = 2_000
"""Bytes of a message that travel: percent-encoded they must fit gRPC's 8 KiB of metadata."""


_RETRY_LIMIT = 3_600_000
"""Milliseconds: what is further away than an hour is not worth waiting for."""

_NOT_GRPC = ("missing selected ALPN", "Expected SETTINGS frame", "Failed parsing HTTP/2")
"""What gRPC says where something answered that is no gRPC server: over TLS, and without."""


_LEFT_OUT = re.compile(
    r"failed to connect to all addresses; last error: (?:[A-Z_]+: )?|Failed to connect to remote host: "
)
_NOT_RESOLVED = re.compile(r"errors resolving .*: ([^:\[\]]+)\]")
"""Of what gRPC says where nobody answers, what tells a person nothing; and of a name, all but the reason."""

_REMOVED = "Stream removed"
"""What gRPC says, as UNKNOWN, where TLS finds that bytes were damaged: the connection is gone."""

_CUT = "Internal error from Core"
"""What gRPC's asyncio says when a write fails because the server has ended the call (grpc/grpc#36066)."""


def to_status(error: EdgeAttentionError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Status, details and trailing metadata that stand for `error`."""
    details = error.message.encode(errors="replace")
    if len(details) > _DETAILS_LIMIT:
        details = details[:_DETAILS_LIMIT] + b"..."
    text = details.decode(errors="ignore")
    metadata: tuple[tuple[str, str], ...] = ((ERROR_KEY, type(error).__name__),)
    if error.retry_after is not None:
        milliseconds = str(max(1, min(round(1000 * error.retry_after), _RETRY_LIMIT)))
        metadata += ((RETRY_KEY, milliseconds), (PUSHBACK_KEY, milliseconds))
    return grpc.StatusCode[error.status], text, metadata


def _retry_after(milliseconds: str) -> float | None:
    """What a peer said of when to come again, in seconds; None where that is no number."""
    if not (milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) < 10):
        return None
    return min(int(milliseconds), _RETRY_LIMIT) / 1000


def from_rpc(error: grpc.RpcError, where: str = "") -> EdgeAttentionError:
    """The error a failed call stands for: the class the server named, or the one its status implies.

    Args:
        where: who was called, added where gRPC and not the server made the error.
    """
    call: grpc.Call = error  # type: ignore[assignment]  # every RpcError of a call is one
    metadata = {key: str(value) for key, value in call.trailing_metadata() or ()}
    name = metadata.get(ERROR_KEY, "")
    details = call.details() or ""
    cls = _BY_STATUS.get(call.code(), EdgeAttentionError)
    if name:
        named = errors.by_name(name, details)
        # A newer server may name a class this catalogue lacks: its status still says what it is.
        told = named if type(named).__name__ == name else cls(details)
        told.told = True
        told.retry_after = _retry_after(metadata.get(RETRY_KEY, ""))
        return told
    if cls is errors.Unavailable:  # gRPC's own: no server answered
        where = where or "the server"
        if any(sign in details for sign in _NOT_GRPC):
            return errors.Unreachable(
                f"{where} is not an aggregator's gRPC port; that is 50051 unless --listen says otherwise, "
                "9464 is its page"
            )
        details = _LEFT_OUT.sub("", _NOT_RESOLVED.sub(r"\1", details.rstrip(". ")))
        return errors.Unreachable(
            f"{where} cannot be reached: {details}; is it running, and is the address right?"
        )
    elif cls is errors.Internal and _CUT in details:
        return errors.Unavailable(f"{where or 'the server'} ended the call before all was sent")
    elif call.code() is grpc.StatusCode.UNKNOWN and details.startswith(_REMOVED):
        return errors.Unreachable(f"the connection to {where or 'the server'} broke: {details}")
    elif cls is errors.DeadlineExceeded:
        details = f"{where or 'the server'} did not answer in time"
    return cls(details or f"{where or 'the server'} answered {call.code().name}")
