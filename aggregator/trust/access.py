"""Who calls, and whether they may: authentication and roles, for gRPC and for HTTP.

A peer shows a certificate (by a signed assertion, see `edge_attention.trust.assertion`) or an access token.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable

from aggregator.trust.audit import A_SECOND, BURST, Audit
from aggregator.trust.grpc_log import broken
from aggregator.trust.proof import CertificateProof, Peer, bearer
from aggregator.trust.rate import Rate
from aggregator.trust.registry import Registry
from aggregator.trust.server_certificate import ServerCertificate
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument, PermissionDenied, Unauthenticated
from edge_attention.trust.assertion import SECONDS
from edge_attention.trust.names import Role, may
from edge_attention.trust.tokens import Token, parse_token

__all__ = ["Access", "Peer", "Role"]

log = logging.getLogger(__name__)

REMEMBERED = 4096
"""Proofs that were good, so that a call does not check a signature again."""


class Access:
    """Authenticates calls, and refuses with a clear message, a log line and an audit line."""

    def __init__(
        self,
        registry: Registry,
        certificates: CertificateProof,
        server: ServerCertificate,
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._certificates = certificates
        self._server = server
        self._audit = audit
        self._clock = clock
        self._mutex = threading.Lock()
        self._rate = Rate(BURST, A_SECOND)
        self._told: set[str] = set()
        self._good: OrderedDict[str, tuple[Peer, float]] = OrderedDict()

    def authenticate(self, authorization: str | None, peer: str, what: str = "") -> Peer:
        """Who shows `authorization` (a header, or the metadata of that name).

        Args:
            peer: the other end's address, for the log.
            what: what is called, for the log.

        Raises:
            Unauthenticated: nothing was shown, or it proves nothing: expired, of another authority, damaged.
            Revoked: it was good once.
        """
        try:
            return self._prove(authorization)
        except EdgeAttentionError as error:
            self.refuse(error, peer, what)
            raise

    def require(self, peer: Peer, role: Role, address: str = "", what: str = "") -> None:
        """Refuse `peer` unless it has `role`, or more.

        Raises:
            PermissionDenied: it has not.
        """
        if may(peer.role, role):
            return
        remedy = (
            "it can be called by nodes only"
            if role == "node"
            else f"ask an operator for one: edge-aggregator token create --role {role}"
        )
        error = PermissionDenied(
            f"{what or 'this'} needs the role {role}, and {peer.name!r} has the role {peer.role}; {remedy}"
        )
        self.refuse(error, address, what, peer.subject)
        raise error

    def refuse(self, error: EdgeAttentionError, address: str, what: str, subject: str = "") -> None:
        """Tell log and audit of a refusal, up to a rate; the caller raises `error`."""
        suppressed = self._rate.afford(subject)
        if suppressed is not None:
            log.warning(
                "refused %.200s%.200s: %.1000s%s",
                address or "a peer",
                f", {what}" if what else "",
                error.message,
                f" ({suppressed} more before)" if suppressed else "",
            )
        more = {"method": what} if what else {}
        self._audit.write(
            "refused", outcome="refused", subject=subject, peer=address, reason=error.message, **more
        )

    def refuse_handshake(self, reason: str, address: str) -> None:
        """The same of a connection to the HTTP port that came to no request. `reason`: OpenSSL's word for it;
        `address`: empty where it is not known."""
        self.refuse(Unauthenticated(broken(reason)), address, "HTTPS")

    def server_ssl_context(self) -> ssl.SSLContext | None:
        """The server's certificate for HTTPS; the same context follows every rotation."""
        return self._server.ssl_context()

    def changed(self) -> None:
        """Something was revoked: nothing that was good is taken for good any more."""
        with self._mutex:
            self._good.clear()

    def _prove(self, authorization: str | None) -> Peer:
        shown = bearer(authorization)
        now = self._clock()
        with self._mutex:
            peer, until = self._good.get(shown, (None, 0.0))
            if peer is not None and now < until:
                return peer
        try:
            if shown.startswith(("eat_", "eaj_")):
                peer = self._registry.access(_token(shown), now)
            else:
                peer = self._certificates.check(shown, now)
                self._registry.require_not_revoked(peer)
        except EdgeAttentionError:
            raise
        except Exception as error:
            self._unforeseen(error)
            raise Unauthenticated("the authorization could not be checked: it proves nothing") from None
        with self._mutex:
            # Checked anew as often as an assertion is made anew, and not taken for longer than it is good.
            self._good[shown] = (peer, min(now + SECONDS, peer.until, peer.ends))
            while len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
        return peer

    def _unforeseen(self, error: Exception) -> None:
        """A stranger may bring it about again and again: a kind of error is told once, and in one line."""
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            last = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "checking an authorization failed with %s (%.200s) at %s:%s; such calls are refused",
                kind, error, last.filename, last.lineno,
            )  # fmt: skip


def _token(shown: str) -> Token:
    try:
        return parse_token(shown, "access")
    except InvalidArgument as error:
        raise Unauthenticated(error.message) from None
