"""Measures nodes before a plan is made of them: how quick they compute, and what a trip to them takes.

    load       all nodes at once fetch the small graph of products, which nothing waits for later
    alone      node by node: the products, an empty trip, 1 MiB there, 1 MiB there and back
    together   the same with all nodes at once: boxes of one machine share its processors, and a Wi-Fi its air

Both are done in turn, ROUNDS times, and the quickest computing counts: what disturbs it only makes it slower,
and what goes on for a while disturbs both. Of trips the usual counts, as requests have it so, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from statistics import median

import numpy as np

from aggregator.engine.bulk import Bulk
from aggregator.engine.prepared import prepare
from aggregator.engine.trip import Errand, Trips
from aggregator.inference.delivery import ArrayBytes
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.program import Return, Run, Stored
from edge_attention.core.tensors import Array

__all__ = ["MOST_MEASURED", "NodeMeter", "NodeTimes"]

log = logging.getLogger(__name__)

MEASURING_SECONDS = 10.0
"""All nodes together; who is not measured by then is not. Of a few nodes it takes one or two."""
TRIP_SECONDS = 3.0
"""One of its trips."""
MOST_MEASURED = 16
"""Nodes that are measured for one plan; those that are left out are measured for the next."""
ROUNDS = 4
MOVED = 1024 * 1024
"""Bytes."""

_FEW: Mapping[str, Array] = {"task/x": np.zeros(1, np.float32)}
_MANY: Mapping[str, Array] = {"task/x": np.zeros(1, np.float32), "task/m": np.zeros(MOVED // 4, np.float32)}
_BACK = (Return("task/x", "y"),)


@dataclass(frozen=True)
class TripTimes:
    """Seconds.

    Attributes:
        compute: of the products, in graphs, as the node says.
        way: of their call beside that: a node that computes takes longer to answer than one that does not.
        empty, down, echo: from call to last word, of a few bytes; with MOVED bytes there; and back as well.
    """

    compute: float
    way: float
    empty: float
    down: float
    echo: float

    @classmethod
    def of(cls, rounds: Sequence[TripTimes]) -> TripTimes:
        """The quickest computing, and of each kind of trip the usual."""
        return cls(
            min(one.compute for one in rounds),
            median(one.way for one in rounds),
            median(one.empty for one in rounds),
            median(one.down for one in rounds),
            median(one.echo for one in rounds),
        )


@dataclass(frozen=True)
class NodeTimes:
    """What a node took while no other was asked, and while all were."""

    alone: TripTimes
    together: TripTimes


@dataclass(frozen=True)
class _Kind:
    """A trip that is made, by the node it is made to."""

    instructions: tuple[Run | Return, ...]
    slots: Mapping[str, Array]
    returned: str
    shape: tuple[int, ...]
    in_graphs: bool = False

    def errand(self, node: str) -> Errand:
        return Errand(
            shard=f"measure.{node}",
            holders=(node,),
            coverage=range(1),
            instructions=self.instructions,
            wanted={self.returned: (np.dtype(np.float32), self.shape)},
            inline=self.slots,
            prepared=prepare(self.instructions, self.slots),
        )


_EMPTY = _Kind(_BACK, _FEW, "y", (1,))
_DOWN = _Kind(_BACK, _MANY, "y", (1,))
_ECHO = _Kind((Return("task/m", "y"),), _MANY, "y", (MOVED // 4,))


class NodeMeter:
    """Measures nodes by trips, one plan's at a time."""

    def __init__(self, trips: Trips, bulk: Bulk) -> None:
        self._trips = trips
        self._bulk = bulk
        self._graph: tuple[str, ArrayBytes] | None = None

    async def measure(self, nodes: Sequence[str]) -> dict[str, NodeTimes]:
        """By node; one that does not answer, says no, or is too late is not in it, and no error."""
        until = time.monotonic() + MEASURING_SECONDS
        if self._graph is None:
            self._graph = await asyncio.to_thread(_graph)
        digest, data = self._graph
        run = Run(digest, {"x": Stored("task/x")}, {"y": "task/y"})
        compute = _Kind((run, Return("task/y", "y")), _FEW, "y", (1, 1), in_graphs=True)
        kinds = (compute, _EMPTY, _DOWN, _ECHO)
        self._bulk.lend_source(digest, data)
        try:
            here = list(await self._once(compute, nodes, until))
            found: dict[str, tuple[list[TripTimes], list[TripTimes]]] = {node: ([], []) for node in here}
            for number in range(ROUNDS):
                if number and time.monotonic() > until - MEASURING_SECONDS / 2:
                    break  # they are slow, or many: once has to do
                for node in here:
                    for took in (await self._all(kinds, [node], until)).values():
                        found[node][0].append(took)
                here = [node for node in here if found[node][0]]
                for node, took in (await self._all(kinds, here, until)).items():
                    found[node][1].append(took)
                here = [node for node in here if found[node][1]]
        finally:
            self._bulk.take_back(digest)
        return {node: NodeTimes(*map(TripTimes.of, rounds)) for node, rounds in found.items() if all(rounds)}

    async def _all(self, kinds: Sequence[_Kind], nodes: Sequence[str], until: float) -> dict[str, TripTimes]:
        """Each kind once, by those of the nodes that do them all."""
        found: dict[str, list[float]] = {node: [] for node in nodes}
        for kind in kinds:
            took = await self._once(kind, list(found), until)
            found = {
                node: [*found[node], *((run, all - run) if kind.in_graphs else (all,))]
                for node, (run, all) in took.items()
            }
        return {node: TripTimes(*seconds) for node, seconds in found.items()}

    async def _once(self, kind: _Kind, nodes: Sequence[str], until: float) -> dict[str, tuple[float, float]]:
        """By node that answered: seconds in graphs, and of all."""
        left = min(until - time.monotonic(), TRIP_SECONDS)
        if not nodes or left <= 0:
            return {}
        try:
            errands = [kind.errand(node) for node in nodes]
            outcome = await self._trips.make(errands, left, believed=(), patient=False)
        except EdgeAttentionError as error:
            log.info("nodes are not measured: %s", error)
            return {}
        for missing in outcome.missing.values():
            log.info("node %s is not measured: %s", missing.node, missing.text)
        found = {}
        for shard, node in outcome.answered.items():
            taken = outcome.seconds.get(shard, left)
            # It has not computed for longer than it was waited for, whatever it says.
            found[node] = min(outcome.run_seconds.get(shard, left), taken), taken
        return found


def _graph() -> tuple[str, ArrayBytes]:
    from edge_attention.graphs.axes.meter import products_graph

    data = products_graph()
    return sha256(data).hexdigest(), ArrayBytes(np.frombuffer(data, np.uint8))
