"""X.509 as used here: P-256 keys, signing requests, fingerprints, and what a certificate says."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_attention.core.errors import EdgeAttentionError, InvalidArgument, Unauthenticated
from edge_attention.trust.names import DOMAIN, Role, parse_uri
from edge_attention.trust.tokens import PIN_DIGITS

BACKDATE = timedelta(minutes=5)
"""A certificate is valid from so long before it is made: clocks of boxes differ."""

Key = ec.EllipticCurvePrivateKey

DAMAGED = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises over what somebody else made."""

ENCODING = serialization.Encoding


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    return key.private_bytes(ENCODING.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_key(pem: bytes, where: str) -> Key:
    """Raises InvalidArgument if it is not a P-256 private key."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidArgument(f"{where} holds no private key in PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument(f"{where} holds a key that is not P-256")
    return key


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(ENCODING.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(ENCODING.DER)


def load_pem(data: bytes, where: str) -> list[x509.Certificate]:
    """Raises InvalidArgument if there is no certificate in `data`."""
    try:
        found = x509.load_pem_x509_certificates(data)
    except DAMAGED:
        found = []
    if not found:
        raise InvalidArgument(f"{where} holds no certificate in PEM")
    return found


def require_intact(certificate: x509.Certificate, issuer: x509.Certificate, where: str, remedy: str) -> None:
    """Refuse a certificate that is not as `issuer` signed it: parts of one that changed may still be read.

    Raises:
        InvalidArgument: it is damaged; says where it is, and the `remedy`.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*DAMAGED, TypeError, InvalidSignature):
        raise InvalidArgument(
            f"{where} is damaged: its certificate is not as it was signed; {remedy}"
        ) from None


_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----"
    rb"(?P<rest>(?:(?!-----BEGIN ).)*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----)?",
    re.DOTALL,
)
"""A certificate in PEM; without its `rest` where the file ends, or another begins, before it does. Linear,
also in the number of those that do not end."""


def load_certificates(data: bytes, where: str) -> list[x509.Certificate]:
    """The certificates in PEM, with whatever text around them, or the one in DER.

    Raises:
        InvalidArgument: there is none, or one is damaged or cut off, as in a file that is being written; of
            containers of other kinds, how to open them.
    """
    blocks = list(_PEM.finditer(data))
    if not blocks and data[:1] == b"\x30":
        try:
            return [x509.load_der_x509_certificate(data)]
        except DAMAGED:
            pass
    found = []
    for number, block in enumerate(blocks, start=1):
        try:
            if not block["rest"]:
                raise ValueError
            found.append(x509.load_pem_x509_certificate(block[0]))
        except DAMAGED:
            raise InvalidArgument(
                f"{where}: certificate {number} of {len(blocks)} is damaged or cut off: copy the file again, "
                "whole"
            ) from None
    if not found:
        raise InvalidArgument(f"{where} holds no certificate in PEM{container(data)}")
    return found


def container(data: bytes) -> str:
    """Of a file that is a container of another kind: which, and the command that opens it; else ""."""
    if b"-----BEGIN PKCS7-----" in data:
        return ": it is PKCS#7; convert it: openssl pkcs7 -in FILE -print_certs -out chain.pem"
    if data[:4] == b"\xfe\xed\xfe\xed":
        return (
            ": it is a Java key store; export a PKCS#12 file with keytool -importkeystore, then convert that"
        )
    # SEQUENCE, its length in long form, INTEGER 3 (RFC 7292, 4).
    if data[:1] == b"\x30" and re.match(
        rb"\x30(?:[\x00-\x80]|[\x81-\x84]).{0,4}?\x02\x01\x03", data[:12], re.DOTALL
    ):
        return (
            ": it is PKCS#12 (.p12, .pfx); convert it: openssl pkcs12 -in FILE -nokeys -out chain.pem, and "
            "openssl pkcs12 -in FILE -nocerts -out key.pem, which asks for a passphrase of the key"
        )
    return ""


def load_der(data: bytes, where: str) -> x509.Certificate:
    """Raises InvalidArgument if it is no certificate."""
    try:
        return x509.load_der_x509_certificate(data)
    except DAMAGED:
        raise InvalidArgument(f"{where} is not a certificate") from None


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """SHA-256 of the certificate's DER, as hex."""
    data = certificate if isinstance(certificate, bytes) else der(certificate)
    return hashlib.sha256(data).hexdigest()


def pin(certificate: x509.Certificate | bytes) -> str:
    return fingerprint(certificate)[:PIN_DIGITS]


def key_fingerprint(key: object) -> str:
    """SHA-256 of a public key's DER, as hex."""
    assert isinstance(key, ec.EllipticCurvePublicKey)
    data = key.public_bytes(ENCODING.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def issued(certificate: x509.Certificate) -> float:
    """When it was made, in seconds since 1970."""
    return (certificate.not_valid_before_utc + BACKDATE).timestamp()


def ends(certificate: x509.Certificate) -> float:
    """When it ends, in seconds since 1970."""
    return certificate.not_valid_after_utc.timestamp()


def moment(seconds: float) -> str:
    """A time for a person: `2026-11-25 16:00:00 UTC`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *DAMAGED):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def is_ours(authority: x509.Certificate) -> bool:
    """Whether an aggregator made this authority for itself: then only that aggregator has such a server
    certificate, and it is known by SERVER_NAME and not by its address."""
    return DOMAIN in uris(authority)


def peer_name(certificate: x509.Certificate) -> tuple[Role, str]:
    """The role and name a certificate was issued for.

    Raises:
        Unauthenticated: it names no peer, or several.
    """
    found = uris(certificate)
    try:
        if len(found) == 1:
            return parse_uri(found[0])
    except EdgeAttentionError:
        pass
    raise Unauthenticated("the certificate names no node and no client of Edge Attention")


def signing_request(key: Key, name: str) -> bytes:
    """A signing request (DER): proves that who asks holds the key."""
    request = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    return request.sign(key, hashes.SHA256()).public_bytes(ENCODING.DER)


REQUEST_LIMIT = 4096


def check_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """The public key in a signing request.

    Raises:
        InvalidArgument: it is damaged, not signed by its key, or the key is not P-256.
    """
    try:
        if len(data) > REQUEST_LIMIT:
            raise ValueError
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        # Before its signature is looked at: with a key of another kind that may take long.
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidArgument("the signing request is for a key that is not P-256")
        valid = request.is_signature_valid
    except (*DAMAGED, InvalidSignature):
        raise InvalidArgument("the signing request is damaged: make it anew") from None
    if not valid:
        raise InvalidArgument("the signing request was not signed with its own key")
    return key
