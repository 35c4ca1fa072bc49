"""A peer's own folder: the key it made, its certificate, and whom it trusts.

key.pem            the key; 0600, it never leaves this folder
certificate.pem    the certificate, then the one that signed it
authority.pem      what the server's certificate must end in: one authority, or a bundle
new-key.pem        while an enrolment is under way
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cryptography import x509

from edge_attention.core.errors import (
    DiskFull,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from edge_attention.core.messages.trust import Issued
from edge_attention.trust.authorities import Authorities, anchors
from edge_attention.trust.certificates import (
    Key,
    key_pem,
    load_der,
    load_key,
    load_pem,
    new_key,
    peer_name,
    pem,
    require_intact,
)
from edge_attention.trust.files import write_whole
from edge_attention.trust.names import Role


@dataclass(frozen=True)
class Identity:
    """A name with the key that proves it, and the authorities of the server it is proven to."""

    key: Key
    certificate: x509.Certificate
    issuer: x509.Certificate
    authorities: Authorities

    @property
    def name(self) -> str:
        return peer_name(self.certificate)[1]

    @property
    def role(self) -> Role:
        return peer_name(self.certificate)[0]


class IdentityFolder:
    """Reads and writes the folder; each file whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> Identity:
        """The identity kept here.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it cannot be read.
            InvalidArgument: it is damaged.
        """
        key_file, chain_file = self.folder / "key.pem", self.folder / "certificate.pem"
        try:
            chain_data = chain_file.read_bytes()
            key = load_key(key_file.read_bytes(), str(key_file))
            authorities = self._authorities()
        except FileNotFoundError:
            raise NotFound(
                f"there is no identity in {self.folder}: make one with a join token (edge-node --join-token, "
                "edge-attention enrol)"
            ) from None
        except OSError as error:
            raise _unusable(self.folder, error) from None
        chain = load_pem(chain_data, str(chain_file))
        for certificate, issuer in pairwise(chain):
            remedy = f"remove {self.folder} and enrol again with a token"
            require_intact(certificate, issuer, str(chain_file), remedy)
        if len(chain) < 2 or key.public_key() != chain[0].public_key():
            if (self.folder / "new-key.pem").exists():
                raise NotFound(f"an enrolment in {self.folder} was cut short: enrol again with a join token")
            raise InvalidArgument(
                f"{chain_file} does not fit {key_file}: remove {self.folder} and enrol again with a token"
            )
        return Identity(key, chain[0], chain[1], authorities)

    def exists(self) -> bool:
        return (self.folder / "certificate.pem").exists()

    def authorities(self) -> Authorities | None:
        """The authorities kept here; None if there are none, or they cannot be read."""
        with contextlib.suppress(OSError, InvalidArgument):
            return self._authorities()
        return None

    def _authorities(self) -> Authorities:
        file = self.folder / "authority.pem"
        return anchors(load_pem(file.read_bytes(), str(file)), str(file))

    def pending_key(self, fresh: bool) -> Key:
        """The key to enrol with: the one in use unless `fresh`, or the one of a try whose answer was lost.

        It is on disk before it is asked a certificate for: an answer that is lost can be asked for again.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = ["new-key.pem"] if fresh else ["new-key.pem", "key.pem"]
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    return load_key((self.folder / name).read_bytes(), str(self.folder / name))
            key = new_key()
            write_whole(self.folder / "new-key.pem", key_pem(key), 0o600)
            return key
        except OSError as error:
            raise _unusable(self.folder, error) from None

    def save(self, key: Key, issued: Issued, authorities: Authorities) -> Identity:
        """Keep what was issued; the identity it makes.

        Raises:
            DiskFull, FailedPrecondition: the folder cannot be written.
            InvalidArgument: the certificate is not for the key.
        """
        certificate = load_der(issued.certificate, "the certificate issued")
        issuer = load_der(issued.issuer, "the issuer's certificate")
        if certificate.public_key() != key.public_key():
            raise InvalidArgument("the aggregator issued a certificate for another key; enrol again")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / "authority.pem", pem(*authorities), 0o644)
            write_whole(self.folder / "key.pem", key_pem(key), 0o600)
            write_whole(self.folder / "certificate.pem", pem(certificate, issuer), 0o644)
            (self.folder / "new-key.pem").unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        return Identity(key, certificate, issuer, authorities)


def _unusable(folder: Path, error: OSError) -> EdgeAttentionError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"identity folder {folder}: the disk is full; free space there, then try again")
    return FailedPrecondition(
        f"identity folder {folder} cannot be used: {error.strerror}; make it readable and writable for this "
        "user"
    )
