"""An edge node, run as always: it says after SIGUSR1 for how long ONNX Runtime has run so far. For round.py.

A line `KERNELS N SECONDS`, N of these so far: what it ran in the daemon, and what the cells say that it ran
there. A node keeps this to itself, as it tells of private data.
"""

from __future__ import annotations

import itertools
import signal
import time
from typing import Any

from edge_node import main as daemon
from edge_node.cell.cells import Cells
from edge_node.runtime import Graph

SPENT: list[float] = []
CELLS: list[Cells] = []
_number = itertools.count(1)


def say(*_: object) -> None:
    there = sum(cells.counts().graph_seconds for cells in CELLS)
    print(f"KERNELS {next(_number)} {sum(SPENT) + there}", flush=True)


def main() -> None:
    run, make = Graph.run, Cells.__init__

    def timed(graph: Graph, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return run(graph, *args, **options)
        finally:
            SPENT.append(time.perf_counter() - began)

    def noted(cells: Cells, *args: Any) -> None:
        make(cells, *args)
        CELLS.append(cells)

    Graph.run = timed  # type: ignore[assignment, method-assign]
    Cells.__init__ = noted  # type: ignore[assignment, method-assign]
    signal.signal(signal.SIGUSR1, say)
    daemon.main()


if __name__ == "__main__":
    main()
