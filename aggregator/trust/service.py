"""TrustService: certificates for join tokens, and new ones for old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.observe.metrics import Metrics
from aggregator.serving.rpc import Handler
from aggregator.trust.access import Access
from aggregator.trust.audit import Audit
from aggregator.trust.authority import Authority
from aggregator.trust.guard import caller
from aggregator.trust.proof import Peer
from aggregator.trust.rate import Rate
from aggregator.trust.registry import CertificateRow, Registry
from edge_attention.core.errors import (
    EdgeAttentionError,
    FailedPrecondition,
    PermissionDenied,
    Unavailable,
)
from edge_attention.core.messages.trust import (
    EnrolRequest,
    EnrolResponse,
    Issued,
    RenewRequest,
    RenewResponse,
)
from edge_attention.trust.certificates import check_request, der, ends, key_fingerprint, serial
from edge_attention.trust.names import Role
from edge_attention.trust.tokens import parse_token
from edge_attention.wire import trust
from edge_attention.wire.methods import AnyMethod

ENROLMENTS = (200.0, 5.0)
"""Tries by one token: at once, and a second on average."""
RENEWALS = (20.0, 1.0)
"""Tries for one name: the same."""


class TrustApi:
    """Issues certificates of `life` from `authority`."""

    def __init__(
        self,
        authority: Authority,
        registry: Registry,
        access: Access,
        audit: Audit,
        metrics: Metrics,
        life: timedelta,
    ) -> None:
        self._authority = authority
        self._registry = registry
        self._access = access
        self._audit = audit
        self._metrics = metrics
        self._life = life
        self._enrolments = Rate(*ENROLMENTS)
        self._renewals = Rate(*RENEWALS)

    def handlers(self) -> Mapping[AnyMethod, Handler]:
        return {trust.ENROL: self.enrol, trust.RENEW: self.renew}

    async def enrol(self, request: EnrolRequest, call: Any) -> EnrolResponse:
        address = call.peer()
        try:
            row, new = await asyncio.to_thread(self._enrol, request)
        except EdgeAttentionError as error:
            self._metrics.enrolments.labels("refused").inc()
            self._access.refuse(error, address, f"enrolment of {(request.name or request.suggested)[:80]!r}")
            raise
        self._metrics.enrolments.labels("ok").inc()
        if new:
            self._metrics.certificates_issued.labels(row.role).inc()
        said: dict[str, Any] = {"token": row.token, "serial": row.serial, "ends": row.ends}
        if not new:
            said["again"] = True
        self._audit.write("enrolled", subject=row.subject, peer=address, **said)
        return EnrolResponse(self._issued(row))

    def _enrol(self, request: EnrolRequest) -> tuple[CertificateRow, bool]:
        """The certificate, and whether it was made now."""
        token = parse_token(request.token, "join")
        self._registry.require_known(token)  # of a stranger nothing more is looked at
        if self._enrolments.afford(token.id) is None:
            raise Unavailable(f"too many enrolments with token {token.id} at a time; try again in a moment")
        key = check_request(request.signing_request)
        made: list[str] = []

        def issue(role: Role, name: str) -> CertificateRow:
            row = self._issue(key, role, name, token.id)
            made.append(row.serial)
            return row

        names = (request.name, request.suggested)
        row = self._registry.enrol(token, *names, key_fingerprint(key), time.time(), issue)
        return row, bool(made)

    async def renew(self, request: RenewRequest, call: Any) -> RenewResponse:
        peer = caller()
        try:
            if peer is None or not peer.certificate:
                raise FailedPrecondition("a certificate is renewed by who holds it; an access token has none")
            row = await asyncio.to_thread(self._renew, request, peer)
        except EdgeAttentionError as error:
            subject = "" if peer is None else peer.subject
            self._access.refuse(error, call.peer(), "TrustService.Renew", subject)
            raise
        self._metrics.certificates_issued.labels(row.role).inc()
        self._audit.write("renewed", subject=row.subject, peer=call.peer(), serial=row.serial, ends=row.ends)
        return RenewResponse(self._issued(row))

    def _renew(self, request: RenewRequest, peer: Peer) -> CertificateRow:
        key = check_request(request.signing_request)
        if key_fingerprint(key) != peer.key:
            # Who has caught an assertion must not make a certificate of its own of it.
            raise PermissionDenied(
                f"the signing request is not for the key of the certificate of {peer.role} {peer.name!r}: a "
                "certificate is renewed for its own key; for another one, enrol with a join token"
            )
        if self._renewals.afford(peer.subject) is None:
            raise Unavailable(f"too many renewals by {peer.role} {peer.name!r} at a time; try again later")
        before = self._registry.certificate(peer.certificate)
        row = self._issue(key, peer.role, peer.name, before.token if before else "")
        self._registry.renew(row, peer.certificate, time.time())
        return row

    def _issue(self, key: ec.EllipticCurvePublicKey, role: Role, name: str, token: str) -> CertificateRow:
        made = self._authority.issue_peer(key, role, name, self._life)
        whose = key_fingerprint(key)
        return CertificateRow(
            serial(made), role, name, whose, token, time.time(), ends(made), None, der(made)
        )

    def _issued(self, row: CertificateRow) -> Issued:
        return Issued(row.der, der(self._authority.certificate), row.name, row.role)
