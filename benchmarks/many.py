"""What many nodes cost the aggregator: 1,000 that beat, and an attend over 100 of them; and whose time it is.

The nodes are made up (many_nodes.py), in two processes that share the aggregator's processors: so beside the
time by the clock, which is of all of them together, there is the processor time of each. Answers are checked
against a merge in float64.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import psutil

from benchmarks.many_nodes import DIM, HEADS, made_up, name_of
from benchmarks.metrics import processor_seconds
from benchmarks.report import Figure, Report
from benchmarks.turns import Worker
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from edge_attention.client.sync import Client

MODULE = "benchmarks.many_nodes"
NODES, PROCESSES, ASKED = 1000, 2, 100
BEATS_BOUND, ATTEND_BOUND = 10.0, 60.0
"""Percent of a core; milliseconds."""
WARM = 10
SETTLE_SECONDS = 10.0
"""By then each node has beaten and been told how often it is to beat in a fleet of this size."""


@dataclass
class Spent:
    """Processor seconds by whose they are, and seconds by the clock."""

    aggregator: float
    nodes: float
    caller: float
    clock: float


def report(quick: bool) -> Report:
    """1,000 nodes that beat for a while, then attends over 100 of them, one after another."""
    seconds, attends = (12.0, 60) if quick else (60.0, 300)
    with ExitStack() as stack:
        fleet = stack.enter_context(LocalFleet())
        fleet.start_aggregator()
        pid = fleet.child(AGGREGATOR).pid
        aggregator = psutil.Process(pid)
        before = aggregator.memory_info().rss
        each = NODES // PROCESSES
        workers = [Worker(MODULE, fleet.address, str(n * each), str(each)) for n in range(PROCESSES)]
        for worker in workers:
            stack.callback(worker.close)
        memory = aggregator.memory_info().rss - before

        def spent() -> Spent:
            nodes = sum(processor_seconds(worker.pid) for worker in workers)
            return Spent(processor_seconds(pid), nodes, time.process_time(), time.perf_counter())

        time.sleep(SETTLE_SECONDS)
        began = spent()
        time.sleep(seconds)
        beats = _less(spent(), began)
        client = stack.enter_context(Client(fleet.address))
        context = client.create_context(
            "many", query_heads=HEADS, key_heads=HEADS, key_dim=DIM, value_dim=DIM
        )
        token = np.zeros((1, HEADS, DIM), np.float32)
        for number in range(ASKED):
            context.append(token, token, node=name_of(number * NODES // ASKED))
        queries = np.zeros((1, HEADS, DIM), np.float32)
        for _ in range(WARM):
            answer = context.attend(queries)
        wrong = float(np.abs(answer.out - _merged()).max()) if answer.exact else np.inf
        began, times, inside = spent(), [], []
        for _ in range(attends):
            asked = time.perf_counter()
            answer = context.attend(queries)
            times.append(time.perf_counter() - asked)
            inside.append(answer.seconds["all"])
        asks = _less(spent(), began)
        gone = sum(worker.turn(0) for worker in workers)

    def share(of: float) -> float:
        return 100 * of / beats.clock

    def an_attend(of: float) -> float:
        return 1e3 * of / attends

    figures = (
        Figure(
            f"{NODES:,} nodes' heartbeats, of the aggregator",
            share(beats.aggregator),
            "% of a core",
            BEATS_BOUND,
        ),
        Figure("the same, of the nodes", share(beats.nodes), "% of a core"),
        Figure("memory at the aggregator", memory / 1e3 / NODES, "KB a node"),
        Figure(f"an attend over {ASKED} nodes", 1e3 * statistics.median(times), "ms", ATTEND_BOUND),
        Figure("the same, 99th percentile", 1e3 * _percentile(times, 0.99), "ms"),
        Figure("the same, as the aggregator sees it", 1e3 * statistics.median(inside), "ms"),
        Figure("its processor time, of the aggregator", an_attend(asks.aggregator), "ms"),
        Figure("its processor time, of the nodes", an_attend(asks.nodes), "ms"),
        Figure("its processor time, of the caller", an_attend(asks.caller), "ms"),
        Figure("its error against float64", wrong, "", 1e-5),
        Figure("nodes that went meanwhile", gone, "nodes", 0.0),
    )
    return Report("Many nodes at one aggregator", figures, details={"seconds": seconds, "attends": attends})


def _less(after: Spent, before: Spent) -> Spent:
    return Spent(
        after.aggregator - before.aggregator,
        after.nodes - before.nodes,
        after.caller - before.caller,
        after.clock - before.clock,
    )


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def _merged() -> np.ndarray:
    partials = [made_up(number * NODES // ASKED, 1) for number in range(ASKED)]
    lse = np.stack([partial.lse for partial in partials]).astype(np.float64)
    out = np.stack([partial.out for partial in partials]).astype(np.float64)
    weights = np.exp(lse - lse.max(0))
    merged: np.ndarray = (weights[..., None] * out).sum(0) / weights.sum(0)[..., None]
    return merged
