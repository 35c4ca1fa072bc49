"""The certificate authority in the state folder: makes itself, signs for the server, nodes and clients.

trust/authority.pem   its certificate          trust/authority.key   its key (0600)
trust/trust.db        what it has issued (`aggregator.trust.registry`); belongs to it from the first on
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.trust.certificates import (
    BACKDATE,
    Key,
    common_name,
    ends,
    fingerprint,
    issued,
    key_pem,
    load_key,
    load_pem,
    new_key,
    pem,
    require_intact,
)
from edge_attention.trust.files import write_whole
from edge_attention.trust.names import DOMAIN, SERVER_NAME, Role, uri

REGISTRY = "trust.db"
AUTHORITY_LIFE = timedelta(days=3650)


class Authority:
    """Signs certificates with the key it was made or opened with."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.certificate = certificate
        self.fingerprint = fingerprint(certificate)
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority kept in `folder`, made at the first call.

        Raises:
            FailedPrecondition: the folder cannot be used, or a part of what is kept there is missing.
            InvalidArgument: what is there is damaged.
        """
        certificate_file, key_file = folder / "authority.pem", folder / "authority.key"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(folder / "lock", "ab") as lock:
                # The command line may make it while the daemon starts.
                fcntl.flock(lock, fcntl.LOCK_EX)
                begun = folder / REGISTRY
                if not certificate_file.exists() and (not key_file.exists() or _is_empty(begun)):
                    # There is none, or whoever made it was killed before the certificate, the last of the
                    # three files, was there.
                    made = cls.make()
                    write_whole(key_file, key_pem(made._key), 0o600)
                    begun.touch(mode=0o600)
                    write_whole(certificate_file, pem(made.certificate), 0o644)
                elif key_file.exists() and not begun.exists():
                    raise FailedPrecondition(
                        f"{begun} is missing, the record of what the authority beside it has issued and "
                        "revoked: restore it from a backup; or begin an empty one, after which all nodes and "
                        f"clients must enrol again: rm -f {begun}.sums; touch {begun}, as the user that runs "
                        "the aggregator"
                    )
            certificate_data, key_data = certificate_file.read_bytes(), key_file.read_bytes()
        except OSError as error:
            raise FailedPrecondition(
                f"the authority in {folder} cannot be used: {error.filename or folder}: {error.strerror}; "
                "give the user that runs the aggregator access, or restore the folder from its backup"
            ) from None
        remedy = "restore the folder from its backup"
        try:
            (certificate,) = load_pem(certificate_data, str(certificate_file))[:1]
            key = load_key(key_data, str(key_file))
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}; {remedy}") from None
        require_intact(certificate, certificate, str(certificate_file), remedy)
        if key.public_key() != certificate.public_key():
            raise FailedPrecondition(
                f"{key_file} is not the key of {certificate_file}; restore both from one backup"
            )
        return cls(certificate, key)

    @classmethod
    def make(cls) -> Authority:
        """A new authority, kept nowhere."""
        key = new_key()
        now = datetime.now(UTC)
        serial = x509.random_serial_number()
        name = common_name(f"Edge Attention authority {serial & 0xFFFFFFFF:08x}")
        builder = _builder(name, name, key.public_key(), serial, now - BACKDATE, now + AUTHORITY_LIFE)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(DOMAIN)]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def issue_peer(
        self, key: ec.EllipticCurvePublicKey, role: Role, name: str, life: timedelta
    ) -> x509.Certificate:
        """A certificate with which `key` is `name` in `role`. It is good for calls, not for serving TLS."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri(role, name))]
        return self._issue(key, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, life)

    def issue_server(
        self, key: ec.EllipticCurvePublicKey, names: Iterable[str], life: timedelta
    ) -> x509.Certificate:
        """A certificate with which the aggregator serves under `names`, DNS names or addresses."""
        return self._issue(key, SERVER_NAME, _server_names(names), ExtendedKeyUsageOID.SERVER_AUTH, life)

    def made_server(self, certificate: x509.Certificate, names: Iterable[str], life: timedelta) -> bool:
        """Whether `issue_server` made `certificate`, for these `names` and this `life`."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
            has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        end = min(issued(certificate) + life.total_seconds(), ends(self.certificate))
        # The times in a certificate are whole seconds.
        return list(has) == _server_names(names) and abs(ends(certificate) - end) <= 1

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: str,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        life: timedelta,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        # Nothing outlives the authority.
        end = min(now + life, self.certificate.not_valid_after_utc)
        builder = _builder(
            common_name(subject),
            self.certificate.subject,
            key,
            x509.random_serial_number(),
            now - BACKDATE,
            end,
        )
        own = self._key.public_key()
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _server_names(names: Iterable[str]) -> list[x509.GeneralName]:
    return [_general(name) for name in dict.fromkeys([SERVER_NAME, *names])]


def _general(name: str) -> x509.GeneralName:
    try:
        # Of fe80::1%eth0 a certificate has no more than the address.
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]").partition("%")[0]))
    except ValueError:
        return x509.DNSName(name)


def _is_empty(file: Path) -> bool:
    return not file.exists() or file.stat().st_size == 0


def folder_of(state: Path) -> Path:
    """Where trust is kept in a state folder."""
    return Path(os.path.abspath(state)) / "trust"
