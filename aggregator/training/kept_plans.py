"""Plans that were made, for a job that comes again: `train --plan` and then `train`, or the same once more.

A plan follows from the job, its files, what the nodes' columns look like and this release. So it is known by
a digest of all of these, as long as this process runs: what another release has made is never found.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.engine import scratch
from aggregator.inference.cut_request import NodeTold
from aggregator.store.disk import scarce
from aggregator.training.planner import MakePlan, RowShapes, request_of
from edge_attention.core.messages.training import FederatedJob, FusionJob, SplitJob
from edge_attention.wire.services import START_RUN

__all__ = ["KeptPlans"]

PLANS = 16
PLANS_BYTES = 256 * 1024 * 1024
"""Of the files of all that are kept, on the state's disk. Those unused for longest go first."""


@dataclass(frozen=True)
class _KeptPlan:
    plan: str
    folder: Path
    size: int


class KeptPlans:
    """Makes plans by `make`, each once; is called as that is. `state`: the state folder."""

    def __init__(self, make: MakePlan, state: Path) -> None:
        self._make = make
        self._state = state
        self._kept: dict[str, _KeptPlan] = {}
        self._lock = asyncio.Lock()
        """Held while files are linked: none of them goes meanwhile."""

    async def __call__(
        self,
        job: FusionJob | FederatedJob | SplitJob,
        files: Mapping[str, Path],
        folder: Path,
        rows: RowShapes | None = None,
        nodes: Sequence[NodeTold] = (),
    ) -> str:
        if isinstance(job, SplitJob):  # by what nodes have free just now
            return await self._make(job, files, folder, rows, nodes)
        key = _key(job, files, rows)
        async with self._lock:
            if (kept := self._kept.pop(key, None)) is not None:
                self._kept[key] = kept
                await asyncio.to_thread(_link, kept.folder, folder)
                return kept.plan
        plan = await self._make(job, files, folder, rows, nodes)
        async with self._lock:
            if key not in self._kept:
                await self._keep(key, plan, folder)
        return plan

    async def let_go(self) -> None:
        """Keep none of those that are kept: their room is wanted."""
        async with self._lock:
            while self._kept:
                await scratch.remove(self._kept.pop(next(iter(self._kept))).folder)

    async def _keep(self, key: str, plan: str, folder: Path) -> None:
        own: Path | None = None
        if await asyncio.to_thread(scarce, self._state):
            return
        try:
            own = await scratch.make(self._state)
            size = await asyncio.to_thread(_link, folder, own)
        except OSError:  # no room for it: it will be made again
            if own is not None:
                await scratch.remove(own)
            return
        self._kept[key] = _KeptPlan(plan, own, size)
        while len(self._kept) > PLANS or sum(one.size for one in self._kept.values()) > PLANS_BYTES:
            oldest = next(iter(self._kept))
            await scratch.remove(self._kept.pop(oldest).folder)


def _key(job: FusionJob | FederatedJob, files: Mapping[str, Path], rows: RowShapes | None) -> str:
    encoded = START_RUN.request.encode(request_of(job))
    looks = json.dumps([sorted(files), rows or {}], sort_keys=True)
    return hashlib.sha256(hashlib.sha256(encoded).digest() + looks.encode()).hexdigest()


def _link(source: Path, target: Path) -> int:
    """Have what a plan needs of `source` in `target`, too; its bytes. Blocks."""
    size = 0
    for file in (*source.glob("*.onnx"), source / "initial.safetensors"):
        os.link(file, target / file.name)
        size += file.stat().st_size
    return size
