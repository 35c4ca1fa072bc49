"""How metrics are made that `prometheus_client` keeps and serves: the aggregator's."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
)

from edge_attention.metrics.batched import SECONDS, Batched
from edge_attention.metrics.tally import Tallies
from edge_attention.version import VERSION

__all__ = ["SECONDS", "Maker"]

# A `_created` series for each counter and histogram would double what is stored, and says little.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Maker:
    """Makes metrics called `<prefix>...` in a registry of their own, with what every process tells."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.gauge("build_info", "1, with the version of the software.", "version").labels(VERSION).set(1)

    def counter(self, name: str, text: str, *labels: str) -> Tallies:
        return Tallies(self.prefix + name, text, labels, self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(self.prefix + name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, label: str | None = None, buckets: Sequence[float] = SECONDS
    ) -> Batched:
        return Batched(self.prefix + name, text, label, buckets, self.registry)
