"""Sums of gradients that nodes have: each adds what its parts made of a piece to what they made of those
before, in the pieces' order, and sends the sum once all are added.

    job/<deployment>/lane<k>/p<part>/grad/<i>             of a piece, until it is added
    job/<deployment>/sums/<names>/<0 or 1>/p<part>/<i>    after a piece of even, of odd number

A piece is added once the one before it has been, so what it reads is there, and its own sum has another
name: a task that comes twice adds nothing twice. Names are the same in all steps, as what comes again is only
called; but after a step that did not go well some task of it may be late, and names are others from then on.
With the last piece the sums are sent. What a node has of them is gone with it: then the step begins again.

Where pieces are small (planner.py) none is added before all are there: each keeps its lane, and one call a
part adds them, in the pieces' order and to the same bits, and sends the sum.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips, Wanted
from aggregator.inference.calls import job_scope, kept_scope
from aggregator.inference.runner import HeldRequest
from aggregator.training.divergence import NotANumber
from aggregator.training.split.plan import OVERWRITTEN
from edge_attention.core.errors import EdgeAttentionError, Unavailable
from edge_attention.core.messages.program import Drop, Instruction, Return, Run, Stored
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.core.tensors import Array

__all__ = ["AddingPrograms", "NodeSums"]

ADD = "count"
"""The input of graphs that add (graphs/backward/summed.py): what the piece counts, or each of them."""
FAILED = "a piece of the step was not added, and the step begins again"
MOVED = "a part went on on another node in the middle of a step: it begins again"
LANES_KNOWN = 16
"""Rows of lanes of which it is kept what adds them: pieces take their lanes in order, and have the same ones
again unless something went wrong."""


class AddingPrograms:
    """What parts' nodes are asked to add a piece, kept from step to step: nodes then know it, and are called.

    Args:
        sums: the schedule of what is sent of them.
        graphs: those that add, by their names in the schedule of a piece.

    Attributes:
        nodes: all that may store something under these names, of whatever step.
        together: all pieces are added by one call.
    """

    def __init__(self, deployment: str, sums: Schedule, graphs: Mapping[str, str]) -> None:
        self.sums = sums
        self.parts = {segment.part: segment for step in sums.steps for segment in step.segments}
        self.scope = f"{job_scope(deployment)}sums/{secrets.token_hex(8)}/"
        self.nodes: set[str] = set()
        self._deployment = deployment
        self._graphs = graphs
        self._drops = {part: self._bytes(part) > OVERWRITTEN for part in self.parts}
        self.together = any(segment.graph == f"sum/{part}/all" for part, segment in self.parts.items())
        self._made: dict[tuple[int, int, int, bool], tuple[Instruction, ...]] = {}
        self._whole: dict[tuple[int, tuple[int, ...]], tuple[Instruction, ...]] = {}

    def of(self, part: int, lane: int, piece: int, last: bool) -> tuple[Instruction, ...]:
        """Add what the part made in `lane` to what it made of the pieces before; `last`: and send it."""
        key = part, lane, 1 + piece % 2 if piece else 0, last
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._adding(part, lane, piece, last)
        return found

    def of_all(self, part: int, lanes: tuple[int, ...]) -> tuple[Instruction, ...]:
        """Add what the part made of each piece, in `lanes` by piece, and send it."""
        found = self._whole.get((part, lanes))
        if found is None:
            if len(self._whole) >= LANES_KNOWN * len(self.parts):
                self._whole.clear()
            found = self._whole[part, lanes] = self._adding_all(part, lanes)
        return found

    def wanted(self, part: int) -> dict[str, Wanted]:
        """What comes of the last piece."""
        wanted: dict[str, Wanted] = {}
        for i, one in enumerate(self.parts[part].contributions):
            spec = self.sums.boundaries[one.boundary].spec
            wanted[f"t/{i}"] = np.dtype(spec.dtype), extent_shape(spec.shape, one.extent)
        return wanted

    def _adding(self, part: int, lane: int, piece: int, last: bool) -> tuple[Instruction, ...]:
        kept = kept_scope(self._deployment, lane, part)
        contributions = self.parts[part].contributions
        inputs = {f"g/{i}": Stored(kept + one.output) for i, one in enumerate(contributions)}
        inputs[ADD] = Stored("task/count")
        places = range(len(contributions))
        outputs = {f"t/{i}": f"{self._of(piece, part)}{i}" for i in places}
        drops = [f"{kept}grad/"]
        graph = "first"
        if piece:
            graph = "next"
            inputs |= {f"s/{i}": Stored(f"{self._of(piece - 1, part)}{i}") for i in places}
            drops.append(self._of(piece - 1, part))
        if last:
            drops.append(self._of(piece, part))
        return (
            Run(self._graphs[f"sum/{part}/{graph}"], inputs, outputs),
            *(Return(name, output) for output, name in outputs.items() if last),
            *((Drop(tuple(drops)),) if self._drops[part] else ()),
        )

    def _adding_all(self, part: int, lanes: tuple[int, ...]) -> tuple[Instruction, ...]:
        contributions = self.parts[part].contributions
        inputs = {
            f"g/{k}/{i}": Stored(kept_scope(self._deployment, lane, part) + one.output)
            for k, lane in enumerate(lanes)
            for i, one in enumerate(contributions)
        }
        inputs[ADD] = Stored("task/count")
        outputs = {f"t/{i}": f"task/t{i}" for i in range(len(contributions))}
        return (
            Run(self._graphs[f"sum/{part}/all"], inputs, outputs),
            *(Return(name, output) for output, name in outputs.items()),
        )

    def _of(self, piece: int, part: int) -> str:
        return f"{self.scope}{piece % 2}/p{part}/"

    def _bytes(self, part: int) -> int:
        specs = [(self.sums.boundaries[c.boundary].spec, c.extent) for c in self.parts[part].contributions]
        return sum(
            math.prod(extent_shape(s.shape, extent)) * np.dtype(s.dtype).itemsize for s, extent in specs
        )


class NodeSums:
    """The sums of one try at one step.

    Args:
        pieces: how many there are: with the last one the sums are sent.
        private: parts whose nodes read samples: what they send has to be released by `releases`.

    Attributes:
        whole: all has come, and nothing of it can be under way any more.
        together: pieces wait for each other, and are added at once.
    """

    def __init__(
        self,
        adding: AddingPrograms,
        pieces: int,
        trips: Trips,
        private: frozenset[int],
        releases: tuple[str, ...],
    ) -> None:
        self.whole = False
        self.together = adding.together
        self._adding = adding
        self._pieces = pieces
        self._trips = trips
        self._private = private
        self._releases = releases
        self._added = 0
        self._turn = asyncio.Condition()
        self._spoilt = False
        self._nodes: dict[int, str] = {}
        self._there: dict[int, tuple[float, int]] = {}
        """Piece -> what it counts and its lane, of pieces that wait to be added together."""
        self._answers: list[Returned] = []

    async def add(self, piece: int, count: float, held: HeldRequest, seconds: float) -> None:
        """Have each part's node add what it made of the piece, once those before it are added; or all at
        once, when the last is there. Returns once it is added.

        Raises:
            Unavailable: a part went on on another node: what was made or added there is gone.
            EdgeAttentionError: a node could not, or not in `seconds`.
        """
        until = asyncio.get_running_loop().time() + seconds
        if self._adding.together:
            await self._add_together(piece, count, held, until)
            return
        await self._wait_for(lambda: self._added == piece, until)
        try:
            self._require_there(held)
            last = piece == self._pieces - 1
            await self._ask(
                {part: self._adding.of(part, held.lane, piece, last) for part in self._adding.parts},
                np.array(count, np.float32), last, held, until,
            )  # fmt: skip
        except BaseException:
            await self.spoil()
            raise
        await self._count(1)

    async def _add_together(self, piece: int, count: float, held: HeldRequest, until: float) -> None:
        try:
            self._require_there(held)
            self._there[piece] = count, held.lane
            if len(self._there) < self._pieces:
                await self._wait_for(lambda: self._added == self._pieces, until)
                return
            if self._spoilt:
                raise Unavailable(FAILED)
            counts, lanes = zip(*(self._there[at] for at in range(self._pieces)), strict=True)
            await self._ask(
                {part: self._adding.of_all(part, lanes) for part in self._adding.parts},
                np.array(counts, np.float32), True, held, until,
            )  # fmt: skip
        except BaseException:
            await self.spoil()
            raise
        await self._count(self._pieces)

    async def _wait_for(self, added: Callable[[], bool], until: float) -> None:
        """Raises Unavailable where a piece has failed, or it is not so by then."""
        try:
            async with asyncio.timeout_at(until), self._turn:
                await self._turn.wait_for(lambda: self._spoilt or added())
        except TimeoutError:
            raise Unavailable(FAILED) from None
        if self._spoilt:
            raise Unavailable(FAILED)

    async def _count(self, pieces: int) -> None:
        async with self._turn:
            self._added += pieces
            self._turn.notify_all()

    async def spoil(self) -> None:
        """A piece has failed: those after it are not added."""
        self._spoilt = True
        async with self._turn:
            self._turn.notify_all()

    def _require_there(self, held: HeldRequest) -> None:
        """Raises Unavailable where what parts made of this piece, or of those before, is on several nodes."""
        nodes = {part: held.nodes[part] for part in self._adding.parts}
        if held.moves or (self._nodes and nodes != self._nodes):
            raise Unavailable(MOVED)
        self._nodes = nodes
        self._adding.nodes.update(nodes.values())

    async def _ask(
        self,
        instructions: Mapping[int, tuple[Instruction, ...]],
        count: Array,
        last: bool,
        held: HeldRequest,
        until: float,
    ) -> None:
        """Have each part's node do these; `last`: which sends the sums."""
        counted = {"task/count": count}
        errands = [
            Errand(
                shard=f"part{part}",
                holders=(node,),
                coverage=range(part, part + 1),
                instructions=instructions[part],
                wanted=self._adding.wanted(part) if last else {},
                inline=counted,
                releases=self._releases if part in self._private else (),
            )
            for part, node in self._nodes.items()
        ]
        take = self._answers.append if last else _nothing
        outcome = await self._trips.make(
            errands,
            max(until - asyncio.get_running_loop().time(), 0.001),
            take,
            believed=(),
            patient=False,
            spooled=last,
        )
        for missing in outcome.missing.values():
            error: EdgeAttentionError = missing.error or missing.cause(missing.text)
            raise error

    async def collect(self, names: Mapping[str, str]) -> dict[str, Array]:
        """The sums of all pieces, by result of the schedule; those of several parts' added in the parts'
        order.

        Args:
            names: result -> what it is the gradient of.

        Raises:
            NotANumber: one is not finite; names it.
            EdgeAttentionError: what came cannot be read.
        """
        sums = self._adding.sums
        meetings = Meetings(FoldPlan(sums))
        named = {boundary: names[result] for result, boundary in sums.results.items()}

        def fold() -> dict[str, Array]:
            """In the parts' order, one part's in memory at a time."""
            for answer in sorted(self._answers, key=lambda one: one.coverage.start):
                segment = self._adding.parts[answer.coverage.start]
                outputs = {}
                for i, one in enumerate(segment.contributions):
                    outputs[one.output] = array = answer.array(f"t/{i}")
                    if not np.isfinite(array).all():
                        raise NotANumber(f"the gradient of {named[one.boundary]}")
                meetings.add(0, segment.part, outputs)
            return {result: meetings.whole(boundary) for result, boundary in sums.results.items()}

        found = await asyncio.to_thread(fold)
        self.whole = True
        return found

    def free(self) -> None:
        """Nodes keep nothing of it or of steps before, nor may the names come again, unless it is `whole`."""
        if not self.whole:
            for node in sorted(self._adding.nodes):
                self._trips.post(node, (Drop((self._adding.scope,)),))

    async def close(self) -> None:
        """Keep nothing of what came."""
        answers, self._answers = self._answers, []
        if answers:
            await asyncio.to_thread(_close, answers)


def _nothing(answer: Returned) -> None:
    """Of an answer that nothing comes with."""


def _close(answers: Sequence[Returned]) -> None:
    for answer in answers:
        answer.close()
