"""What it costs that graphs of others run in a process of their own: a trip, tensors, the start, memory.

The same graph in the daemon and in a cell, in one process that takes turns between them. The attention graphs
of the library run in the daemon with and without cells: the path of an attend does not go through one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio, serve
from edge_attention.graphs.attention import library
from edge_node import shared_memory
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.runtime import Runtime, Stop

MODULE = "benchmarks.cell"
APART = "3 KB, 5 ms apart,"
SIZES = {"3 KB": 3 << 10, APART: 3 << 10, "1 MB": 1 << 20, "50 MB": 50 << 20}
"""Bytes each way. Runs follow each other at once, but for those that wait, as for a network."""
PAUSE = 0.005
CALLS = {"3 KB": 200, APART: 20}
TRIP_BOUND = 0.2
"""Milliseconds that a trip with 3 KB each way may take more than in the daemon."""
HEADS, DIM, TOKENS = 12, 64, 8192


def report(quick: bool) -> Report:
    """Turns of both ways in one worker; another worker without cells beside one with, for attends."""
    turns = 5 if quick else 25
    figures, details = [], {}
    for name in SIZES:
        worker = Worker(MODULE, "trip", name)
        found = [worker.turn(CALLS.get(name, 5)) for _ in range(turns)]
        worker.close()
        details[name] = found
        here, there = ([one[way] for one in found] for way in ("here", "there"))
        added = statistics.median(b - a for a, b in zip(here, there, strict=True))
        bound = TRIP_BOUND if name == "3 KB" else None
        figures.append(Figure(f"{name} each way, more than in the daemon", added, "ms", bound))
        figures.append(Figure(f"{name} each way, by the daemon's", median_ratio(there, here), "x"))
    details["first"] = worker.first
    figures += [
        Figure("first run: process, load and trip", worker.first["seconds"], "s"),
        Figure("a cell that has run nothing but 50 MB tensors", worker.first["memory"], "MB"),
    ]
    workers = {way: Worker(MODULE, "attend", way) for way in ("with", "without")}
    times: dict[str, list[float]] = {way: [] for way in workers}
    for turn in range(turns):
        for way in list(workers) if turn % 2 else reversed(workers):
            times[way].append(workers[way].turn(10))
    for one in workers.values():
        one.close()
    details["attend"] = times
    ratio = median_ratio(times["with"], times["without"])
    figures.append(Figure("an attention graph of the library, with cells by without", ratio, "x", 1.05))
    return Report("Graphs of others in a process of their own", tuple(figures), details=details)


def _added(size: int) -> tuple[str, bytes]:
    """y = x + 1, of so many bytes."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "added",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    opset = [helper.make_opsetid("", 18)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return sha256(data).hexdigest(), data


def _trips(size: int, pause: float) -> None:
    runtime, local = Runtime(limit=1 << 30, graphs=RefusedGraphs()), Runtime(limit=1 << 30)
    made = _added(size)
    ways: dict[str, Any] = {"here": local.load(*made), "there": runtime.load(*made)}
    # As it comes from the aggregator, or out of a dataset.
    x = shared_memory.empty(size // 4, np.float32)
    x[:] = 1
    began = time.perf_counter()
    (y,) = ways["there"].run({"x": x}, ["y"], Stop())
    first = time.perf_counter() - began
    assert float(y[-1]) == 2
    assert runtime.cells is not None
    status = Path(f"/proc/{runtime.cells.public.pid}/status").read_text()
    memory = 1024 * int(status.partition("VmRSS:")[2].split()[0]) / 1e6

    def turn(calls: int) -> dict[str, float]:
        found = {}
        for name, graph in ways.items():
            taken = []
            for _ in range(calls):
                if pause:
                    time.sleep(pause)
                began = time.perf_counter()
                graph.run({"x": x}, ["y"], Stop())
                taken.append(time.perf_counter() - began)
            found[name] = 1000 * statistics.median(taken)
        return found

    serve(turn, {"seconds": first, "memory": memory})
    runtime.close()


def _attends(cells: bool) -> None:
    runtime = Runtime(limit=1 << 30, graphs=RefusedGraphs() if cells else None)
    runtime.limit_arena()
    graph = runtime.find(library.digest("attention_decode"))
    assert graph is not None
    random = np.random.default_rng(0)
    tiles = (TOKENS // library.TILE, HEADS, library.TILE, DIM)
    feeds = {
        "q": random.standard_normal((1, HEADS, DIM), dtype=np.float32),
        "keys": random.standard_normal(tiles, dtype=np.float32),
        "values": random.standard_normal(tiles, dtype=np.float32),
        "scale": np.array(DIM**-0.5, np.float32),
        "lo": np.zeros(1, np.int64),
        "hi": np.full(1, TOKENS),
    }

    def turn(calls: int) -> float:
        taken = []
        for _ in range(calls):
            began = time.perf_counter()
            graph.run(feeds, ["out", "lse"], Stop())
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    turn(5)
    serve(turn, "ready")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("trip", "attend"))
    parser.add_argument("how")
    args = parser.parse_args()
    if args.what == "trip":
        _trips(SIZES[args.how], PAUSE if args.how == APART else 0.0)
    else:
        _attends(args.how == "with")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
