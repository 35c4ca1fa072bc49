"""Our side of the federated benchmark, in a process of its own: an aggregator and edge nodes on loopback.

python -m benchmarks.federated_ours WORK NODES [relay]
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.federated_meter import Memory, Relay, Turn, enter_private_network
from benchmarks.federated_work import DIGITS, digits_accuracy, digits_work, idle_work
from benchmarks.turns import serve
from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from edge_attention.demo.digits import Images

MODULE = "benchmarks.federated_ours"
TOGETHER = 10
"""Nodes started at once."""


class Ours:
    """A fleet that a turn trains with: one job of so many rounds."""

    def __init__(self, work: str, nodes: int, relayed: bool, stack: ExitStack) -> None:
        self._test: Images | None = None
        if work == DIGITS:
            self._work, self._test = digits_work()
        else:
            self._work = idle_work(work, nodes)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._fleet = stack.enter_context(LocalFleet(state=folder / "state"))
        self._fleet.start_aggregator()
        self._client = stack.enter_context(Client(self._fleet.address))
        self._relay = Relay(self._fleet.address) if relayed else None
        released = sorted({graph.release for graph in self._client.plan(self._work.job(1)) if graph.release})
        to = ("--aggregator", self._relay.address) if self._relay else ()
        dataset = self._work.job(1).dataset
        files = list(self._work.write(folder).items())
        for start in range(0, len(files), TOGETHER):
            group = files[start : start + TOGETHER]
            for node, file in group:
                data = {dataset: file}
                self._fleet.start_node(
                    node, "--threads", "1", *to, data=data, allow_release=released, wait=False
                )
            for node, _ in group:
                self._fleet.wait_ready(node, 180)
        self.memory = stack.enter_context(Memory(self._processes))

    def _processes(self) -> dict[str, list[int]]:
        children = dict(self._fleet.children)
        server = {"server": [children.pop(AGGREGATOR).pid]}
        return server | {node: [child.pid] for node, child in children.items()}

    def turn(self, rounds: int) -> dict[str, Any]:
        """What was measured, as Turn.found. A round ends when the client hears that it is committed."""
        turn = Turn(self.memory, self._relay)
        run = self._client.train(self._work.job(rounds))
        for _ in run:
            turn.ended(time.monotonic())
        found = turn.found(self._work.data.keys())
        if self._test is not None:
            found["accuracy"] = digits_accuracy(run.parameters(), self._test)
        return found


def main() -> None:
    enter_private_network(MODULE)
    with ExitStack() as stack:
        ours = Ours(sys.argv[1], int(sys.argv[2]), "relay" in sys.argv[3:], stack)
        serve(ours.turn, "ready")


if __name__ == "__main__":
    main()
