"""Whom a peer trusts: one authority, or a bundle of several that counts whole.

A bundle is what an operator has while one root is replaced by another. Its pin is of all of it, so that a
token made meanwhile is good whichever of them has signed the server's certificate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.trust.certificates import der, ends, fingerprint, is_ours, load_certificates, pin
from edge_attention.trust.tokens import PIN_DIGITS

Authorities = tuple[x509.Certificate, ...]

AUTHORITIES = 8
"""So many a bundle may hold: each is shown in every handshake."""

_DOMAIN = b"edge-attention authorities "


def pin_of(authorities: Sequence[x509.Certificate]) -> str:
    """What tokens carry of them: of one, the beginning of its SHA-256; of several, of all in any order."""
    if len(authorities) == 1:
        return pin(authorities[0])
    digests = sorted(bytes.fromhex(fingerprint(one)) for one in authorities)
    return hashlib.sha256(_DOMAIN + b"".join(digests)).hexdigest()[:PIN_DIGITS]


def pinned(wanted: str, authorities: Sequence[x509.Certificate]) -> bool:
    """Whether the pin `wanted` is of these, or of one of them."""
    return bool(authorities) and (
        wanted == pin_of(authorities) or any(wanted == pin(one) for one in authorities)
    )


def shown_with_pin(shown: Sequence[x509.Certificate], wanted: str) -> Authorities:
    """Those among the certificates that a server shows which have the pin `wanted`; () if there are none.

    A server shows its authorities last. Nothing of what else it shows is trusted with them.
    """
    for certificate in reversed(shown):
        if pin(certificate) == wanted:
            return (certificate,)
    for count in range(2, min(len(shown), AUTHORITIES) + 1):
        if pin_of(shown[-count:]) == wanted:
            return _in_order(shown[-count:])
    return ()


def _in_order(authorities: Sequence[x509.Certificate]) -> Authorities:
    """Those that are good longest first: of two of one name gRPC asks the first alone."""
    return tuple(sorted(authorities, key=lambda one: (-ends(one), fingerprint(one))))


def are_ours(authorities: Sequence[x509.Certificate]) -> bool:
    """Whether an aggregator has made this authority for itself (`certificates.is_ours`)."""
    return len(authorities) == 1 and is_ours(authorities[0])


def anchors(certificates: Sequence[x509.Certificate], where: str) -> Authorities:
    """The authorities among the certificates of a file: roots, or without any the topmost intermediates.

    Raises:
        InvalidArgument: there are more than AUTHORITIES.
    """
    once = list({der(certificate): certificate for certificate in certificates}.values())
    found = [certificate for certificate in once if certificate.subject == certificate.issuer]
    if not found:
        names = [certificate.subject for certificate in once]
        found = [certificate for certificate in once if certificate.issuer not in names]
    if len(found) > AUTHORITIES:
        raise InvalidArgument(
            f"{where} holds {len(found)} authorities: give those that have signed this aggregator's "
            f"certificate and that will sign the next, {AUTHORITIES} at most"
        )
    return _in_order(found)


def read_authorities(path: Path) -> Authorities:
    """The authorities in a file, PEM or DER.

    Raises:
        FailedPrecondition: it cannot be read.
        InvalidArgument: it holds no certificate, or too many.
    """
    where = f"authority file {path}"
    try:
        return anchors(load_certificates(path.read_bytes(), where), where)
    except OSError as error:
        raise FailedPrecondition(
            f"authority file {path} cannot be read: {error.strerror}; the aggregator's --bootstrap writes "
            "one, and it is trust/authority.pem of its state folder, or trust/tls-authority.pem where the "
            "operator's own certificate is served"
        ) from None
