"""The metrics of contexts and attends.

On the way of an answer it is only noted down; it is counted many at a time, at the latest when somebody asks.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import numpy as np
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from aggregator.engine.outcome import Outcome
from aggregator.observe.counts import RecipeCounts
from aggregator.observe.metrics import Metrics
from aggregator.observe.metrics_nodes import NODES
from edge_attention.core.messages.attention import AttendResponse, ShardMass
from edge_attention.wire.methods import AnyMethod
from edge_attention.wire.services import ATTEND

STAGES = ("client", "plan", "turn", "queue", "node_run", "network", "merge", "all")
BOUNDS = tuple(10.0**power for power in range(-6, 4))
WAITING = 64
"""Answers noted down at most before they are counted."""
SHARES_SECONDS = 0.05
"""Where attention went is looked at no more often."""
_NEW = 0.05
"""How much an attend weighs in the mean of a node's share."""


class AttendMetrics(RecipeCounts, Collector):
    """Latency by stage, how exact answers are, and which nodes they stand on and wait for."""

    def __init__(self, metrics: Metrics) -> None:
        make = metrics.make
        metrics.add(self)
        self._prefix = make.prefix
        self.contexts = make.gauge("contexts", "Contexts.")
        self.tokens = make.gauge("context_tokens", "Tokens over all contexts.")
        # Before the histograms: what waits is counted before they are read.
        make.registry.register(self)
        self.queries = make.counter(
            "attends_total", "Attend calls by outcome: exact, partial, failed.", "outcome"
        )
        self._exact, self._partial, self._failed = (
            self.queries.labels(outcome) for outcome in ("exact", "partial", "failed")
        )
        self.query_seconds = make.histogram(
            "attend_seconds",
            "Seconds of an attend by stage. client: decoding, encoding and sending here. turn: until it "
            "could run. queue, node_run: at "
            "the slowest node, outside and in its graphs. network: the rest of the wait. all: but client.",
            "stage",
        )
        self._stages = {stage: self.query_seconds.labels(stage) for stage in STAGES}
        self._client = self._stages["client"]
        self.bound = make.histogram(
            "attend_bound", "Largest certified bound on the error of a partial answer.", buckets=BOUNDS
        )
        self.merge_seconds = make.histogram("merge_seconds", "Seconds to merge one answer.")
        self._waiting: list[tuple[bool, Mapping[str, float], Outcome, tuple[ShardMass, ...]]] = []
        self._lock = threading.Lock()  # a port of prometheus_client's asks in a thread of its own
        self._wait = 0.0
        self._straggler = 0.0
        self._slowest: Counter[str] = Counter()
        self._shares: dict[str, float] = {}
        self._look = -math.inf

    def failed(self) -> None:
        self._failed.inc()

    def answered(self, method: AnyMethod, seconds: float) -> None:
        if method is ATTEND:
            self._client.observe(seconds)

    def attended(self, response: AttendResponse, outcome: Outcome) -> bool:
        """Note an answer down. Whether it is time to `count`: after the answer is on its way."""
        mass: tuple[ShardMass, ...] = ()
        if (now := time.monotonic()) >= self._look:
            self._look, mass = now + SHARES_SECONDS, response.mass
        if response.bound is not None:
            self.bound.observe(float(response.bound.error.max(initial=0.0)))
        self._waiting.append((response.exact, response.seconds, outcome, mass))
        return len(self._waiting) >= WAITING

    def count(self) -> None:
        """Count what `answered` and `attended` have noted down."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            exact = sum(one[0] for one in waiting)
            self._exact.inc(exact)
            self._partial.inc(len(waiting) - exact)
            for stage in STAGES[1:]:
                observe = self._stages[stage].observe
                for _, seconds, _, _ in waiting:
                    observe(seconds[stage])
            for _, seconds, outcome, mass in waiting:
                self.merge_seconds.observe(seconds["merge"])
                self._wait += seconds["wait"]
                self._count_waits(outcome, seconds["wait"])
                self._count_shares(mass)

    def _count_waits(self, outcome: Outcome, wait: float) -> None:
        came = outcome.seconds
        parts = len(came) + len(outcome.missing)
        if parts < 2:
            return
        median = (parts - 1) // 2
        if median < len(came):
            self._straggler += max(wait - sorted(came.values())[median], 0.0)
        last = {missing.node for missing in outcome.missing.values() if missing.node}
        if not last and came:
            last = {outcome.answered[max(came, key=came.__getitem__)]}
        for node in last:
            if node in self._slowest or len(self._slowest) < NODES:
                self._slowest[node] += 1

    def _count_shares(self, mass: tuple[ShardMass, ...]) -> None:
        found: dict[str, float] = {}
        for shard in mass:
            share = float(np.add.reduce(shard.mass, axis=None)) / max(shard.mass.size, 1)
            found[shard.node] = found.get(shard.node, 0.0) + share
        for node, share in found.items():
            if node in self._shares or len(self._shares) < NODES:
                before = self._shares.get(node, share)
                self._shares[node] = before + _NEW * (share - before)

    @property
    def shares(self) -> dict[str, float]:
        """Node -> the moving mean of its share of attention."""
        self.count()
        return dict(self._shares)

    def tick(self, nodes: Container[str], now: float) -> None:
        """Count what waits, and forget all nodes but these."""
        self.count()
        with self._lock:
            for found in (self._shares, self._slowest):
                for node in [node for node in found if node not in nodes]:
                    del found[node]

    def collect(self) -> Iterator[Metric]:
        self.count()
        name = self._prefix + "attend_"
        yield CounterMetricFamily(
            name + "wait_seconds_total", "Seconds attends have waited for nodes.", value=self._wait
        )
        yield CounterMetricFamily(
            name + "straggler_seconds_total",
            "Seconds attends have waited for nodes after the median part had been answered.",
            value=self._straggler,
        )
        slowest = CounterMetricFamily(
            name + "slowest_total",
            "Attends of several parts that this node answered last, or not at all.",
            labels=["node"],
        )
        for node, times in list(self._slowest.items()):
            slowest.add_metric([node], times)
        yield slowest
        mass = GaugeMetricFamily(
            name + "mass", "Moving mean of the share of attention the node's part gets.", labels=["node"]
        )
        for node, share in list(self._shares.items()):
            mass.add_metric([node], share)
        yield mass
