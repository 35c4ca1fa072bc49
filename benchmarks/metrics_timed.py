"""Either daemon, run as always: it times its counting and says so after SIGUSR1. For metrics.py.

A line `TIMED {name: [times, median seconds, seconds in all]}`, since the last one. `Nothing.at_all` is what a
function that does nothing takes, called where the others are.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from typing import Any

LUMPS = (
    "AttendMetrics.count",
    "TaskMetrics.count",
    "NodeMetrics.count",
    "NodeMetrics.report",
    "Metrics.tick",
    "Link._report",
)
"""What is done for many attends at once, and takes long enough for the thread's own clock, which stands still
while others have the processor. Of these the sum counts, of all else the median for each."""
FOUND: dict[str, list[float]] = {}
INSIDE = [False]
"""Whether a function that is timed is under way: those it calls are in its time."""


class Nothing:
    def at_all(self, _: object) -> None:
        pass


def timed(kind: type, name: str) -> None:
    full = f"{kind.__name__}.{name}"
    function, found = getattr(kind, name), FOUND.setdefault(full, [])
    clock = time.thread_time if full in LUMPS else time.perf_counter

    def measured(*args: Any, **options: Any) -> Any:
        if INSIDE[0]:
            return function(*args, **options)
        INSIDE[0], began = True, clock()
        try:
            return function(*args, **options)
        finally:
            found.append(clock() - began)
            INSIDE[0] = False

    setattr(kind, name, measured)


def after(kind: type, name: str) -> None:
    """Call a function that does nothing after this one."""
    function, nothing = getattr(kind, name), Nothing()

    def both(*args: Any) -> Any:
        result = function(*args)
        nothing.at_all(result)
        return result

    setattr(kind, name, both)


def say(*_: object) -> None:
    told = {name: [len(took), statistics.median(took), sum(took)] for name, took in FOUND.items() if took}
    print("TIMED", json.dumps(told), flush=True)
    for took in FOUND.values():
        took.clear()


def main() -> None:
    daemon: Any
    from prometheus_client import Gauge

    from edge_attention.metrics.batched import MetricsBatch
    from edge_attention.metrics.tally import Tally

    functions: list[tuple[type, str]] = [
        (Tally, "inc"), (Gauge, "set"), (MetricsBatch, "observe"), (Nothing, "at_all"),
    ]  # fmt: skip
    if "--listen" in sys.argv:
        import aggregator.main as daemon
        from aggregator.attention.metrics import AttendMetrics
        from aggregator.engine.link import FleetLink
        from aggregator.observe.metrics import Metrics
        from aggregator.observe.metrics_tasks import TaskMetrics

        functions += [(AttendMetrics, name) for name in ("answered", "attended", "count")]
        functions += [(TaskMetrics, name) for name in ("contribution", "ran", "count")]
        functions += [(Metrics, "answered"), (Metrics, "tick"), (FleetLink, "_report")]
        after(FleetLink, "_contribution")
    else:
        import edge_node.link as node
        import edge_node.main as daemon
        from edge_attention.metrics.node import NodeMetrics

        functions += [(NodeMetrics, name) for name in ("ended", "count", "report")]
        after(node.NodeLink, "_count")
    for kind, name in functions:
        timed(kind, name)
    signal.signal(signal.SIGUSR1, say)
    daemon.main()
