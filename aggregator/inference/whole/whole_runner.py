"""Runs models that are not cut: a request is one call of the model's own graph, on whichever holder is free.

Inputs may have any sizes that the graph takes, and results have the shapes they turn out to have. A holder
that goes in the middle costs the request another call; where none is left, another node is given the model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aggregator.engine.outcome import MissingKind, MissingShard
from aggregator.engine.recipe import Engine
from aggregator.engine.returned import Returned
from aggregator.engine.spool import SpooledTensor
from aggregator.engine.trip import Errand
from aggregator.inference.calls import KnownWeight, job_scope, weight_name
from aggregator.inference.delivery import (
    ArrayBytes,
    CutFiles,
    NodeDeliveries,
    StoredPiece,
    digest_of,
    require_travels,
)
from aggregator.inference.holding import Pick, ShapeHolders, Told, roomiest
from aggregator.inference.model_answer import ModelAnswer, SegmentRun
from aggregator.inference.whole.whole_calls import WholeCall
from aggregator.inference.whole.work_in_hand import WorkInHand
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    ResourceExhausted,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.inference import INFER_BYTES, ModelTensor
from edge_attention.core.schedule.schedule import TensorForm, Weight
from edge_attention.core.schedule.whole import WholeModel
from edge_attention.core.tensors import Array

__all__ = ["WholeRunner"]

log = logging.getLogger(__name__)

PART = 0
"""The only one."""
WARM_SECONDS = 600.0
"""Loading the model takes no longer."""
REFUSED = 2
"""Nodes that are asked one request which they say they cannot compute: one alone may be wrong."""
MOVES = 8
"""Times that nodes may go in the middle of one request; then it ends with that."""
LACKED = 3
"""Times that nodes may say, in one request, that they lack what they were given."""
LOOK_SECONDS = 0.5
"""Between two looks for a node, should nobody say that one has come."""


@dataclass(eq=False)
class _Served:
    """A deployment."""

    id: str
    call: WholeCall
    holders: ShapeHolders
    graph: str
    ended: bool = False
    running: set[asyncio.Task[ModelAnswer]] = field(default_factory=set)


class WholeRunner:
    """Of all deployments.

    Attributes:
        pick: who is given a model whose nodes have gone; None: who has most room.

    What nodes have been given is freed by `ModelRunner.release`, which knows of those that are away.
    """

    def __init__(self, engine: Engine, pick: Pick | None = None) -> None:
        self._trips = engine.trips
        self._bulk = engine.bulk
        self._membership = engine.membership
        self.pick = pick or roomiest(engine.membership)
        self._deliveries = NodeDeliveries(engine.trips, engine.bulk)
        self._served: dict[str, _Served] = {}
        self._busy: Counter[str] = Counter()
        self._work = WorkInHand()
        self._news = asyncio.Event()
        engine.trips.watch(lambda name: self._look())

    async def prepare(
        self,
        deployment: str,
        whole: WholeModel,
        files: CutFiles,
        holders: Mapping[int, Sequence[str]],
        inputs: Sequence[ModelTensor],
        outputs: Sequence[ModelTensor],
        shapes: Mapping[str, Sequence[int]],
        say: Told = lambda node, done, total: None,
        *,
        seconds: float,
        known: dict[Weight, KnownWeight] | None = None,
        seek: bool = False,
    ) -> None:
        """Have nodes given the model, and load it.

        Args:
            holders: of part 0, those that are to hold it.
            known: weights that need not be hashed; those that were hashed now are put there.
            seek: where all of them have gone, it is given to another node.
            shapes: of inputs with which it is called once, as nothing is loaded before.

        Returns when one of them holds it that is there, and as many of its nodes as are. Called again it
        waits again.

        Raises:
            DeadlineExceeded: nobody holds it by then; says what was waited for.
            ResourceExhausted, InvalidArgument, PermissionDenied: all that are to hold it say so.
            InvalidTensor: a weight's dtype does not travel.
        """
        until = time.monotonic() + seconds
        if (before := self._served.pop(deployment, None)) is not None:
            await self._end(before)
        weights, pieces = await asyncio.to_thread(
            _pieces, deployment, whole, files, {} if known is None else known
        )
        call = WholeCall.of(deployment, whole, weights, inputs, outputs)
        path = files.graph(whole.graph)
        self._bulk.lend_file(whole.graph, path, 0, path.stat().st_size)

        async def warm(node: str, part: int) -> None:
            feeds = {one.name: np.zeros(shapes[one.name], one.data_type.value) for one in inputs}
            await self._warm(call, node, feeds)

        held = ShapeHolders(
            self._membership, self._deliveries, [pieces], holders, self.pick, warm, self._load, self._look
        )
        self._served[deployment] = _Served(deployment, call, held, whole.graph)
        held.ensure(say)
        if not await held.settled(max(until - time.monotonic(), 0.0), seek=seek):
            raise DeadlineExceeded(f"no node holds the model after {seconds:.3g} s: {held.why(PART)}")

    async def infer(self, deployment: str, feeds: Mapping[str, Array], seconds: float) -> ModelAnswer:
        """The model's outputs for `feeds`, in `seconds` at most.

        Raises:
            NotFound: nothing is deployed so.
            InvalidTensor: the model cannot be computed of these.
            ResourceExhausted: its results are larger than those of a request may be.
            DeadlineExceeded: there is no answer in time; says what was waited for.
            EdgeAttentionError: what nodes say of it.
        """
        served = self._served.get(deployment)
        if served is None:
            raise NotFound(f"nothing is deployed as {deployment[:80]!r}")
        task = asyncio.ensure_future(self._infer(served, feeds, seconds))
        served.running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if served.ended:
                raise Cancelled("the model was released") from None
            raise
        finally:
            served.running.discard(task)
            task.cancel()

    async def release(self, deployment: str) -> None:
        """It is served no more. Requests under way are refused."""
        served = self._served.pop(deployment, None)
        if served is not None:
            await self._end(served)
        self._work.forget(deployment)
        self._deliveries.freed(job_scope(deployment))

    async def close(self) -> None:
        """End what goes on; nodes keep what they have."""
        for deployment in list(self._served):
            await self._end(self._served.pop(deployment))

    def seek(self, deployment: str) -> None:
        """Have the model given to another node, if no holder is there, without a request that needs it."""
        served = self._served.get(deployment)
        if served is not None and served.holders.lacking:
            served.holders.seek(PART, frozenset())

    def holds(self, deployment: str) -> dict[int, tuple[str, ...]]:
        """The nodes that hold it and are there, as part 0."""
        served = self._served.get(deployment)
        if served is None:
            return {}
        return {PART: tuple(n for n in served.holders.holders(PART) if self._membership.live(n))}

    def nodes(self, deployment: str) -> tuple[str, ...]:
        """All nodes that have, or are to have, something of it."""
        served = self._served.get(deployment)
        return served.holders.nodes if served is not None else ()

    # Inside

    async def _end(self, served: _Served) -> None:
        served.ended = True
        for task in list(served.running):
            task.cancel()
        await served.holders.close()
        self._bulk.take_back(served.graph)

    async def _warm(self, call: WholeCall, node: str, feeds: Mapping[str, Array]) -> None:
        """Have the node load the model; what comes of zeros, and whether it can be computed, says nothing."""
        errand = self._errand("warm", call, node, feeds)
        outcome = await self._trips.make(
            [errand], WARM_SECONDS, believed=(), spooled=True, take=Returned.close
        )
        for missing in outcome.missing.values():
            log.info("node %s: %s", node, missing.text)
            if isinstance(missing.error, OutOfMemory | InvalidGraph) or not missing.said:
                raise (missing.error or missing.cause(missing.text))

    def _errand(self, shard: str, call: WholeCall, node: str, feeds: Mapping[str, Array]) -> Errand:
        return Errand(
            shard=shard,
            holders=(node,),
            coverage=range(1),
            instructions=call.instructions,
            wanted=call.wanted,
            tensors=call.tensors(feeds),
            frozen=call.frozen,
        )

    async def _infer(self, served: _Served, feeds: Mapping[str, Array], seconds: float) -> ModelAnswer:
        began = time.monotonic()
        asked = _WholeRequest(began + seconds, sum(array.size for array in feeds.values()))
        waited = 0.0
        while True:
            node = self._choose(served, asked)
            if not node:
                since = time.monotonic()
                await self._wait(served, asked, since)
                waited += time.monotonic() - since
                continue
            found = await self._ask(served, asked, node, feeds)
            if isinstance(found, ModelAnswer):
                times = {"turn": 0.0, "wait": waited, "fold": 0.0, "all": time.monotonic() - began}
                return ModelAnswer(
                    found.results, True, 1.0, "", {**found.seconds, **times}, found.sent, found.received,
                    asked.moves, found.segments,
                )  # fmt: skip
            self._missed(served, asked, node, found)

    def _choose(self, served: _Served, asked: _WholeRequest) -> str:
        """Of the holders that are there, and have not failed at this request, who is through first."""
        holders = served.holders
        there = [n for n in holders.holders(PART) if asked.tried.get(n) != holders.life(n)]
        for states in ((NodeState.READY,), (NodeState.DRAINING,)):
            found = [n for n in there if holders.state(n) in states]
            if found:
                return self._work.soonest(served.id, found, asked.size)
        return ""

    async def _wait(self, served: _Served, asked: _WholeRequest, now: float) -> None:
        """Until there may be a holder."""
        if asked.refused is not None:
            raise asked.refused  # nobody else can be asked
        left = asked.until - now
        if left <= 0:
            raise DeadlineExceeded(f"no node holds the model: {served.holders.why(PART)}")
        holders = served.holders
        # One whose stream broke may be back in a moment: others are given the model once its lease has ended.
        if holders.lacking and all(holders.state(n) is not NodeState.SUSPECT for n in holders.holders(PART)):
            holders.seek(PART, frozenset())
        try:
            async with asyncio.timeout(min(left, LOOK_SECONDS)):
                await self._news.wait()
        except TimeoutError:
            if (error := holders.refused()) is not None:
                raise error from None

    async def _ask(
        self, served: _Served, asked: _WholeRequest, node: str, feeds: Mapping[str, Array]
    ) -> ModelAnswer | MissingShard:
        call = served.call
        came: list[Returned] = []

        def take(answer: Returned) -> None:
            size = sum(tensor.nbytes for tensor in answer.tensors.values())
            if size > INFER_BYTES:
                raise ResourceExhausted(
                    f"bound infer-bytes: the results have {size:,} bytes, and an answer has {INFER_BYTES:,} "
                    "at most: send fewer rows, or ask a model with smaller results"
                )
            came.append(answer)

        self._busy[node] += 1
        expected = self._work.begin(served.id, node, asked.size)
        try:
            outcome = await self._trips.make(
                [self._errand("model", call, node, feeds)],
                max(asked.until - time.monotonic(), 0.001),
                take,
                believed=(),
                patient=False,
                spooled=True,
            )
            if (missing := outcome.missing.get("model")) is not None:
                return missing
            (answer,) = came
            names = list(call.wanted)
            if any(isinstance(tensor, SpooledTensor) for tensor in answer.tensors.values()):
                arrays = await asyncio.to_thread(lambda: [answer.array(name) for name in names])
            else:
                arrays = [answer.array(name) for name in names]
        finally:
            for one in came:
                one.close()
            self._busy[node] -= 1
            if not self._busy[node]:
                del self._busy[node]
            self._work.end(node, expected)
        down, up = (sum(a.nbytes for a in of) for of in (feeds.values(), arrays))
        run, took = outcome.run_seconds.get("model", 0.0), outcome.seconds.get("model", 0.0)
        self._work.took(served.id, node, asked.size, run)
        segment = SegmentRun(0, PART, node, run, took, down, up, "model" in outcome.alone)
        return ModelAnswer(
            dict(zip(names, arrays, strict=True)), True, 1.0, "", {f"part {PART}": run},
            {node: down}, {node: up}, 0, (segment,),
        )  # fmt: skip

    def _missed(self, served: _Served, asked: _WholeRequest, node: str, missing: MissingShard) -> None:
        """Raises what the request ends with; else another node is to be asked."""
        if missing.kind is MissingKind.LATE:
            raise DeadlineExceeded(f"node {node!r} had not answered by the deadline; it computes the model")
        error: EdgeAttentionError = missing.error or missing.cause(missing.text)
        if isinstance(missing.error, NotFound):  # it has lost what it was given
            asked.lacked += 1
            if asked.lacked > LACKED:
                raise error
            served.holders.supply(PART, node)
            return
        asked.moves += 1
        if missing.kind is MissingKind.LOST and asked.moves <= MOVES:
            return
        asked.tried[node] = served.holders.life(node)
        if isinstance(error, InvalidProgram):
            # The program is ours, and has been loaded: it is what came into it that it cannot run with.
            error = InvalidTensor(f"the model cannot be computed of these inputs: {error.message}")
        asked.refused = error
        asked.refusals += 1
        if asked.refusals >= REFUSED or isinstance(error, ResourceExhausted):
            raise error

    def _load(self, node: str) -> int:
        return self._busy[node]

    def _look(self) -> None:
        """Something has changed with the nodes."""
        self._work.keep([member.name for member in self._membership.members()])
        for served in self._served.values():
            served.holders.ensure()
        self._news.set()
        self._news = asyncio.Event()


@dataclass(eq=False)
class _WholeRequest:
    """What became of one request so far.

    Attributes:
        size: elements of its inputs.
        tried: node -> its process, which could not compute it.
    """

    until: float
    size: int
    tried: dict[str, str] = field(default_factory=dict)
    refused: EdgeAttentionError | None = None
    refusals: int = 0
    lacked: int = 0
    moves: int = 0


def _pieces(
    deployment: str, whole: WholeModel, files: CutFiles, hashed: dict[Weight, KnownWeight]
) -> tuple[dict[str, KnownWeight], list[StoredPiece]]:
    """What is known of each weight, and what a node needs. Reads those that are not `hashed`; blocks."""
    known: dict[str, KnownWeight] = {}
    found: dict[str, StoredPiece] = {}
    for name in whole.weights:
        weight = Weight(name)
        array = files.weight(weight)
        form = TensorForm(array.dtype.name, array.shape)
        if weight not in hashed:
            require_travels(weight, array)
            hashed[weight] = KnownWeight(digest_of(ArrayBytes(array)), form)
        known[name] = hashed[weight]
        stored = weight_name(deployment, known[name])
        found[stored] = StoredPiece(
            stored,
            known[name].digest,
            form.dtype,
            form.shape,
            lambda weight=weight: ArrayBytes(files.weight(weight)),  # type: ignore[misc]
        )
    return known, list(found.values())
