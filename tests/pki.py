"""Certificates as operators have them: roots, intermediates and servers' certificates of any kind."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

KINDS = {
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA 1024": lambda: rsa.generate_private_key(65537, 1024),
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA 4096": lambda: rsa.generate_private_key(65537, 4096),
    "DSA": lambda: dsa.generate_private_key(2048),
}

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any

    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def key_pem(self, form: serialization.PrivateFormat = PKCS8, passphrase: bytes | None = None) -> bytes:
        how: Any = serialization.NoEncryption()
        if passphrase is not None:
            how = serialization.BestAvailableEncryption(passphrase)
        made: bytes = self.key.private_bytes(PEM, form, how)
        return made


def pem(*issued: Issued) -> bytes:
    return b"".join(one.pem() for one in issued)


def usage(*, signs: bool = True, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def issue(
    name: str,
    by: Issued | None = None,
    *,
    kind: str = "P-256",
    key: Any = None,
    ca: bool = False,
    names: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: tuple[float, float] = (-1, 30),
    digest: Any = None,
    pss: bool = False,
    extended: tuple[x509.ObjectIdentifier, ...] = (),
    key_usage: x509.KeyUsage | None = None,
    path_length: int | None = None,
    constraints: bool = True,
    permitted: str = "",
) -> Issued:
    """A certificate signed `by` another, or by itself. `days`: from and to, from now on."""
    key = key or KINDS[kind]()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    if permitted:
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), critical=True)
    if not ca and names:
        found = x509.SubjectAlternativeName([_general(one) for one in names])
        builder = builder.add_extension(found, critical=False)
    signing = by.key if by else key
    plain = isinstance(signing, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    algorithm = None if plain else digest or hashes.SHA256()
    more: dict[str, Any] = {}
    if pss:
        more["rsa_padding"] = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
    return Issued(builder.sign(signing, algorithm, **more), key)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def authority(name: str, by: Issued | None = None, **options: Any) -> Issued:
    """A root, or an intermediate signed `by` another."""
    options.setdefault("key_usage", usage(signs_certificates=True))
    return issue(name, by, ca=True, **options)
