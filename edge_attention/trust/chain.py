"""Judges a server's certificate as gRPC's TLS (BoringSSL) does, and says what is wrong with it. Pure.

What is accepted was found by real handshakes (tests/trust/test_handshakes.py): keys of servers are P-256,
P-384 or RSA; authorities may also have P-224, P-521 or Ed25519; an intermediate that is trusted is a root.
Stricter than gRPC is this: RSA keys under 2,048 bits and SHA-1 signatures, which gRPC takes, are refused by
OpenSSL, which serves the HTTP port.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, PublicKeyAlgorithmOID

from edge_attention.trust.certificates import DAMAGED, der, moment, pin
from edge_attention.trust.hostnames import hostnames, is_for

TRIED = 256
"""So many signatures are verified on the search for a path: a foreign server shows what it likes."""

RSA_BITS = 2048
"""An RSA key has at least so many: what OpenSSL takes at the level of security that Debian sets."""

_HASHES = (hashes.SHA224, hashes.SHA256, hashes.SHA384, hashes.SHA512)
_SERVERS = (ec.SECP256R1, ec.SECP384R1)
_AUTHORITIES = (*_SERVERS, ec.SECP224R1, ec.SECP521R1)


class CertificateFault(Enum):
    """What is wrong with a certificate, in the words that both sides use."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    WRONG_AUTHORITY = "wrong authority"
    INCOMPLETE = "incomplete chain"
    WRONG_NAME = "wrong name"
    UNSUPPORTED_KEY = "unsupported key"
    UNSUPPORTED_SIGNATURE = "unsupported signature"
    WRONG_USE = "wrong use"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class CertificateTrouble:
    """Why a certificate is not taken.

    Attributes:
        said: a clause without a full stop: what is wrong with which certificate.
        certificate: the one that is meant.
    """

    fault: CertificateFault
    said: str
    certificate: x509.Certificate

    def __str__(self) -> str:
        return f"{self.fault.value}: {self.said}"


@dataclass(frozen=True)
class Path:
    """From a server's certificate towards an authority.

    Attributes:
        certificates: the server's first; each is signed by the next.
        trusted: whether the last is an authority, and not only the last that was found.
    """

    certificates: tuple[x509.Certificate, ...]
    trusted: bool


def called(certificate: x509.Certificate) -> str:
    """A certificate for a person: its common name, or its whole subject."""
    return _name(certificate.subject)


def _name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return repr(str(found[0].value)[:80] if found else name.rfc4514_string()[:120])


def find_path(
    leaf: x509.Certificate, pool: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> Path:
    """The shortest path from `leaf` over certificates of `pool` to one of `authorities`.

    Without one, the longest: what its last certificate lacks is what is missing. gRPC does not search: of two
    of one name in `pool` it follows the first, of those in `authorities` too, which come before.
    """
    ends = {der(one) for one in authorities}
    candidates = [(one, der(one)) for one in (*authorities, *pool)]
    paths: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    seen = {der(leaf)}
    longest: tuple[x509.Certificate, ...] = (leaf,)
    left = TRIED
    while paths:
        path = paths.pop(0)
        if der(path[-1]) in ends:
            return Path(path, True)
        longest = max(longest, path, key=len)
        for issuer, data in candidates:
            if data in seen or path[-1].issuer != issuer.subject:
                continue
            if not left:
                return Path(longest, False)
            left -= 1
            if signed(path[-1], issuer):
                seen.add(data)
                paths.append((*path, issuer))
    return Path(longest, False)


def signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` has signed it. Of a signature that nobody accepts any more the name alone counts: it
    is found by `judge`."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return not _accepted(certificate) or not _authority_key(issuer)
    return True


def judge(
    leaf: x509.Certificate,
    pool: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    host: str | None,
    now: float,
) -> CertificateTrouble | None:
    """Why a peer that trusts `authorities` does not take the server's certificate `leaf`; None if it does.

    Args:
        pool: the other certificates that the server shows.
        host: the name that is expected of it; None: any.
        now: seconds since 1970.
    """
    try:
        return _judge(leaf, pool, authorities, host, now)
    except DAMAGED:  # of parts that are read when they are asked for
        return CertificateTrouble(CertificateFault.DAMAGED, "a part of a certificate cannot be read", leaf)


def _judge(
    leaf: x509.Certificate,
    pool: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    host: str | None,
    now: float,
) -> CertificateTrouble | None:
    path = find_path(leaf, pool, authorities)
    trouble = None if path.trusted else _lacks(path.certificates[-1], leaf, authorities)
    return trouble or _unfit(path.certificates, now) or (_misnamed(leaf, host) if host else None)


def _lacks(
    top: x509.Certificate, leaf: x509.Certificate, authorities: Sequence[x509.Certificate]
) -> CertificateTrouble:
    trusted = ", ".join(f"{called(one)} ({pin(one)[:16]}...)" for one in authorities[:4]) or "none"
    if top.issuer == top.subject:
        said = f"the chain ends in {called(top)} ({pin(top)[:16]}...), and trusted is {trusted}"
        return CertificateTrouble(CertificateFault.WRONG_AUTHORITY, said, top)
    if any(one.subject == top.issuer for one in authorities):
        said = (
            f"{called(top)} says that {_name(top.issuer)} has signed it, and the authority of that name that "
            f"is trusted has not: trusted is {trusted}"
        )
        return CertificateTrouble(CertificateFault.WRONG_AUTHORITY, said, top)
    if top is leaf:
        said = (
            f"the certificate of {_name(top.issuer)} is missing, which has signed {called(top)}; trusted is "
            f"{trusted}"
        )
        return CertificateTrouble(CertificateFault.INCOMPLETE, said, top)
    said = (
        f"the chain of {called(leaf)} ends in {called(top)}, which {_name(top.issuer)} has signed, whose "
        f"certificate is not there; trusted is {trusted}"
    )
    return CertificateTrouble(CertificateFault.WRONG_AUTHORITY, said, top)


def _unfit(path: Sequence[x509.Certificate], now: float) -> CertificateTrouble | None:
    return (
        next((found for one in path if (found := _dated(one, now))), None)
        or server_key(path[0])
        or next((found for one in path[1:] if (found := _unsupported(one))), None)
        or next((found for one in path[:-1] if (found := _badly_signed(one))), None)
        or _misused(path)
    )


def _dated(certificate: x509.Certificate, now: float) -> CertificateTrouble | None:
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now > ends:
        said = (
            f"{called(certificate)} was good until {moment(ends)}, and by this machine's clock it is "
            f"{_now(now)}"
        )
        return CertificateTrouble(CertificateFault.EXPIRED, said, certificate)
    if now < begins:
        said = (
            f"{called(certificate)} is good from {moment(begins)} on, and by this machine's clock it is "
            f"{_now(now)}"
        )
        return CertificateTrouble(CertificateFault.NOT_YET_VALID, said, certificate)
    return None


def _now(now: float) -> str:
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"


def server_key(certificate: x509.Certificate) -> CertificateTrouble | None:
    """Whether gRPC's peers take a server's key of this kind."""
    kind = key_kind(certificate)
    key = _public_key(certificate)
    good = (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _SERVERS)) or (
        isinstance(key, rsa.RSAPublicKey) and not _is_pss(certificate) and key.key_size >= RSA_BITS
    )
    if good:
        return None
    said = (
        f"the key of {called(certificate)} is {kind}, and TLS here takes P-256, P-384 and RSA from "
        f"{RSA_BITS} bits"
    )
    return CertificateTrouble(CertificateFault.UNSUPPORTED_KEY, said, certificate)


def _unsupported(authority: x509.Certificate) -> CertificateTrouble | None:
    if _authority_key(authority):
        return None
    said = (
        f"the key of the authority {called(authority)} is {key_kind(authority)}, and TLS here takes P-256, "
        f"P-384, P-521, Ed25519 and RSA from {RSA_BITS} bits"
    )
    return CertificateTrouble(CertificateFault.UNSUPPORTED_KEY, said, authority)


def _authority_key(authority: x509.Certificate) -> bool:
    key = _public_key(authority)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _AUTHORITIES)
    if isinstance(key, rsa.RSAPublicKey):
        return not _is_pss(authority) and key.key_size >= RSA_BITS
    return isinstance(key, ed25519.Ed25519PublicKey)


def key_kind(certificate: x509.Certificate) -> str:
    """What its key is, for a person: `P-256`, `RSA of 2048 bits`, `Ed25519`."""
    key = _public_key(certificate)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, key.curve.name)
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA{'-PSS' if _is_pss(certificate) else ''} of {key.key_size} bits"
    kind = type(key).__name__.removesuffix("PublicKey") if key is not None else ""
    return kind or f"of a kind that is not known ({certificate.public_key_algorithm_oid.dotted_string})"


_CURVES = {"secp224r1": "P-224", "secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def _is_pss(certificate: x509.Certificate) -> bool:
    return certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS


def _accepted(certificate: x509.Certificate) -> bool:
    try:
        algorithm = certificate.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return False
    return algorithm is None or isinstance(algorithm, _HASHES)  # None: Ed25519 takes none


def _badly_signed(certificate: x509.Certificate) -> CertificateTrouble | None:
    if _accepted(certificate):
        return None
    algorithm = certificate.signature_algorithm_oid
    said = (
        f"{called(certificate)} is signed with {getattr(algorithm, '_name', algorithm.dotted_string)}, and "
        "TLS here takes SHA-256, SHA-384 and SHA-512"
    )
    return CertificateTrouble(CertificateFault.UNSUPPORTED_SIGNATURE, said, certificate)


def _misused(path: Sequence[x509.Certificate]) -> CertificateTrouble | None:
    leaf = path[0]
    for one in path[:-1] or path:
        extended = _extension(one, x509.ExtendedKeyUsage)
        if extended is not None and ExtendedKeyUsageOID.SERVER_AUTH not in extended:
            said = f"{called(one)} is not for servers: its extended key usage lacks serverAuth"
            return CertificateTrouble(CertificateFault.WRONG_USE, said, one)
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        said = (
            f"the key usage of {called(leaf)} lacks digitalSignature, by which TLS proves that the key is "
            "there"
        )
        return CertificateTrouble(CertificateFault.WRONG_USE, said, leaf)
    for below, one in enumerate(path[1:]):
        said = _no_authority(one, path[below], below, trusted=below + 2 == len(path))
        if said:
            return CertificateTrouble(CertificateFault.WRONG_USE, said, one)
    return None


def _no_authority(one: x509.Certificate, child: x509.Certificate, below: int, trusted: bool) -> str:
    """Why `one` may not have signed `child`, with so many intermediates below it; "" if it may. Of what is
    trusted nobody asks for more than its key usage."""
    usage = _extension(one, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return f"the key usage of {called(one)} lacks keyCertSign, and it has signed {called(child)}"
    if trusted:
        return ""
    constraints = _extension(one, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return f"{called(one)} is no authority and has signed {called(child)}: its basic constraints lack CA"
    if constraints.path_length is not None and below > constraints.path_length:
        return (
            f"{called(one)} lets {constraints.path_length} intermediates stand below it, and here are {below}"
        )
    return ""


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _misnamed(leaf: x509.Certificate, host: str) -> CertificateTrouble | None:
    if is_for(leaf, host):
        return None
    names = hostnames(leaf)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    said = f"the certificate is for {', '.join(names[:8]) or 'no name'}{more}, not for {host}"
    return CertificateTrouble(CertificateFault.WRONG_NAME, said, leaf)
