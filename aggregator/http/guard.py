"""Who may ask the HTTP port, and the headers of every answer."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from aggregator.http.sessions import Attempts, Sessions
from edge_attention.core.errors import EdgeAttentionError, NotFound, Overloaded, PermissionDenied
from edge_attention.trust.names import Role

log = logging.getLogger(__name__)

COOKIE = "__Host-edge-attention"
"""The prefix has the browser insist on Secure, Path=/ and no Domain."""
RECHECK_SECONDS = 5.0
"""A session's token is looked up again after so long: one that was revoked ends its sessions."""
OPEN = frozenset({"/healthz", "/readyz", "/signin"})
"""What needs no sign-in; nor do the page's files, which say nothing of this fleet."""

REFUSED = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
}
"""Status of gRPC -> that of HTTP; 500 for others."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: with it a browser sends `Origin: null` with the sign-in form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NoSuchPath(NotFound):
    """Nothing is served at the path, or not by that method."""


class PageAccess(Protocol):
    """What this port asks of `aggregator.trust.access.Access`."""

    def authenticate(self, authorization: str | None, peer: str, what: str = "") -> Any: ...

    def require(self, peer: Any, role: Role, address: str = "", what: str = "") -> None: ...

    def refuse_handshake(self, reason: str, address: str) -> None: ...

    def server_ssl_context(self) -> ssl.SSLContext | None: ...


class PageGuard:
    """Lets requests in. Without `access` the port is on loopback and open to whoever is on this machine."""

    def __init__(
        self,
        access: PageAccess | None,
        sessions: Sessions,
        admitted: Callable[[web.Request], None] = lambda request: None,
    ) -> None:
        """`admitted`: told of each request of somebody who showed who it is."""
        self.access = access
        self.admitted = admitted
        self.sessions = sessions
        self.attempts = Attempts()
        self.open = set(OPEN)
        self.admitting: set[Handler] = set()
        """Handlers that ask `admit` themselves, for a role of their own (endpoints.py)."""
        self.forms: dict[str, Callable[[int, EdgeAttentionError], web.Response]] = {}
        """First segment of a path, as `/v2` -> what makes an error's answer there."""

    def _comes_to_sign_in(self, request: web.Request) -> bool:
        """Whether it is a browser that looks for the page, rather than a caller to refuse."""
        return (
            self.access is not None
            and request.method == hdrs.METH_GET
            and "text/html" in request.headers.get(hdrs.ACCEPT, "")
            and hdrs.AUTHORIZATION not in request.headers
            and self.sessions.find(request.cookies.get(COOKIE, ""), time.monotonic()) is None
        )

    def admit(self, request: web.Request, role: Role = "viewer") -> Any:
        """The peer that asks, which has `role` or more; None where there is no sign-in.

        Raises:
            EdgeAttentionError: UNAUTHENTICATED or PERMISSION_DENIED; says why.
        """
        if self.access is None:
            return None
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        cookie = request.cookies.get(COOKIE, "")
        if authorization is not None or not cookie:
            return self.shown(authorization, request, role)
        peer = self._of_cookie(cookie, request)
        if role != "viewer":
            self.access.require(peer, role, address_of(request), asked(request))
        return peer

    def viewer(self, authorization: str | None, request: web.Request) -> Any:
        """The peer that `authorization` names, if it may look."""
        return self.shown(authorization, request, "viewer")

    def shown(self, authorization: str | None, request: web.Request, role: Role) -> Any:
        """The peer that `authorization` names, if it has that role or more."""
        assert self.access is not None
        address, what = address_of(request), asked(request)
        peer = self.access.authenticate(authorization, address, what)
        self.access.require(peer, role, address, what)
        return peer

    def _of_cookie(self, cookie: str, request: web.Request) -> Any:
        now = time.monotonic()
        session = self.sessions.find(cookie, now)
        if session is None:
            return self.viewer(None, request)
        if now - session.checked < RECHECK_SECONDS:
            return session.peer
        try:
            session.peer = self.viewer(session.authorization, request)
        except EdgeAttentionError as error:
            if error.status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
                self.sessions.end(cookie)
            raise
        session.checked = now
        return session.peer

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self.access is None:
                require_loopback_name(request.headers.get(hdrs.HOST))
            if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
                require_same_origin(request)
            if request.path not in self.open and request.match_info.handler not in self.admitting:
                if self._comes_to_sign_in(request):
                    return web.Response(status=303, headers={"Location": "/signin"})
                self.admit(request)
                self.admitted(request)
            return await handler(request)
        except EdgeAttentionError as error:
            form = self._form(request)
            return refusal(request, error) if form is None else form(REFUSED.get(error.status, 500), error)
        except web.HTTPException as error:
            # No such path, or no such method of it: raised when the handler, which is aiohttp's, is called.
            form = self._form(request)
            if form is None or error.status < 400:
                raise
            answer = form(error.status, NoSuchPath(f"{asked(request)}: {error.reason}"))
            if hdrs.ALLOW in error.headers:
                answer.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
            return answer

    def turned_away(self, request: web.Request, status: int, text: str, seconds: int) -> web.Response:
        """What is told to somebody whose connection is one too many: to come again in so many `seconds`."""
        form = self._form(request)
        error = Overloaded(text, retry_after=seconds)
        answer = web.Response(status=status, text=text + "\n") if form is None else form(status, error)
        answer.headers["Retry-After"] = str(seconds)
        answer.force_close()
        return answer

    def _form(self, request: web.Request) -> Callable[[int, EdgeAttentionError], web.Response] | None:
        return self.forms.get("/" + request.path.split("/", 2)[1]) if request.path.startswith("/") else None


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal of the application: also of answers that are streamed, before their first byte."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")


def refusal(request: web.Request, error: EdgeAttentionError) -> web.StreamResponse:
    """What a caller that is not let in, or asks for what is not there, is told."""
    if error.status == "UNAUTHENTICATED":
        if request.method == hdrs.METH_GET and "text/html" in request.headers.get(hdrs.ACCEPT, ""):
            return web.Response(status=303, headers={"Location": "/signin"})
        headers = {"WWW-Authenticate": 'Bearer realm="edge-attention"'}
        return web.Response(status=401, text=error.message + "\n", headers=headers)
    code = REFUSED.get(error.status, 500)
    headers = {"Retry-After": "5"} if code == 503 else {}
    return web.Response(status=code, text=error.message + "\n", headers=headers)


def asked(request: web.Request) -> str:
    """What a request asks for, as it came, for one line of a log: the decoded path may hold a line's end."""
    path = request.raw_path.partition("?")[0][:80]
    return f"{request.method} " + "".join(c if c.isascii() and c.isprintable() else "?" for c in path)


def address_of(request: web.Request) -> str:
    return request.remote or "unknown"


def require_loopback_name(host: str | None) -> None:
    """Refuse a name that is not this machine's own: a page elsewhere may have had it resolve to here.

    Without sign-in whoever reaches the port may read it, so a browser must not be led to it by a name
    that another site controls (DNS rebinding).

    Raises:
        PermissionDenied: `host`, as the request names it, is not a loopback address or name.
    """
    name = _host_of(f"//{host or ''}")
    try:
        good = ipaddress.ip_address(name).is_loopback
    except ValueError:
        good = name == "localhost" or name.endswith(".localhost")
    if not good:
        raise PermissionDenied(
            f"the request names the host {(host or '')[:80]!r}; without --tls this port answers to "
            "localhost, 127.0.0.1 and [::1] only"
        )


def _host_of(url: str) -> str:
    """The host of `url`; empty where it has none, or is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def require_same_origin(request: web.Request) -> None:
    """Refuse a form that another site has a browser send here. Programs send neither of the headers.

    Raises:
        PermissionDenied: it came from elsewhere.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        good = site in ("same-origin", "none")
    else:
        origin = request.headers.get(hdrs.ORIGIN)
        good = origin is None or origin.partition("//")[2] == request.headers.get(hdrs.HOST)
    if not good:
        raise PermissionDenied("this form was sent by a page of another site; sign in on this one")
