"""What the metrics of both daemons have in common: how they are made, and served on a port of their own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from edge_attention.core.addresses import is_loopback
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.metrics.batched import Batched
from edge_attention.metrics.tally import Tallies

__all__ = ["Maker", "serve"]

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# A `_created` series for each counter and histogram would double what is stored, and says little.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Maker:
    """Makes metrics called `<prefix>...` in a registry of their own, with what every process tells."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.gauge("build_info", "1, with the version of the software.", "version").labels(
            version("edge-attention")
        ).set(1)

    def counter(self, name: str, text: str, *labels: str) -> Tallies:
        return Tallies(self.prefix + name, text, labels, self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(self.prefix + name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, label: str | None = None, buckets: Sequence[float] = SECONDS
    ) -> Batched:
        return Batched(self.prefix + name, text, label, buckets, self.registry)


def serve(registry: CollectorRegistry, host: str, port: int) -> str:
    """Serve them over HTTP in a thread; the URL (port 0: any that is free).

    Raises:
        FailedPrecondition: the address is not of this machine alone.
        InvalidArgument: it is taken.
    """
    if not is_loopback(host):
        raise FailedPrecondition(
            f"refusing to serve a node's metrics on {host!r}, which others reach: leave --metrics-host out, "
            "and scrape /nodes/NAME/metrics of the aggregator's HTTP port, which has them from heartbeats"
        )
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise InvalidArgument(f"metrics cannot be served on {host}:{port}: {error.strerror}") from None
    return f"http://{host}:{server.server_port}/metrics"
