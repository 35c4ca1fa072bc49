"""Loss and metrics on the rows each node holds out: sums come back, never a row."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Container, Mapping

import numpy as np

from aggregator.spool import SpooledTensor
from aggregator.training.federated.programs import At, Program, Programs
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.federated.work import Basis, Work
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor
from edge_attention.core.jobs import Evaluation

log = logging.getLogger(__name__)


class Evaluator:
    """Evaluates versions of one run."""

    def __init__(self, work: Work, programs: Programs, samples: Mapping[str, NodeSamples]) -> None:
        self._work, self._programs, self._samples = work, programs, samples

    async def evaluate(self, basis: Basis, without: Container[str], deadline: float | None) -> Evaluation:
        """Over all nodes but those in `without`. With a deadline, over those that answer within it."""
        names = ("loss", *self._programs.plan.metrics)
        nodes = [s for name, s in self._samples.items() if name not in without and len(s.held_out())]
        asked = [asyncio.create_task(self._ask(s, basis), name=s.node) for s in nodes]
        try:
            done, late = await asyncio.wait(asked, timeout=deadline) if asked else (set(), set())
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        for task in late:
            log.info("an evaluation goes on without a node that was late: %s", task.get_name())
        totals, samples = dict.fromkeys(names, 0.0), 0
        for task in asked:  # in the nodes' order, so that sums have the same bits every time
            found = task.result() if task in done and not task.cancelled() else None
            if found is not None:
                samples += int(found["samples"])
                for name in names:
                    totals[name] += found[name]
        loss = totals.pop("loss") / samples if samples else math.nan
        return Evaluation(samples, loss, totals)

    async def _ask(self, samples: NodeSamples, basis: Basis) -> dict[str, float] | None:
        rows = samples.held_out()

        def program(at: At, fresh: bool) -> Program:
            return self._programs.evaluate(rows, at)

        try:
            answer = await self._work.ask(samples.node, basis, program, lambda there: None)
            found = {"samples": float(len(rows))}
            for name in ("loss", *self._programs.plan.metrics):
                tensor = answer.tensors.get(f"next/{name}")
                if tensor is None or isinstance(tensor, SpooledTensor) or tensor.shape != ():
                    raise InvalidTensor(f"node {samples.node!r} returned no sum of {name}")
                found[name] = float(np.asarray(tensor))
            return found
        except EdgeAttentionError as error:
            log.warning("node %s was not evaluated: %s", samples.node, error.message)
            return None
