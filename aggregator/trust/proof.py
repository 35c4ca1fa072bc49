"""Checks what a peer shows: the assertion, its certificate, and the chain to this aggregator's authority."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edge_attention.core.errors import EdgeAttentionError, Unauthenticated
from edge_attention.trust.assertion import ALGORITHM, SECONDS, SKEW
from edge_attention.trust.certificates import (
    ends,
    fingerprint,
    issued,
    key_fingerprint,
    load_der,
    moment,
    peer_name,
    serial,
    uris,
)
from edge_attention.trust.names import Role

LIMIT = 7000
"""Characters of an assertion that is looked at. gRPC takes 8 KiB of metadata."""


@dataclass(frozen=True)
class Peer:
    """Who calls, and by what: a certificate (its serial number) or an access token (its id)."""

    name: str
    role: Role
    certificate: str = ""
    token: str = ""
    ends: float = math.inf  # when that is no longer good, in seconds since 1970
    until: float = math.inf  # when what was shown is no longer taken, should that be sooner
    key: str = ""  # the fingerprint of the certificate's key

    @property
    def subject(self) -> str:
        """As audit lines and logs have it: `node/a`."""
        return f"{self.role}/{self.name}"


def bearer(authorization: str | None) -> str:
    """What follows `Bearer`.

    Raises:
        Unauthenticated: nothing does.
    """
    if not authorization:
        raise Unauthenticated(
            "the call shows no certificate and no token: a node needs --join-token once; a client needs "
            "--token or --identity (Client(..., token=...) in Python); over HTTP it is the header "
            "`Authorization: Bearer TOKEN`. `edge-aggregator token create --role viewer` prints a token"
        )
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() != "bearer" or not shown.strip():
        raise Unauthenticated("authorization must be `Bearer TOKEN`, with an access token or an assertion")
    return shown.strip()


class CertificateProof:
    """Checks assertions against the authority `issuer`."""

    def __init__(self, issuer: x509.Certificate) -> None:
        self._issuer = issuer
        self._audience = fingerprint(issuer)
        self._store = Store([issuer])

    def check(self, assertion: str, now: float) -> Peer:
        """Who holds the key of the certificate in `assertion`. Whether it was revoked is for the caller.

        Raises:
            Unauthenticated: it does not prove that, and why.
        """
        certificate = _certificate(assertion)
        role, name = peer_name(certificate)
        self._check_chain(certificate, f"{role} {name!r}", now)
        until = self._check_signature(assertion, certificate, f"{role} {name!r}", now)
        key = key_fingerprint(certificate.public_key())
        return Peer(name, role, serial(certificate), ends=ends(certificate), until=until, key=key)

    def _check_chain(self, certificate: x509.Certificate, who: str, now: float) -> None:
        try:
            certificate.verify_directly_issued_by(self._issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise Unauthenticated(
                f"the certificate of {who} was issued by another authority than this aggregator's: enrol "
                "with a join token of this aggregator, or call the aggregator that issued it"
            ) from None
        if now >= ends(certificate):
            raise Unauthenticated(
                f"the certificate of {who} ended at {moment(ends(certificate))}, and it is {moment(now)} "
                "here: enrol again with a join token, or set the clock if one of the two is wrong"
            )
        if now < certificate.not_valid_before_utc.timestamp():
            raise Unauthenticated(
                f"the certificate of {who} begins at {moment(issued(certificate))}, and it is {moment(now)} "
                "here: set this aggregator's clock"
            )
        try:
            verifier = PolicyBuilder().store(self._store).time(datetime.fromtimestamp(now, UTC))
            verifier.build_client_verifier().verify(certificate, [])
        except VerificationError as error:
            raise Unauthenticated(f"the certificate of {who} does not hold: {error}") from None

    def _check_signature(self, assertion: str, certificate: x509.Certificate, who: str, now: float) -> float:
        """Until when the assertion is taken."""
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Unauthenticated(f"the certificate of {who} has a key that is not P-256")
        try:
            claims: dict[str, Any] = jwt.decode(
                assertion,
                key,
                algorithms=[ALGORITHM],
                options={
                    "require": ["sub", "aud", "iat", "exp"],
                    # By the clock given, below.
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(
                f"the assertion of {who} is not signed with the certificate's key: {error}"
            ) from None
        if claims["aud"] != self._audience:
            raise Unauthenticated(f"the assertion of {who} is for another aggregator")
        if claims["sub"] not in uris(certificate):
            raise Unauthenticated(f"the assertion of {who} says another name than its certificate")
        made, end = claims["iat"], claims["exp"]
        if (
            not all(isinstance(value, int) and abs(value) < 2**40 for value in (made, end))
            or end > made + SECONDS
        ):
            raise Unauthenticated(f"the assertion of {who} is not for {SECONDS} seconds at most")
        if not made - SKEW <= now < end + SKEW:
            off = now - made
            raise Unauthenticated(
                f"the assertion of {who} was made {abs(off):.0f} s {'ago' if off > 0 else 'in the future'} "
                f"by this aggregator's clock: set the clocks of both machines (NTP)"
            )
        return float(end + SKEW)


def _certificate(assertion: str) -> x509.Certificate:
    """The certificate in the header; it is not checked yet."""
    try:
        if len(assertion) > LIMIT:
            raise ValueError
        header = jwt.get_unverified_header(assertion)
        (leaf,) = header["x5c"][:1]
        data = base64.b64decode(leaf, validate=True)
        return load_der(data, "x5c")
    except (jwt.PyJWTError, EdgeAttentionError, ValueError, KeyError, TypeError, binascii.Error):
        raise Unauthenticated(
            "the authorization is neither an access token (eat_...) nor an assertion with a certificate"
        ) from None
