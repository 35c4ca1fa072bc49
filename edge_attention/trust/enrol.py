"""Enrolling with a join token and renewing, as blocking calls: once at the start, then every few days."""

from __future__ import annotations

import time
from typing import TypeVar

import grpc

from edge_attention.core.errors import EdgeAttentionError, Unreachable
from edge_attention.core.messages.trust import EnrolRequest, RenewRequest
from edge_attention.trust.authorities import Authorities
from edge_attention.trust.bootstrap import fetch_authorities
from edge_attention.trust.certificates import signing_request
from edge_attention.trust.dial import Dial
from edge_attention.trust.identity import Identity, IdentityFolder
from edge_attention.trust.tokens import Token
from edge_attention.wire import trust
from edge_attention.wire.errors import from_rpc
from edge_attention.wire.methods import Method

Q = TypeVar("Q")
R = TypeVar("R")

TIMEOUT = 20.0
"""Seconds a call takes at most, with fetching the authority and finding out why nobody answers."""


def enrol(
    address: str,
    token: Token,
    folder: IdentityFolder,
    name: str = "",
    suggested: str = "",
    authorities: Authorities | None = None,
) -> Identity:
    """Get a certificate for `name` ("": the token's, then `suggested`) with a key made here; keep both.

    Raises:
        EdgeAttentionError: what the aggregator refused it with, or why it was not reached.
    """
    ends = time.monotonic() + TIMEOUT
    known = authorities or fetch_authorities(address, token.pin, TIMEOUT / 2)
    dial = Dial(address, f"the aggregator at {address}", authorities=known)
    # A folder that belonged to another aggregator gets a key of its own for this one.
    kept = folder.authorities()
    fresh = kept is not None and not set(kept) & set(known)
    key = folder.pending_key(fresh)
    request = EnrolRequest(token.text, signing_request(key, name or suggested or "any"), name, suggested)
    return folder.save(key, _call(dial, trust.ENROL, request, ends).issued, known)


def renew(
    address: str, identity: Identity, folder: IdentityFolder, authorities: Authorities | None = None
) -> Identity:
    """A new certificate for the identity's key, kept in `folder` with `authorities`, or those it has.

    Raises:
        EdgeAttentionError: what the aggregator refused it with, or why it was not reached.
    """
    known = authorities or identity.authorities
    dial = Dial(address, f"the aggregator at {address}", authorities=known, identity=identity)
    request = RenewRequest(signing_request(identity.key, identity.name))
    ends = time.monotonic() + TIMEOUT
    return folder.save(identity.key, _call(dial, trust.RENEW, request, ends).issued, known)


def _call(dial: Dial, method: Method[Q, R], request: Q, ends: float) -> R:
    channel = dial.channel()
    try:
        call = channel.unary_unary(method.path, None, None)
        data = call(
            method.request.encode(request),
            timeout=max(ends - time.monotonic(), 0.1),
            metadata=dial.metadata(),
        )
        return method.response.decode(data)
    except grpc.RpcError as error:
        raise _explained(dial, from_rpc(error, dial.where), ends) from None
    finally:
        channel.close()


def _explained(dial: Dial, error: EdgeAttentionError, ends: float) -> EdgeAttentionError:
    left = ends - time.monotonic()
    why = dial.why_now(left) if isinstance(error, Unreachable) and left > 0 else None
    return error if why is None else Unreachable(why)
