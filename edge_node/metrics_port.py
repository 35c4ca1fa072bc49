"""A node's metrics on an HTTP port of their own."""

from __future__ import annotations

from edge_attention.core.addresses import is_loopback
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.metrics.families import FamilyRegistry

__all__ = ["serve"]


def serve(registry: FamilyRegistry, host: str, port: int) -> str:
    """Serve the metrics over HTTP in a thread; returns the URL (port 0: any that is free).

    Raises:
        FailedPrecondition: the address is not of this machine alone.
        InvalidArgument: it is taken.
    """
    if not is_loopback(host):
        raise FailedPrecondition(
            f"refusing to serve a node's metrics on {host!r}, which others reach: leave --metrics-host out, "
            "and scrape /nodes/NAME/metrics of the aggregator's HTTP port, which has them from heartbeats"
        )
    from prometheus_client import (  # 4 MB that a node without a port spares
        CollectorRegistry,
        start_http_server,
    )

    served = CollectorRegistry()
    served.register(registry)  # type: ignore[arg-type]
    try:
        server, _ = start_http_server(port, host, served)
    except OSError as error:
        raise InvalidArgument(f"metrics cannot be served on {host}:{port}: {error.strerror}") from None
    return f"http://{host}:{server.server_port}/metrics"
