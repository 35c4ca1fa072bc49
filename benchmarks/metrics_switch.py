"""Either daemon, run as always: it counts after SIGUSR1 and does not after SIGUSR2. For metrics.py.

One process that does both: two processes of the same program differ by more than metrics cost. What is put
out of action are functions of classes, so what was looked up in advance is out of action, too.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

OFF: list[tuple[type, str, Any]] = []
"""Class, method, what it does while nothing is counted."""


def nothing(*args: Any, **options: Any) -> None:
    return None


def switch(number: int, frame: FrameType | None) -> None:
    for kind, name, does in OFF:
        setattr(kind, name, ON[kind, name] if number == signal.SIGUSR1 else does)


def main() -> None:
    daemon: Any
    from prometheus_client import Gauge

    from edge_attention.metrics.batched import MetricsBatch
    from edge_attention.metrics.tally import Tally

    OFF.extend([(Tally, "inc", nothing), (Gauge, "set", nothing), (MetricsBatch, "observe", nothing)])
    if "--listen" in sys.argv:
        import aggregator.main as daemon
        from aggregator.attention.metrics import AttendMetrics
        from aggregator.engine.link import FleetLink
        from aggregator.observe.metrics import Metrics
        from aggregator.observe.metrics_tasks import TaskMetrics

        OFF.append((AttendMetrics, "attended", nothing))
        OFF.append((Metrics, "answered", nothing))
        OFF.append((Metrics, "tick", nothing))
        OFF.append((TaskMetrics, "ran", nothing))
        OFF.append((FleetLink, "_report", nothing))
    else:
        import edge_node.main as daemon
        from edge_attention.metrics.node import NodeMetrics

        OFF.append((NodeMetrics, "ended", nothing))
        OFF.append((NodeMetrics, "report", lambda *_: b""))
    ON.update({(kind, name): getattr(kind, name) for kind, name, _ in OFF})
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, switch)
    daemon.main()


ON: dict[tuple[type, str], Any] = {}
