"""Measures nodes before a plan is made of them: how quick they compute, and what a trip to them takes.

    load       all nodes at once fetch the small graph of products, which nothing waits for later
    alone      node by node: the products, an empty trip, 1 MiB there, 1 MiB there and back
    together   the same with all nodes at once: boxes of one machine share its processors, and a Wi-Fi its air

Both are done in turn, ROUNDS times, and the quickest of each counts: what disturbs it only makes it slower,
and what goes on for a while disturbs both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf

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
    """Seconds of the quickest.

    Attributes:
        compute: of the products, in graphs, as the node says.
        empty, down, echo: from call to last word, of a few bytes; with MOVED bytes there; and back as well.
    """

    compute: float
    empty: float
    down: float
    echo: float

    def quickest(self, other: TripTimes) -> TripTimes:
        return TripTimes(
            min(self.compute, other.compute),
            min(self.empty, other.empty),
            min(self.down, other.down),
            min(self.echo, other.echo),
        )


_NONE = TripTimes(inf, inf, inf, inf)


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
            found = dict.fromkeys(here, (_NONE, _NONE))
            for number in range(ROUNDS):
                if number and time.monotonic() > until - MEASURING_SECONDS / 2:
                    break  # they are slow, or many: once has to do
                for node in list(found):
                    took = (await self._all(kinds, [node], until)).get(node)
                    alone, together = found[node]
                    if took is not None:
                        found[node] = alone.quickest(took), together
                    elif not number:
                        del found[node]
                beside = await self._all(kinds, list(found), until)
                for node, (alone, together) in list(found.items()):
                    if node in beside:
                        found[node] = alone, together.quickest(beside[node])
                    elif not number:
                        del found[node]
        finally:
            self._bulk.take_back(digest)
        return {node: NodeTimes(*times) for node, times in found.items()}

    async def _all(self, kinds: Sequence[_Kind], nodes: Sequence[str], until: float) -> dict[str, TripTimes]:
        """Each kind once, by those of the nodes that do them all."""
        found: dict[str, list[float]] = {node: [] for node in nodes}
        for kind in kinds:
            took = await self._once(kind, list(found), until)
            found = {node: [*found[node], seconds] for node, seconds in took.items()}
        return {node: TripTimes(*seconds) for node, seconds in found.items()}

    async def _once(self, kind: _Kind, nodes: Sequence[str], until: float) -> dict[str, float]:
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
        taken = {node: outcome.seconds.get(shard, left) for shard, node in outcome.answered.items()}
        if not kind.in_graphs:
            return taken
        # It has not computed for longer than it was waited for, whatever it says.
        return {
            node: min(outcome.run_seconds.get(shard, left), taken[node])
            for shard, node in outcome.answered.items()
        }


def _graph() -> tuple[str, ArrayBytes]:
    from edge_attention.graphs.axes.meter import products_graph

    data = products_graph()
    return sha256(data).hexdigest(), ArrayBytes(np.frombuffer(data, np.uint8))
