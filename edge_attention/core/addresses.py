"""Addresses: their parts, and those that daemons may listen on without TLS, which are of this machine."""

from __future__ import annotations

import contextlib
import ipaddress

from edge_attention.core.errors import FailedPrecondition


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def meant_by(web_address: str) -> str:
    """The `HOST:PORT` that an address with a scheme most likely means.

    >>> meant_by("http://box.local/")
    'box.local:50051'
    >>> meant_by("https://box.local:50051/page")
    'box.local:50051'
    """
    host = web_address.partition("://")[2].partition("/")[0]
    return host if ":" in host else f"{host or '127.0.0.1'}:50051"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    with contextlib.suppress(ValueError):
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def require_loopback(host: str) -> None:
    """Refuse to listen beyond this machine: the connection is neither encrypted nor authenticated.

    Raises:
        FailedPrecondition: `host` is not a loopback address.
    """
    if not is_loopback(host):
        raise FailedPrecondition(
            f"refusing to listen on {host!r}: beyond loopback TLS and authentication are required; give the "
            "aggregator --tls --state DIR, or listen on 127.0.0.1"
        )
