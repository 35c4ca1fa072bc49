"""Calls over HTTP as those over gRPC are: a role each, counted, audited, ended when their caller's token is.

An endpoint says who may call it before a byte of its body is read, and before a client that asks first
(`Expect: 100-continue`) is told to send it. What goes wrong is told in the form that clients of these paths
know (`ErrorForm`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from aggregator.bounds.bounds import CALLS
from aggregator.bounds.budget import Budgets
from aggregator.http.guard import PageGuard, address_of, asked
from aggregator.trust.audit import Audit
from aggregator.trust.callers import caller_of, owner_of
from edge_attention.core.errors import EdgeAttentionError, Internal, MessageTooLarge
from edge_attention.trust.names import Role

__all__ = ["Endpoints", "ErrorForm", "HttpCall", "HttpEndpoint", "HttpFamily", "http_status"]

log = logging.getLogger(__name__)

STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,  # asked again it would fail again, until somebody does what the message says
    "ALREADY_EXISTS": 400,
    "CANCELLED": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""As Triton answers; 401, 403 and 504 it does not know."""
TOO_LARGE = 413

ErrorForm = Callable[[int, EdgeAttentionError], web.Response]
"""Makes an answer of a status and an error."""


@dataclass
class HttpCall:
    """A call under way.

    Attributes:
        response: what is being sent, once that has begun: an error after that can only break it off.
    """

    request: web.Request
    response: web.StreamResponse | None = None

    @property
    def caller(self) -> str:
        """At whose cost it is."""
        return caller_of(self)

    @property
    def owner(self) -> str:
        """Whose what it makes is; "" without TLS."""
        return owner_of(self)

    def abort(self) -> None:
        """Close the connection, whatever is under way on it."""
        if self.request.transport is not None:
            self.request.transport.abort()

    def peer(self) -> str:
        """The other end, as gRPC's calls name it."""
        name = self.request.transport.get_extra_info("peername") if self.request.transport else None
        return f"http:{name[0]}:{name[1]}" if name else "http:unknown"


@dataclass(frozen=True)
class HttpEndpoint:
    """One call. `role`: what the caller needs at least; None: nobody has to say who it is.

    `event`: of its audit line, which has the path's variables; "": it leaves none.
    """

    method: str
    path: str
    handler: Callable[[HttpCall], Awaitable[web.StreamResponse]]
    role: Role | None
    event: str = ""


@dataclass(frozen=True)
class HttpFamily:
    """Endpoints below one first segment of a path. `close`: awaited when the port has closed."""

    endpoints: tuple[HttpEndpoint, ...]
    form: ErrorForm
    close: Callable[[], Awaitable[None]] | None = None


class Endpoints:
    """Serves endpoints.

    Args:
        serve: around a call of a peer: knows it as who calls, and ends it when its token is revoked. None:
            without TLS.
        refused: told of each error a call ends with.
    """

    def __init__(
        self,
        guard: PageGuard,
        budgets: Budgets,
        serve: Callable[[Any, str, str], AbstractContextManager[Any]] | None = None,
        audit: Audit | None = None,
        refused: Callable[[EdgeAttentionError], None] = lambda error: None,
    ) -> None:
        self._guard = guard
        self._budgets = budgets
        self._serve = serve
        self._audit = audit
        self._refused = refused

    def add(self, app: web.Application, endpoints: Iterable[HttpEndpoint], form: ErrorForm) -> None:
        """Serve these; `form` is theirs, and of whatever else is asked below their first path segment."""
        for endpoint in endpoints:
            self._guard.forms["/" + endpoint.path.split("/")[1]] = form
            handler, expected = self._handler(endpoint, form), self._expected(endpoint, form)
            # HEAD is GET without the body (RFC 9110): probes and `curl -I` ask so.
            for method in ("GET", "HEAD") if endpoint.method == "GET" else (endpoint.method,):
                app.router.add_route(method, endpoint.path, handler, expect_handler=expected)
            self._guard.admitting.add(handler)

    def _expected(
        self, endpoint: HttpEndpoint, form: ErrorForm
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
        """What is done where a client asks before it sends the body: told to go on, or refused."""

        async def expected(request: web.Request) -> web.StreamResponse | None:
            try:
                if endpoint.role is not None:
                    self._guard.admit(request, endpoint.role)
            except EdgeAttentionError as error:
                self._refused(error)
                return form(http_status(error), error)
            if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None

        return expected

    def _handler(
        self, endpoint: HttpEndpoint, form: ErrorForm
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            call = HttpCall(request)
            try:
                with self._entered(endpoint, call):
                    return await endpoint.handler(call)
            except EdgeAttentionError as error:
                wrong = error
            except (ConnectionError, web.HTTPException):
                raise
            except Exception as error:
                log.exception("%s failed", asked(request))
                wrong = Internal(f"the call failed in the server: {type(error).__name__}; its log says more")
            self._refused(wrong)
            if call.response is not None:
                call.abort()
                return call.response
            return form(http_status(wrong), wrong)

        return handler

    @contextlib.contextmanager
    def _entered(self, endpoint: HttpEndpoint, call: HttpCall) -> Iterator[None]:
        request = call.request
        with contextlib.ExitStack() as stack:
            if endpoint.role is not None:
                peer = self._guard.admit(request, endpoint.role)
                self._guard.admitted(request)
                if peer is not None and self._serve is not None:
                    stack.enter_context(self._serve(peer, asked(request), address_of(request)))
            stack.enter_context(self._budgets.take(CALLS, call.caller))
            try:
                yield
            except EdgeAttentionError as error:
                self._write(endpoint, "failed", call, error.message)
                raise
            self._write(endpoint, "ok", call, "")

    def _write(self, endpoint: HttpEndpoint, outcome: str, call: HttpCall, reason: str) -> None:
        if endpoint.event and self._audit is not None:
            told = dict(call.request.match_info)
            self._audit.write(
                endpoint.event, outcome=outcome, subject=call.owner, peer=call.peer(), reason=reason, **told
            )


def http_status(error: EdgeAttentionError) -> int:
    """The status of HTTP that stands for an error."""
    return TOO_LARGE if isinstance(error, MessageTooLarge) else STATUSES.get(error.status, 500)
