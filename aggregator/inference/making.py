"""Makes what a deployment is of: its folder with the model's files, its plan, and the model cut by it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aggregator.engine import scratch
from aggregator.engine.recipe import Engine
from aggregator.inference import planner
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.deployed import Deployed, PlannedParts
from aggregator.inference.placement import GAIN, Holders, plan_word
from aggregator.inference.plan_nodes import PlanNodes, Telling
from aggregator.store.deployments import DeploymentFolder, DeploymentFolders
from aggregator.store.sealed import seal
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.inference import DeployProgress, DeployRequest
from edge_attention.core.schedule.saved_plan import loads_plan

MEASURED = ("auto", "layers")
"""Words of plans that are made by what boxes take: a stage that takes longer than others has them wait."""

__all__ = ["DeploymentMaking", "made_folder", "new_id"]


def new_id(name: str, version: int) -> str:
    """What names a deployment on nodes and on the disk: no other has it, nor had."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32] or "model"
    return f"{stem}-{version}-{secrets.token_hex(3)}"


class DeploymentMaking:
    """Of all deployments."""

    def __init__(self, engine: Engine, nodes: PlanNodes) -> None:
        self._directory = engine.state.directory
        self._nodes = nodes

    async def plan(self, deployed: Deployed, request: DeployRequest, say: Telling) -> None:
        say(DeployProgress("planning", text=f"the model has {deployed.size:,} bytes"))
        nodes = self._nodes.nodes(request.nodes)
        if not request.plan_file and plan_word(request.plan)[0] in MEASURED:
            await self._nodes.measure(nodes, say)
            nodes = self._nodes.nodes(request.nodes)
        async with scratch.folder(self._directory) as work:
            file = ""
            if request.plan_file:
                file = str(work / "plan")
                await asyncio.to_thread((work / "plan").write_bytes, request.plan_file)
            into = work / "cut"
            asked = CutRequest(
                str(deployed.folder.model), str(into), request.plan or "auto", "", file, nodes,
                request.replicas, {}, request.dimensions, {}, request.halves, rows=request.max_batch > 1,
                hub=self._nodes.hub(),
                rows_whole=request.max_batch != 1,
            )  # fmt: skip
            planned = await planner.make(asked, work)
            await self._planned(deployed, planned, into)
        say(DeployProgress("planning", text=planned.text))

    async def plan_anew(
        self, deployed: Deployed, before: Deployed, holders: Holders, names: Sequence[str]
    ) -> float:
        """Plan for `deployed` what `before` is, over the nodes that are here of `names`.

        `holders`: who holds which part of `before` now and is here.

        Returns how many times as quick as before it is predicted to be; below GAIN nothing is made of it.

        Raises:
            EdgeAttentionError: there is no such plan.
        """
        assert before.planned is not None
        nodes, word = self._nodes.nodes(names), before.request.plan or "auto"
        await self._nodes.measure(nodes, lambda progress: None)  # also of a plan by a word: it is compared
        nodes = self._nodes.nodes(names)
        async with scratch.folder(self._directory) as work:
            into = work / "cut"
            asked = CutRequest(
                str(deployed.folder.model), str(into), word, nodes=nodes, replicas=before.request.replicas,
                holders=holders, shapes=before.planned.shapes, given=before.planned.given,
                halves=before.request.halves, before=before.planned.plan, rows=before.request.max_batch > 1,
                hub=self._nodes.hub(),
                rows_whole=before.request.max_batch != 1,
            )  # fmt: skip
            planned = await planner.make(asked, work)
            if planned.gain >= GAIN:
                await self._planned(deployed, planned, into)
        return planned.gain

    async def _planned(self, deployed: Deployed, planned: PlannedParts, cut: Path) -> None:
        await asyncio.to_thread(_place, cut, deployed.folder, planned.key)
        deployed.planned = planned
        if loads_plan(planned.plan).halves:  # said by a plan's file
            deployed.request = replace(deployed.request, halves=True)
        deployed.texts[planned.key] = planned.key_text
        self._nodes.require_fits(deployed, planned)
        deployed.life.planned(time.monotonic())
        deployed.change()


def _place(into: Path, folder: DeploymentFolder, key: str) -> None:
    """Put what was cut where it stays. Blocks."""
    if (into / "decoder").is_dir():
        seal(into / "decoder")
        (into / "decoder").rename(folder.decoder)
    seal(into)
    into.rename(folder.shape(key))


async def made_folder(
    folders: DeploymentFolders, id: str, request: DeployRequest
) -> tuple[DeploymentFolder, int]:
    """The folder; gone again where whoever asked for it is."""
    making = asyncio.ensure_future(asyncio.to_thread(folders.make, id, request.model, request.files))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        with contextlib.suppress(EdgeAttentionError):
            folder, _ = await making
            await asyncio.to_thread(folders.remove, folder)
        raise
