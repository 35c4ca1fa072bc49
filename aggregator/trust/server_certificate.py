"""What the aggregator shows: its own certificate, made and renewed by its authority, or the operator's.

The files are read again at every change, so connections made later see the new certificate; those that are
open stay as they are.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from aggregator.trust.authority import Authority
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, InvalidArgument
from edge_attention.trust.certificates import (
    ends,
    key_pem,
    load_key,
    load_pem,
    moment,
    new_key,
    pem,
)
from edge_attention.trust.files import write_whole
from edge_attention.trust.renewal import due

log = logging.getLogger(__name__)


class ServerCertificate:
    """The certificate, chain and key in use, in two files (`chain_file`, `key_file`).

    `authority` is the certificate at the end of the chain: what peers trust and pins are of. `source` is the
    file to look at where the chain does not fit the key.
    """

    def __init__(self, chain_file: Path, key_file: Path, source: Path | None = None) -> None:
        self.chain_file = chain_file
        self.key_file = key_file
        self._source = source or chain_file
        self._mutex = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self.generation = 0
        self._chain: list[x509.Certificate] = []
        self._configuration: Any = None
        self._served = -1

    @property
    def certificate(self) -> x509.Certificate:
        return self._chain[0]

    @property
    def authority(self) -> x509.Certificate:
        return self._chain[-1]

    def load(self) -> None:
        """Read the files again.

        Raises:
            FailedPrecondition, InvalidArgument: they cannot be used; what was in use stays.
        """
        chain_data, key_data = _read(self.chain_file), _read(self.key_file)
        chain = load_pem(chain_data, str(self.chain_file))
        try:
            context = _context(self.chain_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            raise InvalidArgument(
                f"{self.key_file} does not fit {self._source}, or one of them is damaged: {error}"
            ) from None
        configuration = grpc.ssl_server_certificate_configuration([(key_data, chain_data)])
        with self._mutex:
            self._chain = chain
            self._configuration = configuration
            self.generation += 1
            if self._context is None:
                self._context = context
            else:
                self._context.load_cert_chain(self.chain_file, self.key_file)

    def ssl_context(self) -> ssl.SSLContext:
        """For HTTPS; the same object follows every `load`."""
        with self._mutex:
            assert self._context is not None
            return self._context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For gRPC; asks again at every handshake."""
        with self._mutex:
            initial, self._served = self._configuration, self.generation
        return grpc.dynamic_ssl_server_credentials(initial, self._fetch, False)

    def _fetch(self) -> Any:
        with self._mutex:
            if self._served == self.generation:
                return None
            self._served = self.generation
            return self._configuration

    def keep(self) -> bool:
        """Renew, if it is time or the files have changed. Whether anything did."""
        raise NotImplementedError


class OwnCertificate(ServerCertificate):
    """Made by `authority` for `names`, anew at two thirds of its `life`.

    A restart goes on with the one that is there: a browser that was told to accept it need not be told again.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        names: Sequence[str],
        life: timedelta,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(folder / "server.pem", folder / "server.key")
        self._authority = authority
        self._names = names
        self._life = life
        self._clock = clock
        if not self._is_there():
            self._context = None  # of what was there nothing is to be shown
            self._make()

    def _is_there(self) -> bool:
        """Take up what an aggregator before this one has made, if it is what would be made now."""
        try:
            self.load()
        except EdgeAttentionError:
            return False
        if _stat(self.key_file).st_mode & 0o077:
            log.warning("%s could be read by others than its user: another is made", self.key_file)
            return False
        return (
            len(self._chain) == 2
            and self.authority == self._authority.certificate
            and self._authority.made_server(self.certificate, self._names, self._life)
            and self._is_fresh()
        )

    def _is_fresh(self) -> bool:
        # One that begins later was made while the clock was ahead: nobody takes it, and due is far away.
        now = self._clock()
        return self.certificate.not_valid_before_utc.timestamp() <= now < due(self.certificate)

    def keep(self) -> bool:
        if self._is_fresh():
            return False
        self._make()
        log.info("the server has a new certificate, until %s", moment(ends(self.certificate)))
        return True

    def _make(self) -> None:
        key = new_key()
        certificate = self._authority.issue_server(key.public_key(), self._names, self._life)
        try:
            write_whole(self.key_file, key_pem(key), 0o600)
            write_whole(self.chain_file, pem(certificate, self._authority.certificate), 0o644)
        except OSError as error:
            raise FailedPrecondition(
                f"{self.chain_file} cannot be written: {error.strerror}; check the disk and the folder's "
                "rights"
            ) from None
        self.load()


class OperatorsCertificate(ServerCertificate):
    """The operator's own files, read again when they change.

    The chain shown must end with the authority, so that a peer that has only a token can find it: it is
    added from `authority_file`, into a copy in `folder`.
    """

    def __init__(
        self, folder: Path, certificate_file: Path, key_file: Path, authority_file: Path | None
    ) -> None:
        super().__init__(folder / "operator-chain.pem", key_file, certificate_file)
        self._sources = [certificate_file, key_file, *([authority_file] if authority_file else [])]
        self._certificate_file = certificate_file
        self._authority_file = authority_file
        self._seen: object = None
        self.keep()

    def keep(self) -> bool:
        seen = [(_stat(path).st_mtime_ns, _stat(path).st_size) for path in self._sources]
        if seen == self._seen:
            return False
        chain = load_pem(_read(self._certificate_file), str(self._certificate_file))
        load_key_or_any(self.key_file)
        if self._authority_file is not None:
            authority = load_pem(_read(self._authority_file), str(self._authority_file))[0]
            chain = [certificate for certificate in chain if certificate != authority] + [authority]
        write_whole(self.chain_file, pem(*chain), 0o644)
        self.load()
        self._seen = seen
        return True


def load_key_or_any(path: Path) -> None:
    """The operator's key may be of another kind; it is enough that it is there."""
    data = _read(path)
    if b"PRIVATE KEY" not in data:
        load_key(data, str(path))


def _context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None
