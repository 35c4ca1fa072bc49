"""A fleet of real node processes for the benchmarks of serving; the aggregator is this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.recipe import inference
from aggregator.server import ServerSettings, running
from benchmarks.infer_fleet import slowed
from edge_attention.client.aio import AsyncClient

__all__ = ["ServeFleet", "serve_fleet"]


@dataclass
class ServeFleet:
    """Attributes:
    shares: node -> its share of one core.
    """

    port: int
    folder: Path
    shares: Mapping[str, float]
    client: AsyncClient
    engine: Engine
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stacks: dict[str, contextlib.ExitStack] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a node, with what it has stored before."""
        stack = self.stacks[name] = contextlib.ExitStack()
        command = [sys.executable, "-c", "from edge_node.main import main; main()"]
        command += ["--aggregator", f"127.0.0.1:{self.port}", "--store", str(self.folder / name)]
        command += ["--name", name, "--threads", "1", "--memory-limit", "2GiB"]
        # What starts in the control group stays in it, the cell included.
        waits = ["sh", "-c", 'read go; exec "$@"', "sh", *command]
        process = subprocess.Popen(waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.processes[name] = process
        stack.enter_context(slowed(process.pid, self.shares[name]))
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()

    def stop(self, name: str) -> None:
        """Have it end as an operator would. Blocks until it has."""
        self.processes[name].send_signal(signal.SIGTERM)
        self.processes[name].wait(60)
        self.stacks.pop(name).close()

    async def live(self) -> None:
        """Wait until all nodes are there."""
        if not await self.engine.trips.all_live(list(self.shares), 120.0, lambda sentence: None):
            raise SystemExit("a node of the benchmark did not come")


@contextlib.asynccontextmanager
async def serve_fleet(folder: Path, shares: Mapping[str, float]) -> AsyncIterator[ServeFleet]:
    """The fleet, while the block runs."""
    engines: list[Engine] = []

    def capture(engine: Engine) -> Recipe:
        engines.append(engine)
        return Recipe("benchmark")

    os.environ["OMP_NUM_THREADS"] = "1"
    settings = ServerSettings("127.0.0.1", 0, folder / "state", "127.0.0.1", None, 10.0, 60.0)
    async with (
        running(settings, (capture, inference)) as port,
        AsyncClient(f"127.0.0.1:{port}", timeout=60.0) as client,
    ):
        fleet = ServeFleet(port, folder, shares, client, engines[0])
        try:
            for name in shares:
                fleet.start(name)
            await fleet.live()
            yield fleet
        finally:
            for stack in list(fleet.stacks.values()):
                await asyncio.to_thread(stack.close)
