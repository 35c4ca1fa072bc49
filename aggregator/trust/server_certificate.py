"""What the aggregator shows: its own certificate, made and renewed by its authority.

Connections made after a change see the new certificate; those that are open stay as they are. The operator's
own is in `operators_certificate`.
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
from aggregator.trust.operators_files import read
from aggregator.trust.tls_context import load, tls_context
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.trust.authorities import Authorities, pin_of
from edge_attention.trust.certificates import ends, key_pem, load_pem, moment, new_key, pem
from edge_attention.trust.files import write_whole
from edge_attention.trust.hostnames import hostnames
from edge_attention.trust.renewal import due

log = logging.getLogger(__name__)


class ServerCertificate:
    """The certificate, chain and key in use.

    `authorities` are at the end of the chain: what peers trust and pins are of.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self.generation = 0
        self._chain: tuple[x509.Certificate, ...] = ()
        self._authorities: Authorities = ()
        self._configuration: Any = None
        self._served = -1

    @property
    def certificate(self) -> x509.Certificate:
        return self._chain[0]

    @property
    def authorities(self) -> Authorities:
        return self._authorities

    def use(self, chain: Sequence[x509.Certificate], key: bytes, authorities: Authorities) -> None:
        """Show `chain` from now on. `key`: PEM, not encrypted.

        Raises:
            InvalidArgument: they do not fit, or OpenSSL does not take them; what was in use stays.
        """
        data = pem(*chain)
        context = tls_context(data, key)
        configuration = grpc.ssl_server_certificate_configuration([(key, data)])
        with self._mutex:
            self._chain = tuple(chain)
            self._authorities = authorities
            self._configuration = configuration
            self.generation += 1
            if self._context is None:
                self._context = context
            else:
                load(self._context, data, key)

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

    def shown(self, now: float) -> str:
        """What a peer that does not take it should know, for the log. `now`: seconds since 1970."""
        leaf = self.certificate
        begins, end = leaf.not_valid_before_utc.timestamp(), ends(leaf)
        said = (
            f"it is for {', '.join(hostnames(leaf)[:8])}, of the authority {pin_of(self.authorities)[:16]}..."
        )
        if now > end:
            return f"expired: it ended at {moment(end)}; {said}"
        if now < begins:
            return f"not yet valid: it begins at {moment(begins)}; {said}"
        return f"{said}, good from {moment(begins)} until {moment(end)}"

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
        super().__init__()
        self.chain_file = folder / "server.pem"
        self.key_file = folder / "server.key"
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
            self._load()
        except EdgeAttentionError:
            return False
        if self.key_file.stat().st_mode & 0o077:
            log.warning("%s could be read by others than its user: another is made", self.key_file)
            return False
        return (
            len(self._chain) == 2
            and self.authorities == (self._authority.certificate,)
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
        self._load()

    def _load(self) -> None:
        chain = load_pem(read(self.chain_file), str(self.chain_file))
        self.use(chain, read(self.key_file), (chain[-1],))
