"""Which deployments there are, and which of a name takes requests: how one comes to serve, and is gone.

What serves is written down before it does. What leaves is forgotten on the disk first: a restart in the
middle brings back what served last, and nothing by half.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aggregator.engine.recipe import Engine
from aggregator.inference.deployed import Deployed
from aggregator.inference.placement import Holders
from aggregator.inference.runner import ModelRunner
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.store.deployments import DeploymentFolder, DeploymentFolders
from edge_attention.core.errors import (
    Cancelled,
    EdgeAttentionError,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from edge_attention.core.messages.inference import DeployedModel, DeploymentState

__all__ = ["DeploymentRegistry"]

log = logging.getLogger(__name__)


class DeploymentRegistry:
    """Those that are made or end included.

    Args:
        forgotten: told of each name of which nothing is deployed any more.
        served: called of each that is about to serve, when it can.

    Attributes:
        all: by id.
        serving: by name, the one that takes requests.
        leaving: told of a deployment that goes, before nodes forget it.
    """

    def __init__(
        self,
        engine: Engine,
        runner: ModelRunner,
        wholes: WholeRunner,
        forgotten: Callable[[str], None],
        served: Callable[[Deployed], None],
    ) -> None:
        self.all: dict[str, Deployed] = {}
        self.serving: dict[str, Deployed] = {}
        self.folders = DeploymentFolders(engine.state)
        self.leaving: list[Callable[[Deployed], Awaitable[None]]] = []
        self._membership = engine.membership
        self._runner = runner
        self._wholes = wholes
        self._forgotten = forgotten
        self._served = served
        self._tasks: set[asyncio.Task[None]] = set()

    def require(self, name: str) -> Deployed:
        """The version of that name that takes requests.

        Raises:
            NotFound: there is none.
        """
        found = self.serving.get(name)
        if found is None:
            if (coming := self.coming(name)) is not None:
                raise NotFound(
                    f"model {name!r} is not deployed yet: its version {coming.version} is "
                    f"{coming.life.state.value}; see how far it is with: edge-attention models {name}"
                )
            known = ", ".join(sorted(self.serving)) or "none"
            raise NotFound(f"no model {name[:80]!r} is deployed; deployed here: {known}")
        return found

    def coming(self, name: str) -> Deployed | None:
        """The version of that name which is under way to nodes, and serves later."""
        early = (DeploymentState.PLANNING, DeploymentState.DELIVERING)
        found = [one for one in self.all.values() if one.name == name and one.life.state in early]
        return max(found, key=lambda one: one.version, default=None)

    def described(self, deployed: Deployed) -> DeployedModel:
        """As clients see it."""
        live = frozenset(member.name for member in self._membership.members() if member.live)
        return deployed.described(self.holds(deployed), live)

    def holds(self, deployed: Deployed) -> Holders:
        """Who is ready to do which part, for the shape used last."""
        if deployed.planned is not None and deployed.planned.whole:
            return self._wholes.holds(deployed.id)
        by_shape = self._runner.holds(deployed.id)
        return next((by_shape[key] for key in deployed.shapes.last_first if key in by_shape), {})

    def seek(self, deployed: Deployed) -> None:
        """Have parts that nobody does who is here given to others."""
        self._runner.seek(deployed.id)
        self._wholes.seek(deployed.id)

    def lacking(self, deployed: Deployed) -> tuple[str, ...]:
        """Which parts nobody can do now, a sentence each."""
        assert deployed.planned is not None
        holds = self.holds(deployed)
        found = []
        for part in deployed.planned.parts:
            if any(map(self._membership.live, holds.get(part.part, ()))):
                continue
            holders = deployed.planned.holders.get(part.part, ())
            found.append(f"part {part.part} waits for node {' or '.join(holders)}")
        return tuple(found)

    def away(self, deployed: Deployed) -> tuple[str, ...]:
        """Which parts none of the nodes is here for that the plan has for them, a sentence each."""
        assert deployed.planned is not None
        return tuple(
            f"part {part} waits for node {' or '.join(holders)}, which is away; when its lease has run out "
            "another node is given the part, if one may hold it"
            for part, holders in sorted(deployed.planned.holders.items())
            if not any(map(self._membership.live, holders))
        )

    def require_held(self, deployed: Deployed) -> None:
        """Raises FailedPrecondition unless somebody can do each part now."""
        if lacking := self.lacking(deployed):
            raise FailedPrecondition(f"model {deployed.name!r} cannot serve: {'; '.join(lacking)}")

    def taken(self) -> Counter[str]:
        """Bytes of weights by node, of all deployments."""
        taken = Counter[str]()
        for deployed in self.all.values():
            if deployed.planned is not None:
                taken.update(deployed.planned.node_bytes)
        return taken

    async def go_live(self, deployed: Deployed, instead: Deployed | None = None) -> None:
        """It serves from now on, in place of the version before.

        `instead`: of which it is another plan.

        Raises:
            FailedPrecondition: that one does not serve any more; `undo` what was to take its place.
        """
        if instead is not None:
            self._require_serving(instead)
        await asyncio.to_thread(self.folders.keep, deployed.folder, deployed.kept())
        before = self.serving.get(deployed.name)
        if instead is not None:
            self._require_serving(instead)
            deployed.succeed(instead)
        deployed.life.holders((), time.monotonic())
        self._served(deployed)
        self.serving[deployed.name] = deployed
        log.info("model %s serves as version %s: %s", deployed.name, deployed.version, deployed.text)
        deployed.change()
        if before is not None:
            other = f"version {deployed.version}" if instead is None else "another plan"
            self.leave(before, f"{other} serves")

    def _require_serving(self, deployed: Deployed) -> None:
        if self.serving.get(deployed.name) is not deployed:
            raise FailedPrecondition(f"model {deployed.name!r} was undeployed or replaced meanwhile")

    async def undo(self, id: str, folder: DeploymentFolder, deployed: Deployed | None, why: str) -> None:
        """Nothing is left of what did not come to serve."""
        if deployed is not None and deployed.life.leave(time.monotonic(), why):
            deployed.life.gone(time.monotonic())
        self.all.pop(id, None)
        if deployed is not None:
            await self._released(deployed)
            deployed.change()
        blobs = deployed.digests - self.used() if deployed is not None else set()
        await asyncio.to_thread(self.folders.remove, folder, blobs)

    def used(self) -> set[str]:
        """Digests of the files of all deployments."""
        return {digest for one in self.all.values() for digest in one.digests}

    def leave(self, deployed: Deployed, why: str) -> None:
        """It takes no more requests, and goes when the last has ended."""
        idle = deployed.life.leave(time.monotonic(), why)
        deployed.change()
        self.go(self._unkept(deployed, idle))

    async def _unkept(self, deployed: Deployed, idle: bool) -> None:
        # Should the aggregator end now, it does not come back with it.
        await asyncio.to_thread(self.folders.forget, deployed.folder)
        if idle:
            await self.remove(deployed)

    async def remove(self, deployed: Deployed) -> None:
        """Nothing is left of what has left."""
        for task in list(deployed.coming.values()):
            task.cancel()
        await self._released(deployed)
        del self.all[deployed.id]
        await asyncio.to_thread(self.folders.remove, deployed.folder, deployed.digests - self.used())
        for lease in deployed.leases:
            lease.give_back()
        deployed.life.gone(time.monotonic())
        if not any(one.name == deployed.name for one in self.all.values()):
            self._forgotten(deployed.name)
        log.info("model %s, version %s, is gone", deployed.name, deployed.version)
        deployed.change()

    async def _released(self, deployed: Deployed) -> None:
        if deployed.batcher is not None:
            await deployed.batcher.close(Cancelled("the model was released"))
        for told in self.leaving:
            await told(deployed)
        try:
            await self._runner.release(deployed.id, nodes=self._wholes.nodes(deployed.id))
            await self._wholes.release(deployed.id)
        except EdgeAttentionError as error:
            # What a node could not be told it is told when it comes back (`unneeded`).
            log.warning("model %s: nodes keep some of it for now: %s", deployed.name, error)

    async def close(self) -> None:
        """End what goes on. Deployments stay: the next life has them."""
        tasks = [*self._tasks, *(task for one in self.all.values() for task in one.coming.values())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for one in self.all.values():
            if one.batcher is not None:
                await one.batcher.close(Unavailable("the aggregator is ending"))

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside, until `close`."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it has begun


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a deployment's work has failed")
