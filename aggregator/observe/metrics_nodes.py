"""The metrics of nodes. Those that have series are bounded in number, and theirs go with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from aggregator.fleet.membership import Member
from edge_attention.core.messages.fleet import NodeState

NODES = 1_000
"""Nodes that have series at most: each is tens of them in Prometheus' memory."""
LOST_SECONDS = 3600.0
"""A node that has been lost for longer has no series any more."""


name_of = attrgetter("register.name")
"""The name of a member, found without a step of Python."""


def shown(members: Iterable[Member], now: float) -> tuple[Member, ...]:
    """Those of `members` that have series, by name: the live first, then those heard of last."""
    kept = [m for m in members if m.state is not NodeState.LOST or now - m.heard <= LOST_SECONDS]
    if len(kept) > NODES:
        kept = sorted(kept, key=lambda m: (not m.live, now - m.heard, m.name))[:NODES]
    return tuple(sorted(kept, key=name_of))


class NodesNow(Collector):
    """What is looked up when somebody asks: who is there, and what waits to be sent to whom."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._members: Callable[[], Iterable[Member]] = tuple
        self._queues: Callable[[], Mapping[str, tuple[int, int]]] = dict

    def watch(
        self, members: Callable[[], Iterable[Member]], queues: Callable[[], Mapping[str, tuple[int, int]]]
    ) -> None:
        """`queues`: node -> programs that wait to be sent, and the bytes that may be sent now."""
        self._members = members
        self._queues = queues

    def _gauge(self, name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._prefix + name, text, labels=["node"])

    def collect(self) -> Iterator[Metric]:
        up = self._gauge("node_up", "1 while the node is connected and its lease is good.")
        silent = self._gauge("node_silent_seconds", "Seconds since anything came from the node.")
        queued = self._gauge("queued_programs", "Programs that wait until the node grants credit.")
        credit = self._gauge("credit_bytes", "Bytes of programs the node takes before it grants more.")
        now, queues = time.monotonic(), self._queues()
        for member in shown(self._members(), now):
            node = [member.name]
            up.add_metric(node, float(member.live))
            silent.add_metric(node, max(now - member.heard, 0.0))
            if member.name in queues:
                programs, free = queues[member.name]
                queued.add_metric(node, programs)
                credit.add_metric(node, max(free, 0))
        yield from (up, silent, queued, credit)
