"""What programs ask of the HTTP port, and the page's files. The page's data: live.py."""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

from aggregator.fleet.membership import Member, Membership
from aggregator.http.guard import COOKIE, PageGuard, address_of
from aggregator.http.runbook import as_html, read_runbook
from edge_attention.core.errors import (
    EdgeAttentionError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.fleet import NodeState

FORGOTTEN_SECONDS = 3600.0
"""A node lost for so long is no longer scraped: until then its `up` is 0, which is what alerts go by."""
SCRAPED = 1000
"""Nodes listed at most: the live first, then those heard of last."""
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
TOKEN_LIMIT = 8 * 1024
FORM_SECONDS = 10.0
"""Seconds for the sign-in form to arrive in."""

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class ServicePhase(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass
class ServiceStatus:
    """What of its life the aggregator is in."""

    phase: ServicePhase = ServicePhase.STARTING
    started: float = field(default_factory=time.time)


def recipes_module(scripts: Sequence[str]) -> bytes:
    """A JavaScript module that exports the modules at these paths, as a list in this order.

    Its imports are fixed when the aggregator starts: no text becomes a script in the browser.
    """
    imports = [f'import * as recipe{n} from "/{path}";' for n, path in enumerate(scripts)]
    exported = ", ".join(f"recipe{n}" for n in range(len(scripts)))
    return "\n".join(["// The recipes' own scripts.", *imports, f"export default [{exported}];", ""]).encode()


class Probes:
    """/healthz and /readyz."""

    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self.health), web.get("/readyz", self.ready)]

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(self, request: web.Request) -> web.Response:
        phase = self._status.phase
        return web.Response(status=200 if phase is ServicePhase.SERVING else 503, text=f"{phase.value}\n")


class Scraped:
    """What Prometheus asks: /metrics, /sd, /nodes/NAME/metrics."""

    def __init__(self, registry: CollectorRegistry, membership: Membership) -> None:
        self._registry = registry
        self._membership = membership
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/metrics", self.metrics),
            web.get("/sd", self.targets),
            web.get("/nodes/{name}/metrics", self.node),
        ]

    async def metrics(self, request: web.Request) -> web.Response:
        names = request.query.getall("name[]", [])
        registry: Any = self._registry.restricted_registry(names) if names else self._registry
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        # What is counted is read here, where it changes. Written down it is in a thread: with many nodes
        # the text is long, and queries are not to wait for it.
        async with self._one_at_a_time:
            body = await asyncio.to_thread(encode, _Collected(registry))
        return _text(body, content_type)

    async def targets(self, request: web.Request) -> web.Response:
        """Prometheus' HTTP service discovery: each node at this port, so that none needs one of its own."""
        host = request.headers.get(hdrs.HOST, "")
        now = time.monotonic()
        known = [
            member
            for member in self._membership.members()
            if member.state is not NodeState.LOST or now - member.heard <= FORGOTTEN_SECONDS
        ]
        if len(known) > SCRAPED:
            known = sorted(known, key=lambda m: (not m.live, -m.heard))[:SCRAPED]
        return web.json_response(
            [
                {
                    "targets": [host],
                    "labels": {
                        "__metrics_path__": f"/nodes/{member.name}/metrics",
                        "node": member.name,
                        "instance": member.name,
                    },
                }
                for member in known
            ]
        )

    async def node(self, request: web.Request) -> web.Response:
        """A node's metrics, as its last heartbeat with any brought them."""
        name = request.match_info["name"]
        member: Member | None = self._membership.get(name)
        if member is None:
            raise NotFound(f"no node {name[:80]!r} has registered; /sd lists those that have")
        if member.state is NodeState.LOST:
            silent = time.monotonic() - member.heard
            raise Unavailable(f"node {name!r} is lost: silent for {silent:.0f} s")
        if not member.metrics:
            raise Unavailable(f"node {name!r} has sent no metrics yet")
        return _text(member.metrics, PLAIN)


class Page:
    """The page's files, recipes' scripts among them, and the way in: /, /runbook, /signin, /signout.

    Args:
        scripts: of recipes, by the recipe's name; /recipes.js imports them, in this order.

    Raises:
        Internal: the names of two recipes make one path.
    """

    def __init__(self, guard: PageGuard, scripts: Mapping[str, Path] = MappingProxyType({})) -> None:
        self._guard = guard
        folder = files("aggregator.http") / "page"
        names = [file.name for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES]
        # All of them in memory: no request names a path on the disk.
        self._files = {name: (folder / name).read_bytes() for name in names}
        imported = []
        for recipe, script in scripts.items():
            name = f"recipes/{re.sub(r'[^a-z0-9]+', '-', recipe.lower())}.js"
            if name in self._files:
                raise Internal(f"two recipes would have the script /{name}; name one otherwise")
            self._files[name] = script.read_bytes()
            imported.append(name)
        self._files["recipes.js"] = recipes_module(imported)
        frame, said = self._files["runbook.html"].decode(), as_html(read_runbook())
        self._files["runbook.html"] = frame.replace("<!-- runbook -->", said).encode()
        names = list(self._files)
        guard.open |= {f"/{name}" for name in names if not name.endswith(".html")}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.index),
            web.get("/runbook", self.runbook),
            web.get("/signin", self.form),
            web.post("/signin", self.sign_in),
            web.post("/signout", self.sign_out),
            *(web.get(f"/{name}", self.file) for name in self._files if not name.endswith(".html")),
        ]

    async def index(self, request: web.Request) -> web.Response:
        return self._file(request, "index.html")

    async def runbook(self, request: web.Request) -> web.Response:
        """What to do when an alert fires: alerts point to its headings."""
        return self._file(request, "runbook.html")

    async def file(self, request: web.Request) -> web.Response:
        return self._file(request, request.path[1:])

    def _file(self, request: web.Request, name: str) -> web.Response:
        data = self._files[name]
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get(hdrs.IF_NONE_MATCH) == tag:
            return web.Response(status=304, headers=headers)
        kind = _TYPES[name.rpartition(".")[2]]
        return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)

    async def form(self, request: web.Request) -> web.Response:
        if self._guard.access is None:
            return _go("/")
        return self._form(200, "")

    def _form(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
        said = f'<p class="refused" role="alert" id="why">{html.escape(message)}</p>' if message else ""
        text = self._files["signin.html"].decode().replace("<!-- why -->", said)
        return web.Response(status=status, text=text, content_type="text/html", headers=headers)

    async def sign_in(self, request: web.Request) -> web.Response:
        """A token in a form for a cookie."""
        if self._guard.access is None:
            return _go("/")
        address, now = address_of(request), time.monotonic()
        wait = self._guard.attempts.wait(address, now)
        if wait > 0:
            message = f"too many sign-ins from your address did not hold; try again in {wait:.0f} s"
            return self._form(429, message, {"Retry-After": f"{wait:.0f}"})
        token = await _token(request)
        authorization = f"Bearer {token}"
        try:
            peer = self._guard.viewer(authorization, request)
        except EdgeAttentionError as error:
            self._guard.attempts.bad(address, now)
            return self._form(403 if error.status == "PERMISSION_DENIED" else 401, error.message)
        self._guard.attempts.good(address)
        cookie = self._guard.sessions.begin(authorization, peer, now, peer.subject)
        response = _go("/")
        response.set_cookie(COOKIE, cookie, path="/", secure=True, httponly=True, samesite="Strict")
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        self._guard.sessions.end(request.cookies.get(COOKIE, ""))
        response = _go("/" if self._guard.access is None else "/signin")
        response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
        return response


async def _token(request: web.Request) -> str:
    try:
        async with asyncio.timeout(FORM_SECONDS):
            form = await request.post()
    except TimeoutError:
        raise InvalidArgument(f"the sign-in form did not arrive in {FORM_SECONDS:.0f} s") from None
    except (ValueError, web.HTTPRequestEntityTooLarge):
        raise ResourceExhausted("a sign-in form is at most 8 KiB; send a token and nothing else") from None
    token = form.get("token", "")
    if not isinstance(token, str) or not token.strip().isascii() or not token.strip().isprintable():
        raise InvalidArgument(
            "the form's field `token` holds no token; paste it as `token create` printed it"
        )
    return token.strip()


class _Collected:
    """A registry as it was at one moment."""

    def __init__(self, registry: Any) -> None:
        self._families = list(registry.collect())

    def collect(self) -> list[Metric]:
        return self._families


def _text(body: bytes, content_type: str) -> web.Response:
    response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
    response.enable_compression()
    return response


def _go(where: str) -> web.Response:
    return web.Response(status=303, headers={"Location": where})
