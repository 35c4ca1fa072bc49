"""What metrics cost an attend, in processor time.

The worst case: two nodes of 512 keys, so that hardly anything but our own code runs, and as many attends
under way as keep both cores busy. Two ways. The daemons time what they count (metrics_timed.py), less
what a function that does nothing takes there. And they count in one turn and do not in the next
(metrics_switch.py), and turns are short: what else the machine does hits both. Two turns without metrics in a
row show the noise of that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.metrics_timed import LUMPS
from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio, serve

MODULE = "benchmarks.metrics"
HEADS, DIM, KEYS, NODES, AT_ONCE = 12, 64, 512, 2, 8
BOUND = 1.0
"""Percent."""


def report(quick: bool) -> Report:
    """Ratios over all turns of all fleets."""
    fleets, turns, calls = (1, 40, 40) if quick else (4, 150, 40)
    found: dict[str, list[list[float]]] = {"with": [], "without": [], "again": []}
    for _ in range(fleets):
        with ExitStack() as stack:
            worker = Worker(MODULE, "switch")
            stack.callback(worker.close)
            worker.turn(10 * calls)
            for turn in range(turns):
                names = ("without", "with", "again") if turn % 2 else ("again", "with", "without")
                for name in names:
                    found[name].append(worker.turn(calls if name == "with" else -calls))
    share = Worker(MODULE, "timed")
    spent, all_spent = share.turn(500 if quick else 4000)
    share.close()
    figures = [
        Figure("counting, of the daemons' processor time", 100 * spent / all_spent, "percent", BOUND),
        Figure("counting an attend", spent * 1e6, "us"),
    ]
    between = {}
    for column, what in ((1, "processor time"), (0, "time")):
        of = {name: [turn[column] for turn in turns] for name, turns in found.items()}
        # Each turn with metrics stands between two without. One by one: a mean of two noisy figures is larger
        # than their median.
        beside, on = of["without"] + of["again"], 2 * of["with"]
        between[what] = interval([a / b for a, b in zip(on, beside, strict=True)])
        figures += [
            Figure(f"{what}, with by without", median_ratio(on, beside), "times"),
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


def counted(lines: list[str], calls: int) -> float:
    """Seconds of counting a call, by what each daemon said last."""
    total = 0.0
    for line in lines:
        told = json.loads(line.removeprefix("TIMED "))
        (_, nothing, _) = told.pop("Nothing.at_all")
        for name, (times, median, seconds) in told.items():
            total += seconds if name in LUMPS else times * max(median - nothing, 0.0)
    return total / calls


def work(way: str) -> None:
    """A fleet. A turn is [seconds, the daemons' processor seconds] of a call; below 0 nothing is counted.

    Where it is timed: [seconds of counting, the daemons' processor seconds] of a call.
    """
    from edge_attention.cli.local_fleet import LocalFleet
    from edge_attention.client.aio import AsyncClient

    with ExitStack() as stack:
        fleet = LocalFleet()
        fleet.aggregator_module = fleet.node_module = f"benchmarks.metrics_{way}"
        stack.enter_context(fleet)
        fleet.start_aggregator()
        names = [f"shard-{i}" for i in range(NODES)]
        for name in names:
            fleet.start_node(name, "--threads", "1")
        children = list(fleet.children.values())
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

        def signalled(number: int) -> None:
            for child in children:
                os.kill(child.pid, number)

        def turn(calls: int) -> list[float]:
            signalled(signal.SIGUSR1 if calls > 0 else signal.SIGUSR2)
            runner.run(several(AT_ONCE))
            before, began = sum(processor_seconds(child.pid) for child in children), time.perf_counter()
            runner.run(several(abs(calls)))
            took = time.perf_counter() - began
            spent = sum(processor_seconds(child.pid) for child in children) - before
            return [took / abs(calls), spent / abs(calls)]

        def timed(calls: int) -> list[float]:
            runner.run(several(10 * AT_ONCE))
            for child in children:
                child.lines.clear()
            _, spent = turn(calls)
            for child in children:
                child.wait_for("^TIMED ")
                child.lines.clear()
            signalled(signal.SIGUSR1)
            lines = [child.wait_for("^TIMED .*")[0] for child in children]
            return [counted(lines, calls), spent]

        runner.run(fill())
        serve(timed if way == "timed" else turn)
        runner.run(client.close())


if __name__ == "__main__":
    work(sys.argv[1])
