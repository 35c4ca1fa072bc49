"""Listens: one aiohttp application in the aggregator's event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from aggregator.bounds.budget import Budgets
from aggregator.fleet.membership import Membership
from aggregator.http.door import AGAIN_SECONDS, TOO_MANY, Door
from aggregator.http.endpoints import Endpoints, HttpFamily
from aggregator.http.feed import Feed
from aggregator.http.guard import Handler, PageAccess, PageGuard, add_headers
from aggregator.http.live import Live
from aggregator.http.routes import TOKEN_LIMIT, Page, Probes, Scraped, ServicePhase, ServiceStatus
from aggregator.http.sessions import Sessions
from aggregator.http.snapshot import Snapshots
from aggregator.observe.metrics import Metrics
from aggregator.observe.page import RecipePage
from aggregator.trust.audit import Audit
from aggregator.trust.revocations import RevokedNodes
from edge_attention.core.addresses import require_loopback
from edge_attention.core.errors import InvalidArgument

IDLE_SECONDS = 75.0
HANDSHAKE_SECONDS = 10.0
GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Parts:
    """What of the aggregator is told of.

    Attributes:
        pages: what recipes tell the page, by their names.
        address: where nodes and clients dial.
        scripts: the JavaScript modules that draw what recipes tell, by their names.
        families: what is served besides, in others' forms.
        serve: see Endpoints.
    """

    metrics: Metrics
    membership: Membership
    pages: Mapping[str, RecipePage]
    address: str
    revoked: RevokedNodes = dict
    scripts: Mapping[str, Path] = field(default_factory=dict)
    families: Sequence[HttpFamily] = ()
    budgets: Budgets = field(default_factory=Budgets)
    audit: Audit | None = None
    serve: Callable[[Any, str, str], AbstractContextManager[Any]] | None = None


class _Ours(logging.Filter):
    """Of what aiohttp logs as errors, those that are: not that a stranger sent nonsense, or left."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)


logging.getLogger("aiohttp.server").addFilter(_Ours())


class HttpServer:
    """The HTTP port.

    Args:
        access: who may ask, and the TLS to ask over; None: anyone on this machine, plaintext, loopback only.
    """

    def __init__(self, parts: Parts, access: PageAccess | None = None) -> None:
        self.status = ServiceStatus()
        self._access = access
        self._guard = PageGuard(access, Sessions(lambda: secrets.token_urlsafe(32)), self._asked)
        self.app = web.Application(
            client_max_size=TOKEN_LIMIT, middlewares=[self._heard, self._guard.middleware]
        )
        self.app.on_response_prepare.append(add_headers)
        self._add(Probes(self.status).routes())
        self._add(Scraped(parts.metrics.registry, parts.membership).routes())
        self._add(Page(self._guard, parts.scripts).routes())
        snapshots = Snapshots(
            parts.membership,
            parts.pages,
            self.status,
            parts.metrics,
            {"address": parts.address, "tls": access is not None},
            parts.revoked,
        )
        self._feed = Feed(snapshots.take)
        self._add(Live(self._feed, self._guard).routes())
        self._families = parts.families
        endpoints = Endpoints(self._guard, parts.budgets, parts.serve, parts.audit, parts.metrics.refused)
        for family in parts.families:
            endpoints.add(self.app, family.endpoints, family.form)
        self._runner = web.AppRunner(
            self.app,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=GRACE_SECONDS,
            # Who may send a body that has to be inflated has it inflated within bounds (bodies.py).
            auto_decompress=False,
            # Who goes away waits for nothing any more.
            handler_cancellation=True,
        )
        self._listening: asyncio.Server | None = None
        self._door: Door | None = None
        self.port = 0
        """Where it listens, when it does."""

    def _add(self, routes: Iterable[web.RouteDef]) -> None:
        self.app.add_routes(routes)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port.

        Raises:
            FailedPrecondition: beyond loopback, and there is no TLS.
            InvalidArgument: the port is taken, or the address is not of this machine.
        """
        context = self._access.server_ssl_context() if self._access is not None else None
        plaintext = None
        if self._access is None or context is None:
            require_loopback(host)
        else:
            context.sslobject_class = _handshaker(self._access.refuse_handshake)
            plaintext = self._access.refuse_handshake
        await self._runner.setup()
        try:
            bound = self._door = _bind(host.strip("[]"), port, plaintext)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise InvalidArgument(
                f"cannot serve metrics and the page on {host}:{port}: {why}; choose another --metrics-port"
            ) from None
        self._listening = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=bound,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if context is not None else None,
        )
        self.port = bound.getsockname()[1]
        return self.port

    def serving(self) -> None:
        self.status.phase = ServicePhase.SERVING

    def draining(self) -> None:
        self.status.phase = ServicePhase.DRAINING

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        self._feed.close()
        await self._runner.cleanup()
        for family in self._families:
            if family.close is not None:
                await family.close()

    def _protocol(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None
        made: RequestHandler = server()
        return made

    @web.middleware
    async def _heard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.transport and request.transport.get_extra_info("peername")
        if self._door is not None and (status := self._door.turned(peer)):
            return self._guard.turned_away(request, status, TOO_MANY[status].rstrip(), AGAIN_SECONDS)
        # Without sign-in whoever reaches the port is let in.
        self._asked(request, known=self._access is None)
        return await handler(request)

    def _asked(self, request: web.Request, known: bool = True) -> None:
        if self._door is not None and request.transport is not None:
            self._door.heard(request.transport.get_extra_info("peername"), known)


def _handshaker(refused: Callable[[str, str], None]) -> type[ssl.SSLObject]:
    """What tells of a handshake that OpenSSL refuses: asyncio tells nobody."""

    class Handshaker(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                refused(error.reason or str(error), "")
                raise

    return Handshaker


def _bind(host: str, port: int, plaintext: Callable[[str, str], None] | None) -> Door:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = Door(family, kind, protocol, plaintext)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is every address of this machine, those of IPv4 too.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        bound.setblocking(False)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def page_url(host: str, port: int, *, tls: bool) -> str:
    """Where a person looks at the page."""
    name = host.strip("[]")
    name = "localhost" if name in ("", "0.0.0.0", "::") else f"[{name}]" if ":" in name else name
    return f"{'https' if tls else 'http'}://{name}:{port}/"
