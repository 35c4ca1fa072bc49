"""What distributing one attend adds to its kernels: ours by bare gRPC streams, the least gRPC
leaves to do, Ray actors, PyTorch's gloo.

Two shards of 32,768 keys, 12 heads of 64, one query, one thread a shard. Added is what a call takes, seen
at the root, beyond the slowest kernel of that same call. The ways take turns, a call at a time.
"""

from __future__ import annotations

import importlib.util
import statistics
from contextlib import ExitStack

from benchmarks import attend_floor
from benchmarks.attend_variants import MODULE
from benchmarks.report import Figure, Report
from benchmarks.turns import Worker, median_ratio

KEYS = 32_768
WARM = 5
BOUNDS = {"bare": 2.5, "ray": 1.0, "gloo": 1.0}
FLOOR_BOUND = 1.4
"""Ours by the leanest floor there is: with uvloop where it is installed, which our daemons then use, too."""
TITLES = {
    "bare": "a bare gRPC fan-out of the same bytes",
    "thread": "gRPC, a thread and the merge alone",
    "loop": "gRPC, the kernel on its loop and the merge alone",
    "uvloop": "gRPC, the kernel on uvloop and the merge alone",
    "ray": "what Ray adds",
    "gloo": "what gloo adds",
}
NEEDS = {"uvloop": "uvloop", "ray": "ray", "gloo": "torch"}
PARTS = {"from the Python client's call to its answer": 2, "with a deadline": 3}
"""What else a turn of ours says, and where in it."""


def report(quick: bool) -> Report:
    """Added milliseconds of each way, and ours by theirs."""
    rounds = 40 if quick else 150
    with ExitStack() as stack:

        def start(*arguments: str, module: str = MODULE) -> Worker:
            worker = Worker(module, *arguments)
            stack.callback(worker.close)
            return worker

        workers = {"ours": start("ours", str(KEYS))}
        sizes = workers["ours"].first
        workers["bare"] = start("bare", str(sizes["sent"]), str(sizes["received"]))
        skipped = []
        for way in (*attend_floor.WAYS, "ray", "gloo"):
            package = NEEDS.get(way)
            if package is not None and importlib.util.find_spec(package) is None:
                skipped.append(f"{TITLES[way]}: {package} is not installed (pip install '.[bench]')")
                continue
            try:
                if way in attend_floor.WAYS:
                    workers[way] = start("root", way, str(KEYS), module=attend_floor.MODULE)
                else:
                    workers[way] = start(way, str(KEYS))
            except SystemExit as error:
                skipped.append(f"{TITLES[way]}: {error}")
        for worker in workers.values():
            worker.turn(WARM)
        turns = [{way: worker.turn(1)[0] for way, worker in workers.items()} for _ in range(rounds)]
    added = {way: [turn[way][0] for turn in turns] for way in workers}
    kernel = {way: statistics.median(turn[way][1] for turn in turns) for way in workers if way != "bare"}
    bounds = BOUNDS | {"uvloop" if "uvloop" in workers else "loop": FLOOR_BOUND}
    figures = [
        *(
            Figure(
                f"ours by {TITLES[way]}", median_ratio(added["ours"], added[way]), "times", bounds.get(way)
            )
            for way in workers
            if way != "ours"
        ),
        *(
            Figure(f"{TITLES['thread']} by gloo", median_ratio(added["thread"], added["gloo"]), "times")
            for _ in added.get("gloo", ())[:1]
        ),
        *(Figure(f"{way}, added", statistics.median(added[way]), "ms") for way in workers),
        *(
            Figure(f"ours, added, {part}", statistics.median(t["ours"][at] for t in turns), "ms")
            for part, at in PARTS.items()
        ),
        *(Figure(f"{way}, kernel", ms, "ms") for way, ms in kernel.items()),
    ]
    quartiles = {way: [round(q, 3) for q in statistics.quantiles(added[way], n=4)] for way in workers}
    details = {"rounds": rounds, "bytes_a_node": sizes, "added_ms_quartiles": quartiles}
    return Report("One attend over 2 nodes of 32,768 keys", tuple(figures), tuple(skipped), details)
