"""Reads the operator's certificate and key as people have them: PEM or DER, PKCS#8, PKCS#1 or SEC1, with CRLF
and text around it, encrypted or not. What cannot be read is one error that says what to do."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.trust.certificates import container, load_certificates

_KEY = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ )?)PRIVATE KEY-----"
    rb"(?:(?!-----BEGIN ).)*?-----END (?:[A-Z0-9]+ )?PRIVATE KEY-----",
    re.DOTALL,
)
_PASSPHRASES = (
    "give its passphrase in a file, --tls-key-passphrase-file FILE, or in the environment, "
    "EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE"
)


@dataclass(frozen=True)
class Passphrase:
    """Where the passphrase of the key comes from: the environment, or a file, read at each use."""

    text: str | None = field(default=None, repr=False)
    file: Path | None = None

    def read(self) -> bytes | None:
        """The passphrase; None if there is none.

        Raises:
            FailedPrecondition: the file cannot be read.
            InvalidArgument: the file is empty.
        """
        if self.file is None:
            # Its bytes, whatever they are: what is no UTF-8 stands in the environment as half characters.
            return os.fsencode(self.text) if self.text else None
        # An editor ends a file with a line's end.
        found = read(self.file).rstrip(b"\r\n")
        if not found:
            raise InvalidArgument(
                f"the passphrase file {self.file} is empty: write the key's passphrase into it"
            )
        return found


NONE = Passphrase()


def read(path: Path) -> bytes:
    """What is in a file.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be read: {error.strerror}; give the user that runs the aggregator access to it"
        ) from None


def read_chain(path: Path) -> list[x509.Certificate]:
    """The certificates in --tls-certificate's file.

    Raises:
        FailedPrecondition: it cannot be read.
        InvalidArgument: it holds none; where it is a key, that the two may be swapped.
    """
    data = read(path)
    if _KEY.search(data) and b"CERTIFICATE-----" not in data:
        raise InvalidArgument(
            f"{path} holds a private key and no certificate in PEM: are --tls-certificate and --tls-key "
            "swapped?"
        )
    return load_certificates(data, str(path))


def read_key(path: Path, passphrase: Passphrase) -> PrivateKeyTypes:
    """The private key in --tls-key's file.

    Raises:
        FailedPrecondition: it cannot be read.
        InvalidArgument: it holds none, or is encrypted and the passphrase is missing or wrong.
    """
    data = read(path)
    match = _KEY.search(data)
    if match is None:
        return _der_key(path, data, passphrase)
    kind, block = match[1].strip(), match[0]
    if kind == b"OPENSSH":
        raise InvalidArgument(
            f"{path} is a key of OpenSSH; convert a copy of it: ssh-keygen -p -m PKCS8 -f FILE"
        )
    # Lines that end in CR LF are not PEM to everybody.
    block = block.replace(b"\r\n", b"\n")
    encrypted = kind == b"ENCRYPTED" or b"Proc-Type: 4,ENCRYPTED" in block
    given = passphrase.read() if encrypted else None
    if encrypted and given is None:
        raise InvalidArgument(f"the key {path} is encrypted: {_PASSPHRASES}")
    try:
        return serialization.load_pem_private_key(block, given)
    except (ValueError, TypeError) as error:
        if encrypted:
            raise InvalidArgument(
                f"the key {path} does not open with the passphrase given: {_PASSPHRASES}"
            ) from None
        raise InvalidArgument(f"the key {path} is damaged ({error}): copy the file again, whole") from None
    except UnsupportedAlgorithm as error:
        raise _unsupported(path, error) from None


def _der_key(path: Path, data: bytes, passphrase: Passphrase) -> PrivateKeyTypes:
    if b"CERTIFICATE-----" in data:
        raise InvalidArgument(
            f"{path} holds a certificate and no private key in PEM: are --tls-certificate and --tls-key "
            "swapped?"
        )
    if data[:1] == b"\x30" and not container(data):
        try:
            return serialization.load_der_private_key(data, None)
        except TypeError:
            given = passphrase.read()
            if given is None:
                raise InvalidArgument(f"the key {path} is encrypted: {_PASSPHRASES}") from None
            try:
                return serialization.load_der_private_key(data, given)
            except (ValueError, UnsupportedAlgorithm):
                said = f"the key {path} does not open with the passphrase given: {_PASSPHRASES}"
                raise InvalidArgument(said) from None
        except UnsupportedAlgorithm as error:
            raise _unsupported(path, error) from None
        except ValueError:
            pass
    raise InvalidArgument(f"{path} holds no private key in PEM or DER{container(data)}")


def _unsupported(path: Path, error: UnsupportedAlgorithm) -> InvalidArgument:
    return InvalidArgument(
        f"the key {path} is of a kind that is not supported ({error}): make one of P-256: openssl genpkey "
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
    )


def key_pem(key: PrivateKeyTypes) -> bytes:
    """The key as gRPC and OpenSSL take it: PEM, not encrypted. It is for memory only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
