"""Puts trust together for the server: authority, certificate, registry, access, guard, service."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import grpc

from aggregator.observe.metrics import Metrics
from aggregator.serving.rpc import Handler
from aggregator.trust.access import Access
from aggregator.trust.audit import Audit
from aggregator.trust.authority import Authority, folder_of
from aggregator.trust.bootstrap import write_bootstrap
from aggregator.trust.expiry import show_expiry
from aggregator.trust.grpc_log import GrpcLog, RefusedHandshake
from aggregator.trust.guard import Guard
from aggregator.trust.operators_certificate import TLS_AUTHORITY, OperatorsCertificate, OperatorsFiles
from aggregator.trust.proof import CertificateProof
from aggregator.trust.registry import Registry
from aggregator.trust.server_certificate import OwnCertificate, ServerCertificate
from aggregator.trust.service import TrustApi
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.trust.authorities import pin_of
from edge_attention.trust.certificates import ends, moment
from edge_attention.wire.methods import AnyMethod

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
SAY_AGAIN_SECONDS = 60.0
"""What goes on failing at every look is said so often."""
HANDSHAKE_SECONDS = 60.0
EXPIRY_SECONDS = 5.0


@dataclass(frozen=True)
class TrustSettings:
    """What the command line says about trust."""

    names: tuple[str, ...] = ()
    life: timedelta = timedelta(days=7)
    operators: OperatorsFiles | None = None
    bootstrap: Path | None = None
    grpc_log: GrpcLog | None = field(default=None, compare=False)


class Trust:
    """Everything about trust of one running aggregator. Close it at the end."""

    def __init__(
        self, settings: TrustSettings, state: Path, host: str, metrics: Metrics, audit: Audit
    ) -> None:
        folder = folder_of(state)
        self._settings = settings
        self._metrics = metrics
        self._audit = audit
        self._authority = Authority.open(folder)
        self._server = self._server_certificate(folder, host)
        self.registry = Registry(folder, daemon=True)
        proof = CertificateProof(self._authority.certificate)
        self.access = Access(self.registry, proof, self._server, audit)
        self.guard = Guard(self.access, self.registry)
        self._api = TrustApi(self._authority, self.registry, self.access, audit, metrics, settings.life)
        self._seen = self.registry.revocations()
        self._shown = 0.0
        self._handshakes: dict[str, tuple[float, int]] = {}
        if settings.grpc_log is not None:
            settings.grpc_log.tell(self._handshake)
        self.bootstrap()
        log.info(
            "TLS: authority %s, server certificate until %s",
            pin_of(self._server.authorities),
            moment(ends(self._server.certificate)),
        )

    def _server_certificate(self, folder: Path, host: str) -> ServerCertificate:
        s = self._settings
        marker = folder / TLS_AUTHORITY
        listening = [] if host in ("0.0.0.0", "::", "[::]") else [host.strip("[]")]
        if s.operators is not None:
            return OperatorsCertificate(folder, replace(s.operators, host="".join(listening)))
        marker.unlink(missing_ok=True)
        own = socket.gethostname()
        always = [name for name in (own, "localhost", "127.0.0.1", "::1") if name]
        return OwnCertificate(folder, self._authority, [*always, *listening, *s.names], s.life)

    def handlers(self) -> Mapping[AnyMethod, Handler]:
        return self._api.handlers()

    def credentials(self) -> grpc.ServerCredentials:
        return self._server.grpc_credentials()

    def bootstrap(self) -> None:
        """Write --bootstrap's files, where they are missing."""
        if self._settings.bootstrap is not None:
            made = write_bootstrap(
                self._settings.bootstrap, self.registry, self._server.authorities, time.time()
            )
            for id in made:
                self._audit.write("token_created", subject="bootstrap", token=id)

    async def watch(self) -> None:
        """Rotate, notice what was revoked, end what has ended; runs as long as the aggregator does."""
        said, again = "", 0.0
        while True:
            try:
                await self._look()
            except (EdgeAttentionError, OSError) as error:
                if str(error) != said or time.monotonic() >= again:
                    log.error("%s", error)
                    said, again = str(error), time.monotonic() + SAY_AGAIN_SECONDS
            except Exception as error:  # a defect: but who is revoked has to be noticed all the same
                if repr(error) != said or time.monotonic() >= again:
                    log.exception("trust was not looked at")
                    said, again = repr(error), time.monotonic() + SAY_AGAIN_SECONDS
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self) -> None:
        revocations = await asyncio.to_thread(self.registry.revocations)
        if revocations != self._seen:
            self._seen = revocations
            self.guard.changed()
        now = time.time()
        self.guard.tick(now)
        before = self._server.authorities
        rotated = await asyncio.to_thread(self._server.keep)
        if self._server.authorities != before:
            await asyncio.to_thread(self.bootstrap)  # what was written there is of the others
        if rotated or now >= self._shown + EXPIRY_SECONDS:
            self._shown = now
            own = {"authority": self._authority.certificate, "server": self._server.certificate}
            await asyncio.to_thread(show_expiry, self._metrics, self.registry, own, now)

    def _handshake(self, why: RefusedHandshake, line: str) -> None:
        """Called on the thread that reads gRPC's log. Of equal ones there is a line a minute."""
        reason = why.reason
        before, times = self._handshakes.get(reason, (-math.inf, 0))
        now = time.monotonic()
        if now - before < HANDSHAKE_SECONDS:
            self._handshakes[reason] = (before, times + 1)
            return
        if len(self._handshakes) > 100:
            self._handshakes.clear()
        self._handshakes[reason] = (now, 0)
        more = f" ({times} more like it before)" if times else ""
        ours = f"; {self._server.shown(time.time())}" if why.ours else ""
        log.warning("refused a connection: %s%s%s", reason, ours, more)
        self._audit.write("refused", outcome="refused", reason=reason, detail=line, more_before=times)

    def close(self) -> None:
        if self._settings.grpc_log is not None:
            self._settings.grpc_log.tell(lambda why, line: None)
        self.registry.close()
