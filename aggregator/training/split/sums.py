"""Sums of gradients that nodes have: each adds what its parts made of a piece to what they made of those
before, in the pieces' order, and sends the sum once all are added.

    job/<deployment>/lane<k>/p<part>/grad/<i>           of a piece, until it is added
    job/<deployment>/sums/<try>/<piece>/p<part>/<i>     after that piece

A sum has another name after each piece, so that a task that is late, or comes twice, adds nothing to what
came later. What a node has of them is gone with it: then the step begins again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips
from aggregator.inference.calls import job_scope, kept_scope
from aggregator.inference.runner import HeldRequest
from edge_attention.core.errors import EdgeAttentionError, NotFinite, Unavailable
from edge_attention.core.messages.program import Drop, Instruction, Return, Run, Stored
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.schedule import ModelSegment, Schedule
from edge_attention.core.tensors import Array

__all__ = ["NodeSums"]

ADD = "count"
"""The input of graphs that add (graphs/backward/summed.py): what the piece counts."""
FAILED = "a piece before it was not added, and the step begins again"


class NodeSums:
    """The sums of one try at one step.

    Args:
        sums: the schedule of what is sent of them.
        graphs: those that add, by their names in the schedule of a piece.
        private: parts whose nodes read samples: what they send has to be released by `releases`.
    """

    def __init__(
        self,
        deployment: str,
        sums: Schedule,
        graphs: Mapping[str, str],
        trips: Trips,
        private: frozenset[int],
        releases: tuple[str, ...],
    ) -> None:
        self._deployment = deployment
        self._sums = sums
        self._parts = {segment.part: segment for step in sums.steps for segment in step.segments}
        self._graphs = graphs
        self._trips = trips
        self._private = private
        self._releases = releases
        self._scope = f"{job_scope(deployment)}sums/"
        self._try = secrets.token_hex(8)
        self._added = 0
        self._turn = asyncio.Condition()
        self._spoilt = False
        self._nodes: dict[int, str] = {}

    async def add(self, piece: int, count: float, held: HeldRequest, seconds: float) -> None:
        """Have each part's node add what it made of the piece, once those before it are added.

        Raises:
            Unavailable: a part went on on another node: what was made or added there is gone.
            EdgeAttentionError: a node could not, or not in `seconds`.
        """
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until), self._turn:
                await self._turn.wait_for(lambda: self._spoilt or self._added == piece)
        except TimeoutError:
            raise Unavailable(FAILED) from None
        if self._spoilt:
            raise Unavailable(FAILED)
        try:
            await self._add(piece, count, held, until - asyncio.get_running_loop().time())
        except BaseException:
            await self.spoil()
            raise
        async with self._turn:
            self._added += 1
            self._turn.notify_all()

    async def spoil(self) -> None:
        """A piece has failed: those after it are not added."""
        self._spoilt = True
        async with self._turn:
            self._turn.notify_all()

    async def _add(self, piece: int, count: float, held: HeldRequest, seconds: float) -> None:
        nodes = {part: held.nodes[part] for part in self._parts}
        if held.moves or (piece and nodes != self._nodes):
            raise Unavailable("a part went on on another node in the middle of a step: it begins again")
        self._nodes = nodes
        counted = {"task/count": np.array(count, np.float32)}
        errands = [
            Errand(
                shard=f"part{part}",
                holders=(node,),
                coverage=range(part, part + 1),
                instructions=self._adding(piece, self._parts[part], held.lane),
                inline=counted,
                releases=self._released(part),
            )
            for part, node in nodes.items()
        ]
        await self._asked(errands, seconds)

    def _adding(self, piece: int, segment: ModelSegment, lane: int) -> tuple[Instruction, ...]:
        part = segment.part
        kept = kept_scope(self._deployment, lane, part)
        inputs = {f"g/{i}": Stored(kept + one.output) for i, one in enumerate(segment.contributions)}
        inputs[ADD] = Stored("task/count")
        places = range(len(inputs) - 1)
        outputs = {f"t/{i}": f"{self._of(piece, part)}{i}" for i in places}
        drops = [f"{kept}grad/"]
        graph = "first"
        if piece:
            graph = "next"
            inputs |= {f"s/{i}": Stored(f"{self._of(piece - 1, part)}{i}") for i in places}
            drops.append(self._of(piece - 1, part))
        run = Run(self._graphs[f"sum/{part}/{graph}"], inputs, outputs)
        return run, Drop(tuple(drops))

    def _of(self, piece: int, part: int) -> str:
        return f"{self._scope}{self._try}/{piece}/p{part}/"

    def _released(self, part: int) -> tuple[str, ...]:
        return self._releases if part in self._private else ()

    async def collect(self, names: Mapping[str, str], seconds: float) -> dict[str, Array]:
        """The sums of all that was added, by result of the schedule; those of several parts' added in the
        parts' order.

        Args:
            names: result -> what it is the gradient of.

        Raises:
            NotFinite: one is not; names it.
            EdgeAttentionError: a node has not sent what it has, or not in `seconds`.
        """
        meetings = Meetings(FoldPlan(self._sums))
        named = {boundary: names[result] for result, boundary in self._sums.results.items()}
        answers: list[Returned] = []
        errands = []
        for part, segment in self._parts.items():
            wanted = {}
            for i, one in enumerate(segment.contributions):
                spec = self._sums.boundaries[one.boundary].spec
                wanted[f"t/{i}"] = np.dtype(spec.dtype), extent_shape(spec.shape, one.extent)
            scope = self._of(self._added - 1, part)
            errands.append(
                Errand(
                    shard=f"part{part}",
                    holders=(self._nodes[part],),
                    coverage=range(part, part + 1),
                    instructions=tuple(
                        Return(f"{scope}{i}", f"t/{i}") for i in range(len(segment.contributions))
                    ),
                    wanted=wanted,
                    releases=self._released(part),
                )
            )

        def fold() -> dict[str, Array]:
            """In the parts' order, one part's in memory at a time."""
            for answer in sorted(answers, key=lambda one: one.coverage.start):
                segment = self._parts[answer.coverage.start]
                outputs = {}
                for i, one in enumerate(segment.contributions):
                    outputs[one.output] = array = answer.array(f"t/{i}")
                    if not np.isfinite(array).all():
                        raise NotFinite(f"the gradient of {named[one.boundary]} is not finite")
                meetings.add(0, segment.part, outputs)
            return {result: meetings.whole(boundary) for result, boundary in self._sums.results.items()}

        try:
            await self._asked(errands, seconds, answers)
            return await asyncio.to_thread(fold)
        finally:
            await asyncio.to_thread(_close, answers)

    def free(self) -> None:
        """Nodes keep nothing of it."""
        for node in dict.fromkeys(self._nodes.values()):
            self._trips.post(node, (Drop((f"{self._scope}{self._try}/",)),))

    async def _asked(
        self, errands: Sequence[Errand], seconds: float, answers: list[Returned] | None = None
    ) -> None:
        def take(answer: Returned) -> None:
            if answers is not None:
                answers.append(answer)

        outcome = await self._trips.make(
            errands, max(seconds, 0.001), take, believed=(), patient=False, spooled=answers is not None
        )
        for missing in outcome.missing.values():
            error: EdgeAttentionError = missing.error or missing.cause(missing.text)
            raise error


def _close(answers: Sequence[Returned]) -> None:
    for answer in answers:
        answer.close()
