"""What a plan is made with: nodes that may hold parts, what was measured of them, what they hold."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from aggregator.engine.recipe import Engine
from aggregator.fleet.membership import Member
from aggregator.inference.cut_request import HubTold, NodeTold
from aggregator.inference.deployed import Deployed, PlannedParts
from aggregator.inference.gained import USABLE, box_of
from aggregator.inference.holding import PartTaker
from aggregator.inference.measured import NodeMeasures
from aggregator.inference.measuring import MOST_MEASURED, MOVED, NodeMeter
from edge_attention.core.errors import FailedPrecondition, ResourceExhausted
from edge_attention.core.messages.inference import DeployProgress
from edge_attention.graphs.axes.meter import PRODUCTS_WORK

__all__ = ["PlanNodes", "Telling"]

Telling = Callable[[DeployProgress], None]


class PlanNodes:
    """The nodes as plans see them. `taken`: bytes of weights by node, of all deployments."""

    def __init__(self, engine: Engine, taken: Callable[[], Counter[str]]) -> None:
        self._membership = engine.membership
        self._taken = taken
        self.measures = NodeMeasures()
        self._meter = NodeMeter(engine.trips, engine.bulk)
        self._measuring = asyncio.Lock()

    async def measure(self, nodes: Sequence[NodeTold], say: Telling) -> None:
        """Measure those of `nodes` that no answer has said anything of for long. Who does not answer stays
        unmeasured."""
        by_name = {node.name: node for node in nodes}
        async with self._measuring:  # at a time they would disturb each other
            names = self.measures.unknown(list(by_name), time.monotonic())[:MOST_MEASURED]
            if not names:
                return
            say(DeployProgress("planning", text=f"measuring {len(names)} node{'s' * (len(names) > 1)}"))
            times = await self._meter.measure(names)
            threads = {name: node.threads for name, node in by_name.items()}
            machines = {name: node.machine for name, node in by_name.items()}
            self.measures.probed(times, threads, machines, PRODUCTS_WORK, MOVED, time.monotonic())
            if len(times) < len(names):
                away = ", ".join(sorted(set(names) - set(times)))
                say(DeployProgress("planning", text=f"not measured, so for no plan of several nodes: {away}"))

    def nodes(self, names: Sequence[str]) -> tuple[NodeTold, ...]:
        """The nodes that may hold parts.

        Raises:
            NotFound, FailedPrecondition: one that is named is not here, or none is.
        """
        members = [self._membership.require_live(name) for name in names] or [
            member for member in self._membership.members() if member.live
        ]
        if not members:
            raise FailedPrecondition("no node is here to hold the model; start one with edge-node")
        taken = self._taken()
        return tuple(self._told(member, taken) for member in members)

    def hub(self) -> HubTold:
        """How the nodes are reached, all together."""
        return self.measures.hub()

    def _told(self, member: Member, taken: Counter[str]) -> NodeTold:
        box = member.register.box
        return self.measures.told(
            NodeTold(
                member.name,
                member.register.memory_limit,
                taken[member.name],
                member.register.threads,
                machine=box.id if box is not None else "",
                cores=box.cores if box is not None else 0.0,
            )
        )

    def quickest(self, candidates: Sequence[PartTaker]) -> str:
        """Of the nodes that have room for a part, the one that is predicted to do it soonest.

        What it holds already it does first, and takes as long as what is to come. Where none seems to have
        room, who has most of it: the node itself knows.
        """
        taken = self._taken()
        found = []
        for one in candidates:
            member = self._membership.get(one.node)
            if member is None:
                continue
            told = self._told(member, taken)
            box = box_of(told)
            late = (one.parts + 1) * box.slowness / box.flops
            room = USABLE * told.memory_limit - told.taken
            full = room < one.bytes
            found.append((full, -room if full else late, -room, one.node))
        return min(found)[-1] if found else candidates[0].node

    def threads(self) -> dict[str, int]:
        return {member.name: member.register.threads for member in self._membership.members()}

    def require_fits(self, deployed: Deployed, planned: PlannedParts) -> None:
        """Raises ResourceExhausted if a node has no room for what it is to hold. A version that this one
        replaces is there until then, so it counts."""
        taken = self._taken()
        lacking = []
        for node, size in planned.node_bytes.items():
            member = self._membership.get(node)
            limit = member.register.memory_limit if member is not None else 0
            if taken[node] > limit:
                others = f", and {taken[node] - size:,} are of other models" if taken[node] > size else ""
                lacking.append(f"{node} would hold {size:,} bytes of weights and has {limit:,}{others}")
        if lacking:
            raise ResourceExhausted(
                f"model {deployed.name!r} does not fit by plan {deployed.request.plan or 'auto'} "
                f"({'; '.join(lacking[:8])}): name more nodes, cut it by layers or heads, or undeploy a model"
            )
