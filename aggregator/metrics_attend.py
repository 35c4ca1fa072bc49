"""What is counted of attends. All of it after the answer is on its way: nobody waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np

from aggregator.metrics_nodes import ByNode
from edge_attention.core.attention import AttendResponse
from edge_attention.metrics.common import Maker

if TYPE_CHECKING:
    from aggregator.dispatch import Outcome

STAGES = ("client", "plan", "queue", "node_run", "network", "merge", "all")
BOUNDS = tuple(10.0**power for power in range(-6, 4))
SHARES_SECONDS = 0.05
"""Where attention went is looked at no more often."""
_NEW = 0.05
"""How much an attend weighs in the mean of a node's share."""


class AttendMetrics:
    """Latency by stage, how exact answers are, and which nodes they stand on and wait for."""

    def __init__(self, make: Maker) -> None:
        self.queries = make.counter(
            "attends_total", "Attend calls by outcome: exact, partial, failed.", "outcome"
        )
        self._exact, self._partial, self._failed = (
            self.queries.labels(outcome) for outcome in ("exact", "partial", "failed")
        )
        self.query_seconds = make.histogram(
            "attend_seconds",
            "Seconds of an attend by stage. client: decoding, encoding and sending here. queue, node_run: at "
            "the slowest node, outside and in its graphs. network: the rest of the wait. all: but client.",
            "stage",
        )
        self._stages = {stage: self.query_seconds.labels(stage) for stage in STAGES}
        self.bound = make.histogram(
            "attend_bound", "Largest certified bound on the error of a partial answer.", buckets=BOUNDS
        )
        mass = make.gauge(
            "attend_mass", "Moving mean of the share of attention the node's part gets.", "node"
        )
        self._mass, self._shares = ByNode(mass), dict[str, float]()
        self._look = -math.inf
        self._wait = make.counter("attend_wait_seconds_total", "Seconds attends have waited for nodes.")
        self._straggler = make.counter(
            "attend_straggler_seconds_total",
            "Seconds attends have waited for nodes after the median part had been answered.",
        )
        slowest = make.counter(
            "attend_slowest_total",
            "Attends of several parts that this node answered last, or not at all.",
            "node",
        )
        self._slowest = ByNode(slowest)
        self.merge_seconds = make.histogram("merge_seconds", "Seconds to merge one answer.")
        self.run_seconds = make.histogram(
            "node_run_seconds", "Seconds of a task in its graphs, as nodes report it."
        )

    def failed(self) -> None:
        self._failed.inc()

    def edge(self, seconds: float) -> None:
        """A call's time between bytes and our classes, and until the answer was sent."""
        self._stages["client"].observe(seconds)

    def answered(self, response: AttendResponse, outcome: Outcome) -> None:
        (self._exact if response.exact else self._partial).inc()
        seconds, stages = response.seconds, self._stages
        wait = seconds["wait"]
        for stage in ("plan", "queue", "node_run", "network", "merge", "all"):
            stages[stage].observe(seconds[stage])
        self.merge_seconds.observe(seconds["merge"])
        if response.bound is not None:
            self.bound.observe(float(response.bound.error.max(initial=0.0)))
        self._wait.inc(wait)
        self._count_waits(outcome, wait)
        if (now := time.monotonic()) >= self._look:
            self._look = now + SHARES_SECONDS
            self._count_shares(response)

    def _count_waits(self, outcome: Outcome, wait: float) -> None:
        came = outcome.seconds
        parts = len(came) + len(outcome.missing)
        if parts < 2:
            return
        median = (parts - 1) // 2
        if median < len(came):
            self._straggler.inc(max(wait - sorted(came.values())[median], 0.0))
        last = {node for node in outcome.unanswered.values() if node}
        if not last and came:
            last = {outcome.answered[max(came, key=lambda shard: came[shard])]}
        for node in last:
            if (child := self._slowest.of(node)) is not None:
                child.inc()

    def _count_shares(self, response: AttendResponse) -> None:
        found: dict[str, float] = {}
        for shard in response.mass:
            share = float(np.add.reduce(shard.mass, axis=None)) / max(shard.mass.size, 1)
            found[shard.node] = found.get(shard.node, 0.0) + share
        for node, share in found.items():
            if (child := self._mass.of(node)) is not None:
                before = self._shares.get(node, share)
                mean = self._shares[node] = before + _NEW * (share - before)
                child.set(mean)

    @property
    def shares(self) -> dict[str, float]:
        """Node -> the moving mean of its share of attention."""
        return dict(self._shares)

    def keep(self, nodes: Container[str]) -> None:
        """Forget all other nodes."""
        for node in self._mass.keep(nodes):
            del self._shares[node]
        self._slowest.keep(nodes)
