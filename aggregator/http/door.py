"""The listening socket: so many connections in all and of one address, and seconds to say what they want.

Who is too many is told so, and when to come again: without TLS at once, with it where there is room for a few
more handshakes, over which nothing but the head of a request is read.

A connection counts from when it is accepted, so before its TLS handshake too: asyncio tells a server of one
only when that is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

log = logging.getLogger(__name__)

CONNECTIONS = 512
"""Open connections: those beyond it are turned away at once, so that none here costs the nodes theirs."""
ADDRESS_CONNECTIONS = 128
"""Of them from one address. Behind a reverse proxy all come from one: each page that looks on takes one, of
which there are 64 (feed.py), and a few for moments."""
FIRST_SECONDS = 10.0
"""From the connection to its first whole request, TLS included; where requests show no token, from each to
the next."""
ADDRESS_STRANGERS = 64
"""Of one address, connections over which nothing has been asked yet by somebody who showed who it is."""
TURNED = 32
"""Connections more that are there for a moment, to be told that they are too many; others are closed."""
TURNED_SECONDS = 3.0
AGAIN_SECONDS = 5
"""After which who was turned away may come again: those who say nothing have gone by then, or soon."""
TELL_SECONDS = 60.0

HANDSHAKE_RECORD = b"\x16"
"""TLS begins with it (RFC 8446, section 5.1); no HTTP does."""
_HTTP = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) ")
_TEXT = b"this port speaks HTTPS: ask for https:// instead of http://\n"
NOT_HERE = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)
TOO_MANY = {
    429: "your address has as many connections to this port as one may have; close some of them, or come "
    f"again in {AGAIN_SECONDS} s\n",
    503: f"this port has as many connections as it may have; come again in {AGAIN_SECONDS} s\n",
}
"""What who is turned away is told, by the status of the answer."""
_TURNED_AWAY = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    f"Retry-After: {AGAIN_SECONDS}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    for status, text in TOO_MANY.items()
}


class Door(socket.socket):
    """A listening socket that counts who comes in, and closes on those who are too many or say nothing."""

    def __init__(
        self, family: int, kind: int, protocol: int, plaintext: Callable[[str, str], None] | None = None
    ) -> None:
        """`plaintext`: this port speaks TLS; told OpenSSL's word and the address of who does not."""
        super().__init__(family, kind, protocol)
        self._plaintext = plaintext
        self._open: dict[Any, asyncio.TimerHandle] = {}
        self._ends: dict[Any, Callable[[], None]] = {}
        """What closes the connection of each stranger."""
        self._of: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._turned: dict[Any, tuple[int, asyncio.TimerHandle]] = {}
        """By address: the status of what it is to be told, and what closes it."""
        self._leaving: deque[tuple[socket.socket, asyncio.TimerHandle]] = deque()
        self._told = -TELL_SECONDS

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection there is room for, or that is to be told that there is none.

        Raises:
            BlockingIOError: there is none now.
        """
        plain, address = super().accept()
        who = owner(address[0])
        many = self._of[who] >= ADDRESS_CONNECTIONS or self._strangers[who] >= ADDRESS_STRANGERS
        if len(self._open) >= CONNECTIONS or many:
            self._tell(who)
            return self._turn_away(plain, address, 429 if many else 503), address
        made = self._made(plain, address, lambda: self._left(address, who))
        self._of[who] += 1
        self._strangers[who] += 1
        self._ends[address] = made.end
        self._open[address] = asyncio.get_running_loop().call_later(FIRST_SECONDS, made.end)
        return made, address

    def turned(self, address: Any) -> int:
        """The status of the answer by which `address` is turned away; 0: it is let in."""
        return self._turned[address][0] if address in self._turned else 0

    def close(self) -> None:
        while self._leaving:
            self._close_first()
        super().close()

    def _close_first(self) -> None:
        plain, timer = self._leaving.popleft()
        timer.cancel()
        plain.close()

    def _made(self, plain: socket.socket, address: Any, closed: Callable[[], None]) -> _Connection:
        tell = self._plaintext
        return _Connection(plain, closed, None if tell is None else lambda reason: tell(reason, address[0]))

    def _turn_away(self, plain: socket.socket, address: Any, status: int) -> _Connection:
        """A connection over which a request is answered with `status`.

        Raises:
            BlockingIOError: it is over already.
        """
        loop = asyncio.get_running_loop()
        if self._plaintext is None:
            plain.setblocking(False)
            with contextlib.suppress(OSError):
                plain.send(_TURNED_AWAY[status])
                plain.shutdown(socket.SHUT_WR)
            # Closed at once, with a request that nobody has read, it would be reset, and the answer lost.
            # Each as long as the one before it, so the first of them is the one whose time is over.
            self._leaving.append((plain, loop.call_later(TURNED_SECONDS, self._close_first)))
            if len(self._leaving) > TURNED:
                self._close_first()
            raise BlockingIOError
        if len(self._turned) >= TURNED:
            plain.close()
            raise BlockingIOError
        made = self._made(plain, address, lambda: self._turned.pop(address)[1].cancel())
        self._turned[address] = status, loop.call_later(TURNED_SECONDS, made.end)
        return made

    def heard(self, address: Any, known: bool = True) -> None:
        """A whole request came from `address`, a connection's peer name. `known`: from somebody let in."""
        if (timer := self._open.get(address)) is None or address not in self._ends:
            return
        timer.cancel()
        if known:
            self._knows(address, owner(address[0]))
        else:
            loop = asyncio.get_running_loop()
            self._open[address] = loop.call_later(FIRST_SECONDS, self._ends[address])

    def _knows(self, address: Any, who: str) -> None:
        if self._ends.pop(address, None) is not None:
            self._strangers[who] -= 1
            if not self._strangers[who]:
                del self._strangers[who]

    def _left(self, address: Any, who: str) -> None:
        self._open.pop(address).cancel()
        self._knows(address, who)
        self._of[who] -= 1
        if not self._of[who]:
            del self._of[who]

    def _tell(self, who: str) -> None:
        if (now := time.monotonic()) - self._told < TELL_SECONDS:
            return
        self._told = now
        log.warning(
            "the HTTP port has %d connections, %d of them from %s (%d without a token), and turned one of "
            "those away; its limits are %d, %d and %d",
            len(self._open), self._of[who], who, self._strangers[who],
            CONNECTIONS, ADDRESS_CONNECTIONS, ADDRESS_STRANGERS,
        )  # fmt: skip


class _Connection(socket.socket):
    """An accepted socket that says when it is closed, and, where TLS is due, that it was not spoken."""

    def __init__(
        self, plain: socket.socket, closed: Callable[[], None], plaintext: Callable[[str], None] | None
    ) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self._on_close: Callable[[], None] | None = closed
        self._plaintext = plaintext

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As a socket does; what is not TLS is answered here, and is the connection's end."""
        count = super().recv_into(buffer, nbytes, flags)
        tell, self._plaintext = self._plaintext, None
        if tell is None or not count or bytes(buffer[:1]) == HANDSHAKE_RECORD:
            return count
        if _HTTP.match(bytes(buffer[: min(count, 16)])) is None:
            tell("WRONG_VERSION_NUMBER")
            return 0
        with contextlib.suppress(OSError):
            self.send(NOT_HERE)
        tell("HTTP_REQUEST")
        return 0

    def end(self) -> None:
        """Have its owner find that the other side left."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        told, self._on_close = self._on_close, None
        super().close()
        if told is not None:
            told()


def owner(address: str) -> str:
    """Whose an address is taken to be: an IPv4 address its own, an IPv6 address its network's of 64 bits."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        if not ip.is_loopback:
            return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)
