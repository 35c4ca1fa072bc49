"""What is left of the answers when more is asked than can be answered: attends with a deadline of a second.

Two nodes of one thread on loopback, callers with a connection each that ask again as soon as they know, or
when they are told to come again. Good is an answer that is exact and came in time. At 64 callers the fleet is
busy and keeps up; at 256 it cannot, and what it cannot is to be refused at once instead of costing the others
their answers.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, serve
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.client.aio import AsyncClient
from edge_attention.core.errors import EdgeAttentionError

MODULE = "benchmarks.overload"
FEW, MANY = 64, 256
DEADLINE = 1.0
MARGIN = 0.25
"""From the deadline, which the aggregator keeps, until a caller that shares its processors knows."""
SPEC = {"query_heads": 8, "key_heads": 8, "key_dim": 64, "value_dim": 64}
TOKENS, QUERIES = 4_096, 8
LEAST = 0.7
"""Of the good answers at FEW callers, those left at MANY."""


def report(quick: bool) -> Report:
    """Good answers a second at FEW and at MANY callers, in turns."""
    seconds, turns = (5.0, 1) if quick else (10.0, 3)
    with LocalFleet() as fleet:
        fleet.start_aggregator()
        for name in ("a", "b"):
            fleet.start_node(name, "--threads", "1")
        worker = Worker(MODULE, fleet.address, str(seconds))
        try:
            few, many = [], []
            for _ in range(turns):
                few.append(worker.turn(FEW))
                many.append(worker.turn(MANY))
        finally:
            worker.close()
    good = [
        sum(turn["good"] for turn in found) / sum(turn["seconds"] for turn in found) for found in (few, many)
    ]
    figures = (
        Figure(f"good answers a second, {FEW} callers", good[0], "1/s"),
        Figure(f"good answers a second, {MANY} callers", good[1], "1/s"),
        Figure(f"{FEW} callers' by {MANY} callers'", good[0] / max(good[1], 1e-9), "x", 1 / LEAST),
        Figure(f"slowest word on a call, {MANY} callers", max(t["slowest"] for t in many), "s", 2 * DEADLINE),
    )
    return Report("More asked than can be answered", figures, details={"few": few, "many": many})


class Callers:
    """Callers of one context, each with a connection of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._queries = (
            np.random.default_rng(1)
            .standard_normal((QUERIES, SPEC["query_heads"], SPEC["key_dim"]))
            .astype(np.float32)
        )

    async def prepare(self) -> None:
        random = np.random.default_rng(0)
        async with AsyncClient(self._address) as client:
            context = await client.create_context("overload", **SPEC)
            shape = (TOKENS, SPEC["key_heads"], SPEC["key_dim"])
            for node in ("a", "b"):
                keys, values = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
                await context.append(keys, values, node=node)

    async def turn(self, callers: int, seconds: float) -> dict[str, Any]:
        outcomes: Counter[str] = Counter()
        slowest = 0.0

        async def caller() -> None:
            nonlocal slowest
            async with AsyncClient(self._address) as client:
                context = await client.context("overload")
                await begin.wait()
                while (began := time.perf_counter()) < until:
                    try:
                        answer = await context.attend(self._queries, deadline=DEADLINE)
                        took = time.perf_counter() - began
                        outcome = "exact" if answer.exact else "partial"
                    except EdgeAttentionError as error:
                        took = time.perf_counter() - began
                        outcome = type(error).__name__
                        await asyncio.sleep(error.retry_after or 0.0)
                    slowest = max(slowest, took)
                    outcomes["good" if outcome == "exact" and took <= DEADLINE + MARGIN else outcome] += 1

        begin, until = asyncio.Event(), 0.0
        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.sleep(2.0)
        until = time.perf_counter() + seconds
        began = time.perf_counter()
        begin.set()
        await asyncio.gather(*tasks)
        took = time.perf_counter() - began
        return {
            "callers": callers,
            "seconds": took,
            "slowest": slowest,
            "good": outcomes.pop("good", 0),
            **outcomes,
        }


def main() -> None:
    callers = Callers(sys.argv[1])
    with asyncio.Runner() as runner:
        runner.run(callers.prepare())
        serve(lambda count: runner.run(callers.turn(count, float(sys.argv[2]))), "ready")


if __name__ == "__main__":
    main()
