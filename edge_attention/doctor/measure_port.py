"""Measures the way to a port with plain sockets, before any of gRPC: name, TCP, TLS, HTTP/2.

Each step has a deadline. Nothing here verifies a certificate: it is looked at, and judged elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from edge_attention.doctor.connection_findings import HttpAnswer, Port, Speaks

T = TypeVar("T")

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What an HTTP/2 client says first: the preface, and settings that change nothing (RFC 9113, 3.4)."""
_SETTINGS = 4


class NoAnswer(TimeoutError):
    """A call that knows no deadline was given up; the text says after how long."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns; for calls that know no deadline, as of a name's resolution.

    Raises:
        NoAnswer: it has not returned in `seconds`; it goes on, on a thread that nobody waits for.
        Exception: what `call` raises.
    """
    results: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue(1)

    def run() -> None:
        try:
            results.put((call(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True, name="doctor").start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise NoAnswer(f"no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # of a call that raised nothing


def look(host: str, port: int, seconds: float) -> Port:
    """What is found at HOST:PORT."""
    host = host.strip("[]")
    found = Port(host, port)
    began = time.perf_counter()
    try:
        answers = within(seconds, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        return replace(found, problem=_words(error))
    addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
    found = replace(found, addresses=addresses, resolve_seconds=time.perf_counter() - began)
    refused, problems = True, []
    for address in addresses[:4]:
        began = time.perf_counter()
        try:
            with socket.create_connection((address, port), seconds):
                took = time.perf_counter() - began
        except OSError as error:
            refused = refused and isinstance(error, ConnectionRefusedError)
            problems.append(f"{address}: {_words(error)}")
            continue
        return _speaks(replace(found, connected=address, connect_seconds=took), seconds)
    return replace(found, refused=refused, problem="; ".join(problems))


def _speaks(found: Port, seconds: float) -> Port:
    """TLS is tried first: a server with TLS may take plaintext for an attack, one without only hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((found.connected, found.port), seconds) as raw,
            context.wrap_socket(raw, server_hostname=found.host) as secure,
        ):
            http2 = secure.selected_alpn_protocol() == "h2"
            return replace(found, speaks=Speaks.TLS, http2=http2)
    except (OSError, ValueError) as error:
        problem = _words(error)
    first = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((found.connected, found.port), seconds) as raw,
    ):
        raw.settimeout(seconds)
        raw.sendall(_PREFACE)
        while len(first) < 9 and (more := raw.recv(64)):
            first += more
    if len(first) >= 9 and first[3] == _SETTINGS and first[5:9] == bytes(4):
        return replace(found, speaks=Speaks.PLAINTEXT, http2=True)
    if first:
        problem = f"it answered {first[:40].decode('ascii', 'replace')!r}"
    return replace(found, speaks=Speaks.OTHER if first else Speaks.NOTHING, problem=problem)


def readiness(host: str, port: int, seconds: float) -> HttpAnswer:
    """What the aggregator's HTTP port answers to /readyz, over TLS if it speaks that."""
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nothing is believed but that it answers
    context.verify_mode = ssl.CERT_NONE
    problem = ""
    for connection in (
        http.client.HTTPConnection(host, port, timeout=seconds),
        http.client.HTTPSConnection(host, port, timeout=seconds, context=context),
    ):
        try:
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return HttpAnswer(port, connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            problem = _words(error)
    return HttpAnswer(port, 0, problem)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not isinstance(error, NoAnswer):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).lower() if strerror else str(error)
