"""Gives each deployment its queue: how many batches are under way, and which rows a batch may have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import Any

from aggregator.inference.batching.batch_queue import BatchQueue
from aggregator.inference.batching.batcher import Batcher
from aggregator.inference.batching.rows import padded_rows, shapes_of
from aggregator.inference.deployed import Deployed, PlannedParts
from aggregator.inference.feeds import shape_key
from aggregator.inference.lanes import LANES
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.shape_readiness import DELIVERY_SECONDS, ShapeReadiness
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.schedule.saved_plan import loads_plan
from edge_attention.core.tensors import Array

__all__ = ["ALONE", "DeploymentQueues", "RunDeployed", "slots_of"]

ALONE = 8
"""Requests of a model that run at a time where each is by itself; of one that is not cut, on each node that
has it."""
A_STAGE = 4
"""The same of one that is cut, for each of its stages if that makes more: as many as a node works at at a
time. With 8 in all, three stages were at work for 0.92 of the time, with 12 for 0.98."""
TOGETHER = 2
"""Batches for each node, or stage, that several requests share: none is idle, and more would be smaller."""

RunDeployed = Callable[[Deployed, Mapping[str, Array], float, bool, str], Awaitable[ModelAnswer]]


class DeploymentQueues:
    """Of all deployments. `go`: has work done that nobody waits for."""

    def __init__(
        self,
        readiness: ShapeReadiness,
        metrics: InferenceMetrics,
        go: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._start = go

    def give(self, deployed: Deployed, run: RunDeployed) -> None:
        """Requests of it are in a queue from now on, until `run` answers them."""
        request, planned = deployed.request, deployed.planned
        assert planned is not None

        async def answer(
            feeds: Mapping[str, Array], seconds: float, partial: bool, caller: str
        ) -> ModelAnswer:
            return await run(deployed, feeds, seconds, partial, caller)

        def size(kind: Hashable, rows: int) -> int | None:
            # Of a cut model batches have a power of two of rows, so that few shapes are made.
            padded = padded_rows(rows, most)
            return padded if shape_key(shapes_of(kind, padded)) in deployed.shapes else None

        def want(rows: int, feeds: Mapping[str, Array]) -> None:
            self._start(self._prepare(deployed, padded_rows(rows, most), feeds))

        most = deployed.most_rows
        together = most > 1 and (request.max_batch > 0 or request.max_queue_delay > 0)
        queue = BatchQueue(
            request.name,
            slots_of(planned, together),
            most,
            request.max_queue_delay if together else 0.0,
            None if planned.whole else size,
            0 if together or most == 1 else slots_of(planned, True),
        )
        deployed.batcher = Batcher(queue, answer, want, self._metrics.batched)

    async def _prepare(self, deployed: Deployed, rows: int, feeds: Mapping[str, Array]) -> None:
        """Have it ready for batches of so many rows, as there is a use for them; requests run by themselves
        meanwhile."""
        shapes = {name: (rows, *array.shape[1:]) for name, array in feeds.items()}
        key = shape_key(shapes)
        if key in deployed.shapes or deployed.coming:
            return
        with contextlib.suppress(EdgeAttentionError):
            await self._readiness.ready(deployed, key, shapes, time.monotonic() + DELIVERY_SECONDS)
        if deployed.batcher is not None:
            deployed.batcher.look()


def slots_of(planned: PlannedParts, together: bool) -> int:
    """Batches that are under way at a time, at most LANES of a model that is cut; `together`: several
    requests share one."""
    if planned.whole:
        return (TOGETHER if together else ALONE) * max(len(planned.holders[0]), 1)
    stages = len(loads_plan(planned.plan).stages)
    return min(TOGETHER * stages if together else max(A_STAGE * stages, ALONE), LANES)
