"""Where the daemons may listen."""

from __future__ import annotations

import contextlib
import ipaddress

from edge_attention.core.errors import FailedPrecondition


def require_loopback(host: str) -> None:
    """Refuse to listen beyond this machine: the connection is neither encrypted nor authenticated.

    Raises:
        FailedPrecondition: `host` is not a loopback address.
    """
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback:
            return
    raise FailedPrecondition(
        f"refusing to listen on {host!r}: beyond loopback TLS and authentication are required, and this "
        "release has none yet. Listen on 127.0.0.1 and reach it through a tunnel (ssh -L, WireGuard)"
    )
