"""The node's Prometheus metrics."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from edge_attention.core.addresses import require_loopback
from edge_attention.core.errors import InvalidArgument
from edge_node.session import Session
from edge_node.store import Store

_SECONDS = tuple(mantissa * 10.0**power for power in range(-4, 2) for mantissa in (1, 2, 5))


class Metrics:
    """Every metric is called `edge_attention_node_...`."""

    def __init__(self, store: Store, session: Session) -> None:
        r = self.registry = CollectorRegistry()
        name = "edge_attention_node_"
        outcomes = "Tasks ended, by outcome: ok or the error's name"
        self.tasks = Counter(f"{name}tasks", outcomes, ["outcome"], registry=r)
        histogram = partial(Histogram, buckets=_SECONDS, registry=r)
        self.run_seconds = histogram(f"{name}run_seconds", "A task's time in graphs")
        self.task_seconds = histogram(f"{name}task_seconds", "From a task's arrival to its end")
        self.bytes = Counter(f"{name}bytes", "Bytes over the link", ["direction", "kind"], registry=r)
        self.sent, self.received = (self.bytes.labels(way, "stream") for way in ("sent", "received"))
        self.refused = Counter(f"{name}refused_releases", "Private tensors asked for and kept", registry=r)
        stored = Gauge(f"{name}store_bytes", "Bytes stored", ["scope"], registry=r)
        for scope in ("task", "job", "context"):
            stored.labels(scope).set_function(partial(store.used_in, scope))
        Gauge(f"{name}memory_limit_bytes", "Bytes the node may store", registry=r).set(store.limit)
        connected = Gauge(f"{name}connected", "1 while registered with the aggregator", registry=r)
        connected.set_function(lambda: float(session.phase == "registered"))
        reconnects = Gauge(f"{name}reconnects", "Times the node registered again", registry=r)
        reconnects.set_function(lambda: float(session.reconnects))

    def serve(self, host: str, port: int) -> str:
        """Serve them over HTTP; returns the URL (port 0: any that is free), or raises EdgeAttentionError."""
        require_loopback(host)
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise InvalidArgument(f"metrics cannot be served on {host}:{port}: {error.strerror}") from None
        return f"http://{host}:{server.server_port}/metrics"
