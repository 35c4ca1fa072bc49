"""Gets deployments ready for shapes of inputs: cut in a process apart, and delivered to nodes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aggregator.bounds.bounds import DEPLOYING, SHAPE_SECONDS, SHAPES_KEPT
from aggregator.engine import scratch
from aggregator.engine.recipe import Engine
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.cutters import Cutters
from aggregator.inference.deployed import Deployed, PlannedParts, Shapes
from aggregator.inference.feeds import shape_text
from aggregator.inference.kept_digests import read_digests, write_digests
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import SegmentRun
from aggregator.inference.plan_nodes import PlanNodes
from aggregator.inference.runner import ModelRunner
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.store.deployments import DeploymentFolders
from aggregator.store.folder import unwritable
from aggregator.store.sealed import require_sealed, seal
from edge_attention.core.errors import DataLoss, DeadlineExceeded, FailedPrecondition, ResourceExhausted
from edge_attention.core.schedule import saved
from edge_attention.core.schedule.whole import WHOLE_FILE, WholeModel
from edge_attention.graphs.axes.folder import CutFolder

log = logging.getLogger(__name__)

__all__ = ["DELIVERY_SECONDS", "ShapeReadiness"]

DELIVERY_SECONDS = 3600.0
"""What bringing a model's weights to nodes may take."""
BEGIN_QUIET, BEGIN_LATEST = 2.0, 60.0
"""Seconds without a request after which what cuts other shapes is started, and those after which it is in any
case: it takes half a second of a processor, which may be a node's as well."""


class ShapeReadiness:
    """Of all deployments."""

    def __init__(
        self,
        engine: Engine,
        folders: DeploymentFolders,
        runner: ModelRunner,
        wholes: WholeRunner,
        nodes: PlanNodes,
        metrics: InferenceMetrics,
    ) -> None:
        self._directory = engine.state.directory
        self._budgets = engine.budgets
        self._folders = folders
        self._runner = runner
        self._wholes = wholes
        self._nodes = nodes
        self._metrics = metrics
        self._cutters = Cutters()

    async def prepare(
        self,
        deployed: Deployed,
        key: str,
        told: Callable[[str, int, int], None],
        seconds: float,
        *,
        seek: bool = False,
        caller: str = "",
    ) -> None:
        """Have the nodes ready for requests of this shape, which is cut. `seek`: a part whose nodes have gone
        is given to another one meanwhile. `caller`: who asks for it; "": nobody in particular."""
        planned = deployed.planned
        assert planned is not None
        folder = deployed.folder.shape(key)
        if key not in deployed.shapes and not deployed.digested:
            deployed.known |= await asyncio.to_thread(read_digests, deployed.folder)
            if not deployed.known and await asyncio.to_thread(self._folders.served, deployed.folder):
                await self._require_model(deployed)  # its weights are hashed: they are to be those that came
            deployed.digested = True
        hashed = len(deployed.known)
        try:
            await self._prepared(deployed, planned, key, folder, told, seconds, seek)
        finally:
            if len(deployed.known) > hashed and deployed.folder.path.is_dir():
                await asyncio.to_thread(write_digests, deployed.folder, dict(deployed.known))
        deployed.shapes.add(key, caller)

    async def _prepared(
        self,
        deployed: Deployed,
        planned: PlannedParts,
        key: str,
        folder: Path,
        told: Callable[[str, int, int], None],
        seconds: float,
        seek: bool,
    ) -> None:
        if planned.whole:
            whole = WholeModel.loads(await asyncio.to_thread((folder / WHOLE_FILE).read_text))
            await self._wholes.prepare(
                deployed.id, whole, CutFolder(deployed.folder.model, folder), planned.holders, planned.inputs,
                planned.outputs, planned.shapes, told, seconds=seconds, known=deployed.known, seek=seek,
            )  # fmt: skip
            return
        schedule = await asyncio.to_thread(lambda: saved.loads((folder / "schedule.json").read_text()))
        files = await asyncio.to_thread(CutFolder, deployed.folder.model, folder)
        warmed: list[SegmentRun] = []
        await self._runner.prepare(
            deployed.id, key, schedule, files, planned.holders, told,
            halves=deployed.request.halves, seconds=seconds, warmed=warmed.append,
            known=deployed.known, seek=seek,
        )  # fmt: skip
        await self._nodes.measures.answered(folder, warmed, self._nodes.threads(), links=False)

    async def ready(
        self, deployed: Deployed, key: str, shapes: Shapes, until: float, caller: str | None = None
    ) -> None:
        """Wait until it is prepared for a shape, which all who want it do together."""
        task = deployed.coming.get(key)
        if task is None:
            free = DEPLOYING.total - len(deployed.coming) - 1
            own = sum(task.get_name() == _named(caller) for task in deployed.coming.values()) if caller else 0
            if free < 0 or (own and own + 1 > free):
                mine = f", {own} of them for you, who may have as many as are left free," if own else ""
                raise ResourceExhausted(
                    f"model {deployed.name!r} is being prepared for {len(deployed.coming)} other shapes of "
                    f"inputs{mine}; send requests of few shapes, padded, or wait for these"
                )
            task = asyncio.create_task(self._come(deployed, key, shapes, caller), name=_named(caller))
            deployed.coming[key] = task
            task.add_done_callback(lambda _: deployed.coming.pop(key, None))
        done, _ = await asyncio.wait([task], timeout=max(until - time.monotonic(), 0.0))
        if not done:
            what = deployed.life.detail or "it is cut, and nodes are sent what they lack"
            raise DeadlineExceeded(
                f"model {deployed.name!r} is not ready for {shape_text(shapes)} yet ({what}); it goes on: "
                "ask again, or with a longer deadline"
            )
        if task.cancelled():
            raise FailedPrecondition(f"model {deployed.name!r} was undeployed meanwhile")
        task.result()

    async def _come(self, deployed: Deployed, key: str, shapes: Shapes, caller: str | None) -> None:
        planned = deployed.planned
        assert planned is not None
        target = deployed.folder.shape(key)
        made = target / (WHOLE_FILE if planned.whole else "schedule.json")
        if not await asyncio.to_thread(_usable, made, deployed.name):
            await self._require_model(deployed)
            begun = time.monotonic()
            with self._budgets.take(DEPLOYING, caller):
                await self._cut(deployed, planned, shapes, target)
            self._metrics.cut(time.monotonic() - begun)
        else:
            await asyncio.to_thread(self._folders.used_shape, deployed.folder, key)
        deployed.texts[key] = planned.key_text if planned.whole else shape_text(shapes)
        await self.prepare(deployed, key, _nobody, DELIVERY_SECONDS, caller=caller or "")
        for gone in deployed.shapes.surplus():
            deployed.texts.pop(gone, None)
            await self._runner.release(deployed.id, gone)
        in_use = (planned.key, *deployed.shapes.last_first, *deployed.coming)
        await asyncio.to_thread(
            self._folders.keep_shapes, deployed.folder, in_use, SHAPES_KEPT, SHAPE_SECONDS, time.time()
        )
        deployed.change()

    async def _require_model(self, deployed: Deployed) -> None:
        """Raises DataLoss: the disk has changed the model's files. They are read once in a life."""
        if not deployed.whole_file:
            request = deployed.request
            await asyncio.to_thread(
                self._folders.require_model, deployed.folder, request.name, request.model, request.files
            )
            deployed.whole_file = True

    async def require_decoder(self, deployed: Deployed) -> None:
        """Look, once in a life, whether sessions are of the files that came, and of what was cut of them.

        Raises:
            DataLoss: the disk has changed one; says which, and what to do.
            FailedPrecondition: one cannot be read now.
        """
        await self._require_model(deployed)
        if not deployed.whole_decoder:
            try:
                await asyncio.to_thread(require_sealed, deployed.folder.decoder)
            except DataLoss as error:
                raise DataLoss(
                    f"{error.message}; deploy the model {deployed.name!r} again, from its file, and look at "
                    "the disk"
                ) from None
            deployed.whole_decoder = True

    async def _cut(self, deployed: Deployed, planned: PlannedParts, shapes: Shapes, target: Path) -> None:
        async with scratch.folder(self._directory) as work:
            into = work / "cut"
            asked = CutRequest(
                str(deployed.folder.model), str(into), plan=planned.plan, holders=planned.holders,
                shapes=shapes, given=planned.given, halves=deployed.request.halves, whole=planned.whole,
            )  # fmt: skip
            await self._cutters.cut(deployed.id, asked, work)
            await asyncio.to_thread(_sealed, into, target)

    async def begin(self, deployed: Deployed) -> None:
        """It serves: have ready what cuts it for other shapes, if there may be such.

        Not before it has been asked nothing for a while, so that no request shares a processor with that.
        """
        assert deployed.planned is not None
        deployed.whole_file = deployed.whole_decoder = True  # as it was made, of blobs
        sizes = {size for one in deployed.planned.inputs for size in one.shape}
        if deployed.planned.whole or all(map(str.isdigit, sizes)):
            return
        life, until = deployed.life, time.monotonic() + BEGIN_LATEST
        while life.live and time.monotonic() < until:
            ended = life.requests + life.failed
            await asyncio.sleep(BEGIN_QUIET)
            if not life.in_flight and life.requests + life.failed == ended:
                break
        if life.live:
            await self._cutters.begin(deployed.id, str(deployed.folder.model))

    async def end(self, deployed: Deployed) -> None:
        """It is not deployed any more."""
        await self._cutters.forget(deployed.id)

    async def close(self) -> None:
        """Nothing is cut any more."""
        await self._cutters.close()


def _sealed(made: Path, target: Path) -> None:
    seal(made)
    made.rename(target)


def _usable(made: Path, model: str) -> bool:
    """Whether the folder of the file `made` is as it was written; else it is removed, to be made anew.

    Raises:
        FailedPrecondition: it cannot be read now, and stays.
        DiskFull, Internal: it cannot be removed.
    """
    try:
        require_sealed(made.parent)
        if made.is_file():
            return True
        if not made.parent.exists():
            return False
        raise DataLoss(f"{made} is gone")
    except DataLoss as error:
        log.error(
            "model %s: %s; it is cut anew from the model's file. Look at the disk", model, error.message
        )
        try:
            shutil.rmtree(made.parent)
        except OSError as failed:
            raise unwritable(Path(failed.filename or made.parent), failed) from failed
        return False


def _named(caller: str | None) -> str:
    """What a task is called that prepares for a shape which the caller asks for."""
    return f"shape for {caller or 'nobody'}"


def _nobody(node: str, done: int, total: int) -> None:
    pass
