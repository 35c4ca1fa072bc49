"""What metrics cost: processor time of an attend, and attends a second, with them and without.

The worst case: two nodes of 512 keys, so that hardly anything but our own code runs, and as many attends
under way as keep both cores busy. The daemons count in one turn and do not in the next (metrics_switch.py),
and turns are short: what else the machine does hits both. Two turns without metrics in a row show the noise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio, serve

MODULE = "benchmarks.metrics"
HEADS, DIM, KEYS, NODES, AT_ONCE = 12, 64, 512, 2, 8
BOUND = 1.01


def report(quick: bool) -> Report:
    """Ratios over all turns of all fleets."""
    fleets, turns, calls = (1, 40, 40) if quick else (4, 150, 40)
    found: dict[str, list[list[float]]] = {"with": [], "without": [], "again": []}
    for _ in range(fleets):
        with ExitStack() as stack:
            worker = Worker(MODULE)
            stack.callback(worker.close)
            worker.turn(10 * calls)
            for turn in range(turns):
                names = ("without", "with", "again") if turn % 2 else ("again", "with", "without")
                for name in names:
                    found[name].append(worker.turn(calls if name == "with" else -calls))
    figures, between = [], {}
    for column, what in ((1, "processor time"), (0, "time")):
        of = {name: [turn[column] for turn in turns] for name, turns in found.items()}
        # Each turn with metrics stands between two without. One by one: a mean of two noisy figures is larger
        # than their median.
        beside, on = of["without"] + of["again"], 2 * of["with"]
        bound = BOUND if column else None
        between[what] = interval([a / b for a, b in zip(on, beside, strict=True)])
        figures += [
            Figure(f"{what}, with by without", median_ratio(on, beside), "times", bound),
            Figure(f"{what}, without by without", median_ratio(of["again"], of["without"]), "times"),
            Figure(f"{what}, with", statistics.median(of["with"]) * 1e3, "ms"),
        ]
    details = {
        "fleets": fleets,
        "turns": turns,
        "calls": calls,
        "at_once": AT_ONCE,
        "median_between": between,
    }
    return Report("What metrics cost an attend over 2 nodes of 512 keys", tuple(figures), (), details)


def interval(ratios: list[float]) -> tuple[float, float]:
    """Where the median lies with 95% confidence: order statistics, whatever the distribution."""
    # Each turn with metrics is in two of them: they count as half as many.
    ordered, middle, apart = sorted(ratios), len(ratios) / 2, 0.98 * (2 * len(ratios)) ** 0.5
    return ordered[max(int(middle - apart), 0)], ordered[min(int(middle + apart), len(ratios) - 1)]


def processor_seconds(pid: int) -> float:
    """Of all threads of a process, to the nanosecond."""
    spent = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            spent += int(path.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return spent / 1e9


def work() -> None:
    """A fleet. A turn is seconds and the daemons' processor seconds of a call; below 0 nothing is counted."""
    from edge_attention.aio import AsyncClient
    from edge_attention.cli.local_fleet import LocalFleet

    with ExitStack() as stack:
        fleet = LocalFleet()
        fleet.aggregator_module = fleet.node_module = "benchmarks.metrics_switch"
        stack.enter_context(fleet)
        fleet.start_aggregator()
        names = [f"shard-{i}" for i in range(NODES)]
        for name in names:
            fleet.start_node(name, "--threads", "1")
        pids = [child.pid for child in fleet.children.values()]
        rng = np.random.default_rng(0)
        queries = rng.standard_normal((1, HEADS, DIM), np.float32)
        runner = stack.enter_context(asyncio.Runner())
        client = AsyncClient(fleet.address)

        async def fill() -> None:
            context = await client.create_context(
                "bench", query_heads=HEADS, key_heads=HEADS, key_dim=DIM, value_dim=DIM
            )
            for name in names:
                k, v = (rng.standard_normal((KEYS, HEADS, DIM), np.float32) for _ in range(2))
                await context.append(k, v, node=name)

        async def several(calls: int) -> None:
            context = await client.context("bench")
            left = iter(range(calls))

            async def one_after_another() -> None:
                for _ in left:
                    assert (await context.attend(queries)).exact

            await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))

        def turn(calls: int) -> list[float]:
            for pid in pids:
                os.kill(pid, signal.SIGUSR1 if calls > 0 else signal.SIGUSR2)
            runner.run(several(AT_ONCE))
            before, began = sum(map(processor_seconds, pids)), time.perf_counter()
            runner.run(several(abs(calls)))
            took = time.perf_counter() - began
            return [took / abs(calls), (sum(map(processor_seconds, pids)) - before) / abs(calls)]

        runner.run(fill())
        serve(turn)
        runner.run(client.close())


if __name__ == "__main__":
    work()
