"""The aggregator's HTTP port, over raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Sequence
from typing import ClassVar

from tests.fuzz.targets import FleetTarget, Input

PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/sd",
    "/nodes/a/metrics",
    "/api/state",
    "/api/events",
    "/signout",
    "/app.js",
    "/signin",
    "/style.css",
)
METHODS = (
    "GET",
    "GET",
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PATCH",
    "get",
    "G\x00ET",
    "A" * 9000,
)
VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/2.0",
    "HTTP/9.9",
    "",
    "HTTP/1.1 x",
    "HTTP/1." + "1" * 99,
)
HEADERS = (
    "Host: localhost",
    "Host: ",
    "Host: a, b",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5\r\nContent-Length: 6",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, identity",
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
    "Connection: close",
    "Expect: 100-continue",
    "Authorization: Bearer eat_" + "x" * 64,
    "Authorization: Bearer \x80\xff",
    "Authorization: Basic Og==",
    "Cookie: " + "a=b; " * 500,
    "Cookie: session=\x00",
    "Accept: application/openmetrics-text; q=nan",
    "Accept: " + "*/*," * 2000,
    "Accept-Encoding: gzip;q=1e999",
    "If-None-Match: " + '"' * 500,
    "Range: bytes=0-0,1-1,-5",
    "X-Y: " + "z" * 8190,
    "X-Y: " + "z" * 70_000,
    "Content-Type: application/x-www-form-urlencoded",
    "Content-Type: multipart/form-data; boundary=b",
    "Content-Encoding: gzip",
    "Origin: null",
    " leading: space",
    "no colon",
    ": empty",
    "Last-Event-ID: -1",
    "Last-Event-ID: " + "9" * 400,
)
BODIES = (
    b"",
    b"hello",
    b"token=eat_x",
    b"token=" + b"%00" * 100,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nx",
    b"-1\r\n\r\n",
    b"\x1f\x8b\x08\x00",
    b"--b\r\nContent-Disposition: form-data; name=token\r\n\r\nx\r\n--b--\r\n",
    b"x" * 100_000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
)
QUERIES = (
    "",
    "",
    "?",
    "?since=-1",
    "?a=" + "b" * 5000,
    "?%",
    "?a[]=1&a[]=2",
    "?limit=99999999999999999999",
    "?range=nan",
    "#x",
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//",
    "%00",
    "/\x80",
)


class Http(FleetTarget):
    name, share = "http", 0.1
    together: ClassVar[int] = 8
    flags = ("--lease", "5", "--metrics-port", "0")

    async def start(self) -> None:
        await super().start()
        found = self.children[0].wait_for(r"https?://127\.0\.0\.1:(\d+)")
        self._port = int(found[1])

    def make(self, rng: random.Random) -> Input:
        # Most parts of a request are good, so that what reads the others is reached.
        def some(good: Sequence[str], any_of: Sequence[str]) -> str:
            return rng.choice(good if rng.random() < 0.8 else any_of)

        path = some(PATHS, PATHS) + some(("",), QUERIES)
        lines = [f"{some(('GET', 'GET', 'HEAD', 'POST'), METHODS)} {path} {some(VERSIONS[:1], VERSIONS)}"]
        lines += ["Host: 127.0.0.1"] if rng.random() < 0.9 else []
        lines += rng.choices(HEADERS, k=rng.choice((0, 0, 1, 1, 1, 2, 3, 200)))
        body = rng.choice(BODIES) if rng.random() < 0.4 else b""
        if body and rng.random() < 0.7:
            lines.append(f"Content-Length: {len(body)}")
        end = some(("\r\n",), ("\n", "\r"))
        data = (end.join(lines) + end * rng.choice((2, 2, 2, 2, 2, 1))).encode("latin-1") + body
        if rng.random() < 0.2:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 2, 10))):
                changed[rng.randrange(min(len(changed), 400))] = rng.randrange(256)
            data = bytes(changed)
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data) + 1)]
        return Input(self.name, "", (data * rng.choice((1, 1, 1, 1, 3)),))

    async def send(self, sent: Input) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(0.3):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    for part in sent.parts:
                        writer.write(part)
                    await writer.drain()
                    said = await reader.read(4096)
                    self.answers[said[9:12].decode("latin-1") or "closed"] += 1
                finally:
                    writer.transport.abort()

    async def good(self) -> str:
        for path, wanted in (
            ("/healthz", rb"200 OK.*alive"),
            ("/metrics", rb"200 OK.*edge_attention_aggregator_nodes"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            said = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            if not re.search(wanted, said, re.DOTALL):
                return f"{path} is answered with {said[:200]!r}"
        return await super().good()
