"""A steady load on two replicas, one of which is restarted every minute: what fails, how late answers are.

    python -m benchmarks.serve_load --rate 200 --minutes 10

Requests come by the clock, whether earlier ones were answered or not, of MiniLM at 16 tokens. Prints what was
asked, what failed and with what, the median and the 99th percentile, and this process's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.infer_models import MINILM, feeds_of, model_file
from benchmarks.serve_fleet import ServeFleet, serve_fleet
from edge_attention.client.models import AsyncServedModel
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.tensors import Array

LENGTH, NODES = 16, ("a", "b")
DEADLINE = 10.0


class LoadRun:
    """What became of the requests."""

    def __init__(self, model: AsyncServedModel, feeds: dict[str, Array]) -> None:
        self._model = model
        self._feeds = feeds
        self.seconds: list[float] = []
        self.failed: Counter[str] = Counter()
        self.memory: list[int] = []

    async def ask(self) -> None:
        began = time.monotonic()
        try:
            await self._model.infer(self._feeds, deadline=DEADLINE)
            self.seconds.append(time.monotonic() - began)
        except EdgeAttentionError as error:
            self.failed[f"{type(error).__name__}: {error.message[:120]}"] += 1

    async def load(self, rate: float, seconds: float) -> None:
        """So many requests a second for so long; all of them ended when this returns."""
        began = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.monotonic(), 0.0))
            task = asyncio.create_task(self.ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if number % int(10 * rate) == 0:
                self.memory.append(_resident())
        if tasks:
            await asyncio.wait(tasks)

    def told(self) -> str:
        total = len(self.seconds) + sum(self.failed.values())
        order = sorted(self.seconds)
        middle, late = statistics.median(order), order[int(0.99 * (len(order) - 1))]
        lines = [
            f"{total:,} requests, {sum(self.failed.values())} failed",
            f"ms: median {1e3 * middle:.1f}, 99th percentile {1e3 * late:.1f}, longest {1e3 * order[-1]:.1f}",
            f"memory of the aggregator and the client, MB: {[size >> 20 for size in self.memory]}",
            *(f"  {count} {what}" for what, count in self.failed.most_common(5)),
        ]
        return "\n".join(lines)


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


async def _restarts(fleet: ServeFleet, every: float) -> None:
    while True:
        for name in NODES:
            await asyncio.sleep(every)
            await asyncio.to_thread(fleet.stop, name)
            fleet.start(name)


async def _run(rate: float, seconds: float, every: float, folder: Path) -> str:
    path = model_file(MINILM, folder)
    feeds = feeds_of(path, 1, LENGTH)
    async with serve_fleet(folder, dict.fromkeys(NODES, 1.0)) as fleet:
        model = await fleet.client.deploy(path, "minilm", plan="replicate")
        run = LoadRun(model, feeds)
        restarts = asyncio.create_task(_restarts(fleet, every))
        try:
            await run.load(rate, seconds)
        finally:
            restarts.cancel()
        return run.told()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between restarts of a node")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(asyncio.run(_run(args.rate, 60 * args.minutes, args.every, Path(folder))))


if __name__ == "__main__":
    main()
