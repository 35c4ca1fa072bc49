"""The listening socket: so many connections in all and of one address, and seconds to say what they want.

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
from collections import Counter
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

CONNECTIONS = 512
"""Open connections: those beyond it are closed at once, so that none here costs the nodes theirs."""
ADDRESS_CONNECTIONS = 128
"""Of them from one address. Behind a reverse proxy all come from one: each page that looks on takes one, of
which there are 64 (feed.py), and a few for moments."""
FIRST_SECONDS = 10.0
"""From the connection to its first whole request, TLS included; where requests show no token, from each to
the next."""
ADDRESS_STRANGERS = 64
"""Of one address, connections over which nothing has been asked yet by somebody who showed who it is."""
TELL_SECONDS = 60.0

HANDSHAKE_RECORD = b"\x16"
"""TLS begins with it (RFC 8446, section 5.1); no HTTP does."""
_HTTP = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) ")
_TEXT = b"this port speaks HTTPS: ask for https:// instead of http://\n"
NOT_HERE = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


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
        self._told = -TELL_SECONDS

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection there is room for.

        Raises:
            BlockingIOError: there is none now.
        """
        plain, address = super().accept()
        who = owner(address[0])
        many = self._of[who] >= ADDRESS_CONNECTIONS or self._strangers[who] >= ADDRESS_STRANGERS
        if len(self._open) >= CONNECTIONS or many:
            plain.close()
            self._tell(who)
            raise BlockingIOError
        tell = self._plaintext
        made = _Connection(
            plain, lambda: self._left(address, who), None if tell is None else lambda r: tell(r, address[0])
        )
        self._of[who] += 1
        self._strangers[who] += 1
        self._ends[address] = made.end
        self._open[address] = asyncio.get_running_loop().call_later(FIRST_SECONDS, made.end)
        return made, address

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
