"""Loss and metrics on the rows each node holds out: sums come back, never a row."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence

from aggregator.engine.returned import ReturnedTensor
from aggregator.engine.spool import SpooledTensor
from aggregator.training.federated.collect import PATIENT_SECONDS
from aggregator.training.federated.plan import LOSS_WEIGHT, SCALAR
from aggregator.training.federated.programs import At, ProgramParts, Programs
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.federated.work import Basis, Work
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor, NotFinite
from edge_attention.core.losses import sound_count
from edge_attention.core.messages.training import Evaluation
from edge_attention.core.tensors import Array

log = logging.getLogger(__name__)

Sums = dict[str, float]
LEAST_SECONDS = 1.0
"""What the other half of the nodes has at least, where the slow are not waited for."""


class Evaluator:
    """Evaluates versions of one run. `say(sentence, about)` is told whom an evaluation waits for.

    It waits for all it asks: `deadline` seconds, `patience` without one. `hurried`: nodes that take more
    than three times as long as half of them took are not waited for.
    """

    def __init__(
        self,
        work: Work,
        programs: Programs,
        samples: Mapping[str, NodeSamples],
        say: Callable[[str, str], None],
        *,
        patience: float,
        deadline: float | None,
        hurried: bool,
    ) -> None:
        self._work = work
        self._programs = programs
        self._samples = samples
        self._say = say
        self._seconds = patience if deadline is None else min(deadline, patience)
        self._hurried = hurried

    async def evaluate(self, basis: Basis, without: Container[str]) -> Evaluation:
        """Over all nodes but those in `without`, as far as they answer in time."""
        names = self._programs.plan.sums
        nodes = [s for name, s in self._samples.items() if name not in without and s.training < s.rows]
        asked = [asyncio.create_task(self._ask(s, basis), name=s.node) for s in nodes]
        try:
            await self._wait(asked, f"the evaluation of version {basis.version}")
            late = [task for task in asked if not task.done()]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            self._say("", "")
        for task in late:
            log.info("an evaluation goes on without a node that was late: %s", task.get_name())
        totals, samples = dict.fromkeys(names, 0.0), 0
        for task in asked:  # in the nodes' order, so that sums have the same bits every time
            found = None if task in late else task.result()
            if found is not None:
                samples += int(found["samples"])
                for name in names:
                    totals[name] += found[name]
        total, counted = totals.pop("loss"), totals.pop(LOSS_WEIGHT, float(samples))
        # Of labels of which none counts the loss is 0, as a batch's is.
        loss = total / counted if counted else total
        return Evaluation(samples, loss if samples else math.nan, totals)

    async def _wait(self, asked: Sequence[asyncio.Task[Sums | None]], what: str) -> None:
        began = time.monotonic()
        seconds = self._seconds
        while pending := [task for task in asked if not task.done()]:
            took = time.monotonic() - began
            answered = sum(task.done() and task.result() is not None for task in asked)
            if self._hurried and seconds == self._seconds and 2 * answered >= len(asked):
                seconds = min(self._seconds, max(3 * took, took + LEAST_SECONDS))
            if took >= seconds:
                return
            if took > PATIENT_SECONDS:
                waited = ", ".join(task.get_name() for task in pending)
                self._say(f"{what} waits for {waited}, goes on in {seconds - took:.0f} s at most", waited)
            until = min(1.0, seconds - took)
            await asyncio.wait(pending, timeout=until, return_when=asyncio.FIRST_COMPLETED)

    async def _ask(self, samples: NodeSamples, basis: Basis) -> Sums | None:
        rows = await asyncio.to_thread(samples.held_out)

        def program(at: At, forgotten: bool) -> ProgramParts:
            return self._programs.evaluate(rows, at)

        names = self._programs.plan.sums
        wanted = {f"next/{name}": SCALAR for name in names}
        try:
            answer = await self._work.ask(samples.node, basis, program, wanted, lambda there: None)
            found = {"samples": float(len(rows))}
            for name in names:
                value = float(_array(answer.tensors[f"next/{name}"]))
                if not math.isfinite(value):
                    raise NotFinite(f"node {samples.node!r} returned no sum of {name} that is a number")
                found[name] = value
            most = len(rows) * self._programs.plan.most
            if not sound_count(found.get(LOSS_WEIGHT, 0.0), most):
                said = f"node {samples.node!r} says that its {len(rows):,} rows count {found[LOSS_WEIGHT]:g}"
                raise InvalidTensor(f"{said}; they can count 0 to {most:g}")
            return found
        except EdgeAttentionError as error:
            log.warning("node %s was not evaluated: %s", samples.node, error.message)
            return None


def _array(tensor: ReturnedTensor) -> Array:
    if not isinstance(tensor, SpooledTensor):
        return tensor
    array = tensor.array()
    tensor.close()
    return array
