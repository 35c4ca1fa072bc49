"""Plans deployments anew in the background, once their fleet has changed for good, and swaps the plans.

When is `Replanning`'s to say. Another plan of a version is a deployment of its own, with its own folder and
its own names on nodes: it is planned, delivered, and takes the place of the one before between two requests,
as the next version would. Until then, and where it comes to nothing, that one serves on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from aggregator.bounds.bounds import DEPLOYING
from aggregator.engine.endings import to_the_end
from aggregator.engine.recipe import Engine
from aggregator.inference.deployed import Deployed
from aggregator.inference.life import Life
from aggregator.inference.making import DeploymentMaking, made_folder, new_id
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.placement import GAIN, Holders
from aggregator.inference.plan_nodes import PlanNodes
from aggregator.inference.registry import DeploymentRegistry
from aggregator.inference.replanning import PlanAnew, ReplanEnd, Replanning, ReplanReason, SeenFleet
from aggregator.inference.shape_readiness import DELIVERY_SECONDS, ShapeReadiness
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.fleet import NodeState

__all__ = ["Replanner"]

log = logging.getLogger(__name__)

NOTES = 4
"""Of what was planned anew, that a deployment keeps."""


class Replanner:
    """Of all deployments, one at a time."""

    def __init__(
        self,
        engine: Engine,
        registry: DeploymentRegistry,
        nodes: PlanNodes,
        maker: DeploymentMaking,
        readiness: ShapeReadiness,
        metrics: InferenceMetrics,
    ) -> None:
        self._membership = engine.membership
        self._budgets = engine.budgets
        self._seconds = engine.plan_anew
        self._registry = registry
        self._nodes = nodes
        self._maker = maker
        self._readiness = readiness
        self._metrics = metrics
        self._turn = asyncio.Lock()

    def look(self, deployed: Deployed) -> None:
        """Look at who is there for what serves. Call it every second or so."""
        planned = deployed.planned
        if planned is None or not self._seconds:
            return
        if deployed.replanning is None:
            known = planned.nodes or tuple(node for held in planned.holders.values() for node in held)
            deployed.replanning = Replanning(known, self._seconds)
        asked = deployed.replanning.look(self._seen(deployed), time.monotonic())
        if asked is not None:
            self._registry.go(self._anew(deployed, deployed.replanning, asked))

    def _seen(self, deployed: Deployed) -> SeenFleet:
        assert deployed.planned is not None
        named = frozenset(deployed.request.nodes)
        ready = {one.name for one in self._membership.members() if one.state is NodeState.READY}
        orphans: set[str] = set()
        # A plan that stays what it is: its parts go to others, and that is all.
        holds = self._registry.holds(deployed) if deployed.stays else {}
        for part, held in deployed.planned.holders.items():
            if any(map(self._membership.live, holds.get(part, ()))):
                continue
            if all(self._membership.state(node) is NodeState.LOST for node in held):
                orphans.update(held)
        if deployed.stays:
            ready &= set(deployed.planned.nodes)
        return SeenFleet(frozenset(ready & named if named else ready), frozenset(orphans))

    async def _anew(self, deployed: Deployed, replanning: Replanning, asked: PlanAnew) -> None:
        end, said = ReplanEnd.FAILED, ""
        try:
            async with self._turn:
                gain = 0.0 if deployed.stays else await self._swap(deployed, asked)
            end = ReplanEnd.SWAPPED if gain >= GAIN else ReplanEnd.KEPT
            if end is ReplanEnd.KEPT:
                said = f"another plan would be {gain:.2f} times as quick" if gain else deployed.stays
        except EdgeAttentionError as error:
            said = error.message
        finally:
            if asked.reason is ReplanReason.GONE and end is not ReplanEnd.SWAPPED:
                self._registry.seek(deployed)
            replanning.ended(end, time.monotonic())
            self._metrics.planned_anew(asked.reason.value, end.value)
            log.info(
                "model %s, planned anew as %s: %s%s", deployed.name, asked, end.value, said and f", {said}"
            )
            if said:
                deployed.note(_note(asked, f"it goes on as it is: {said}"), NOTES)

    async def _swap(self, deployed: Deployed, asked: PlanAnew) -> float:
        """Have another plan serve; how many times as quick as before it is predicted to be.

        Below GAIN none does: then whoever does a part now is who is to hold it from now on.
        """
        id = new_id(deployed.name, deployed.version)
        folder, size = await made_folder(self._registry.folders, id, deployed.request)
        other = Deployed(
            id, deployed.version, deployed.request, deployed.owner, deployed.created, folder, size,
            Life(deployed.name), (), anew=deployed.anew + 1,
        )  # fmt: skip
        self._registry.all[id] = other
        held, swapped, why = self._held(deployed), False, f"it goes on as it is, though {asked}"
        try:
            with self._budgets.take(DEPLOYING, None):
                names = sorted(asked.here)
                gain = await self._maker.plan_anew(other, deployed, held, names)
            if gain >= GAIN:
                assert other.planned is not None
                other.planned = replace(other.planned, notes=deployed.notes_with(_note(asked), NOTES))
                key = other.planned.key
                await self._readiness.prepare(other, key, lambda node, done, total: None, DELIVERY_SECONDS)
                self._registry.require_held(other)
                await to_the_end(self._registry.go_live(other, instead=deployed), counts=True)
                swapped = True
            elif asked.reason is ReplanReason.GONE:
                await self._adopt(deployed, held)
            return gain
        except BaseException as error:
            why = str(error) or type(error).__name__
            raise
        finally:
            if not swapped:
                await to_the_end(self._registry.undo(id, folder, other, why))

    def _held(self, deployed: Deployed) -> Holders:
        """Who is here and does each part, or is to."""
        assert deployed.planned is not None
        live, holds = self._membership.live, self._registry.holds(deployed)
        return {
            part: tuple(node for node in dict.fromkeys((*holds.get(part, ()), *nodes)) if live(node))
            for part, nodes in deployed.planned.holders.items()
        }

    async def _adopt(self, deployed: Deployed, held: Holders) -> None:
        assert deployed.planned is not None
        deployed.planned = deployed.planned.held_by(held)
        await asyncio.to_thread(self._registry.folders.keep, deployed.folder, deployed.kept())
        deployed.change()


def _note(asked: PlanAnew, more: str = "") -> str:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"planned anew {when}, as {asked}{more and f': {more}'}"
