"""One round of training by fusion: partials up, `(lse, dO, delta)` down, gradients up (DESIGN section 4).

    forward    each node: batch -> encoder -> keys, values -> (out, lse)        partials merge here
    head       the label node: fused output, labels -> loss, dO, head gradients
    backward   each node: (lse, dO, delta) -> dkeys, dvalues -> encoder gradients, dQ_i     dQ = sum dQ_i

Every program brings the parameters it needs, with their version, so a node that comes back has nothing
to catch up on: it is sent the next round's program. From round to round only tensors differ, so that the
instructions are made once a run, and called from the second round on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aggregator.bounds.bounds import PREDICTED_FUSED
from aggregator.engine.outcome import MissingKind
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips, Wanted
from aggregator.fleet.columns import TableView
from aggregator.training.fusion.alignment import Alignment
from aggregator.training.fusion.plan import FusionPlan, PlanGraph, PlannedPart
from aggregator.training.fusion.programs import FusionPrograms
from aggregator.training.fusion.releases import TOLD, texts
from aggregator.training.gap_reads import PRESENCE, reads
from edge_attention.core.errors import InvalidTensor, NotFinite, ResourceExhausted, Unavailable
from edge_attention.core.fold import Fold, Tensors, add_tensors
from edge_attention.core.messages.program import (
    Batch,
    Drop,
    Instruction,
    Return,
)
from edge_attention.core.messages.training import Evaluation
from edge_attention.core.partial import Partial, mass, merge
from edge_attention.core.tensors import Array, Float32, Int64, require

_FLOAT32 = np.dtype(np.float32)
_LOSS: Wanted = (_FLOAT32, None)
"""One number, of whatever rank."""

SayWhat = Callable[[str], None]


class Interrupted(Unavailable):
    """A node went away in the middle of a round; the round can be run again."""


@dataclass
class Timer:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True, eq=False)
class FusionSamples:
    """Some samples by their positions in the run's list."""

    positions: Int64
    alignment: Alignment

    def __len__(self) -> int:
        return len(self.positions)

    def rows(self, part: PlannedPart) -> tuple[Int64, Float32]:
        """The samples' rows in the part's dataset (0 where it lacks one), and 1 or 0: whether it has it."""
        rows = self.alignment.rows[part.source][self.positions]
        ranks = self.alignment.ranks.get(part.prefix)
        if ranks is not None:
            rows = np.where(rows >= 0, ranks[rows], -1)
        return np.maximum(rows, 0), (rows >= 0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FusionStep:
    """What one round found: the loss, the gradient of every parameter, and where attention went."""

    loss: float
    gradients: dict[str, Array]
    mass: dict[str, float]
    absent: dict[str, int]


class FusionRounds:
    """Runs rounds and evaluations of one job."""

    def __init__(
        self,
        run: str,
        plan: FusionPlan,
        trips: Trips,
        patience: float,
        identity_key: bytes,
        say: SayWhat,
    ) -> None:
        self._scope = f"job/{run}"
        self._plan = plan
        self._trips = trips
        self._patience = patience
        self._key = identity_key
        self._say = say
        self._releases: dict[int, tuple[str, ...]] = {id(part): () for part in plan.parts}
        self._programs = FusionPrograms(self._scope, plan, {})
        self._views: Mapping[str, TableView] = {}

    def use(self, views: Mapping[str, TableView]) -> None:
        """Read datasets so from now on: part's prefix -> view. Nothing but `identities` goes without."""
        if views != self._views:
            plan = self._plan
            self._views = views
            brought = texts(plan, views)
            self._releases = {id(part): brought[part.prefix] for part in plan.parts}
            self._programs = FusionPrograms(self._scope, plan, views)

    async def identities(self, of: Sequence[PlannedPart] | None = None) -> dict[str, Array]:
        """The keyed hashes of every source's ids (`of`: of those of these parts): uint8 [rows, 16]."""
        found: dict[str, Array] = {}

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            batch = Batch(part.dataset, {}, None, "task/ids", self._key)
            return (batch, Return("task/ids", "ids")), {}

        def on(part: PlannedPart, tensors: Mapping[str, Array]) -> None:
            found[part.source] = tensors["ids"]

        sources = list({part.source: part for part in (self._plan.parts if of is None else of)}.values())
        wanted: dict[str, Wanted] = {"ids": (np.dtype(np.uint8), ("rows", 16))}
        parts = [(part.source, part) for part in sources]
        await self._trip(parts, program, lambda part: wanted, on, 0, Timer())
        return found

    async def told(
        self, role: str, of: Sequence[PlannedPart] | None = None
    ) -> dict[str, Mapping[str, Array]]:
        """What the parts' datasets lack, by prefix, of those whose views need that role (releases.TOLD).
        `of`: of these parts alone."""
        found: dict[str, Mapping[str, Array]] = {}

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            return self._programs.told(part, role), {}

        def wanted(part: PlannedPart) -> Mapping[str, Wanted]:
            if role == PRESENCE:
                return {"complete": (np.dtype(np.uint8), ("rows",))}
            return dict.fromkeys(TOLD[role], (np.dtype(np.float64), (len(self._views[part.prefix].means),)))

        def on(part: PlannedPart, tensors: Mapping[str, Array]) -> None:
            found[part.prefix] = tensors

        asked = self._plan.parts if of is None else of
        parts = [(p.prefix, p) for p in asked if role in reads(self._views[p.prefix], PRESENCE)]
        if parts:
            await self._trip(parts, program, wanted, on, 0, Timer())
        return found

    async def step(
        self,
        batch: FusionSamples,
        parameters: Mapping[str, Array],
        version: int,
        timer: Timer,
    ) -> FusionStep:
        """Loss and exact gradients of `batch` at `parameters`.

        Raises:
            Interrupted: a node went away; nothing was changed.
        """
        merged, lses = await self._forward(batch, parameters, version, timer)
        labels = batch.rows(self._plan.head)[0]
        wanted = {"loss": _LOSS, "dfused": (_FLOAT32, merged.out.shape), **_gradients(self._plan.head)}
        head = await self._head(
            merged.out, labels, parameters, version, timer, self._plan.head.gradient, wanted
        )
        dout = head["dfused"]
        gradients = {f"head/{name}": head[f"grad/{name}"] for name in self._plan.head.parameters}
        delta: Float32 = np.asarray(np.sum(dout * merged.out, axis=-1), np.float32)
        timer.lap("merge")
        gradients |= await self._backward(batch, parameters, version, merged.lse, dout, delta, timer)
        loss = head["loss"]
        require(loss.reshape(-1), "loss", shape=(1,))
        masses = {e.node: float(mass(lses[e.node], merged.lse).mean()) for e in self._plan.encoders}
        absent = {e.node: count for e in self._plan.encoders if (count := int((batch.rows(e)[1] == 0).sum()))}
        return FusionStep(float(loss.reshape(-1)[0]), gradients, masses, absent)

    async def evaluate(
        self,
        batch: FusionSamples,
        parameters: Mapping[str, Array],
        version: int,
        timer: Timer,
    ) -> Evaluation:
        """Mean loss and summed metrics over `batch`, without gradients."""
        metrics = dict.fromkeys(self._plan.job.head.metrics, 0.0)
        loss, size = 0.0, max(self._plan.job.batch, 256)
        graph = self._plan.head.forward
        wanted: dict[str, Wanted] = {"loss": _LOSS, **dict.fromkeys(metrics, (None, None))}
        for start in range(0, len(batch), size):
            part = replace(batch, positions=batch.positions[start : start + size])
            merged, _ = await self._forward(part, parameters, version, timer)
            labels = part.rows(self._plan.head)[0]
            head = await self._head(merged.out, labels, parameters, version, timer, graph, wanted)
            loss += float(head["loss"].reshape(-1)[0]) * len(part)
            for name in metrics:
                metrics[name] += float(head[name].reshape(-1)[0])
        return Evaluation(len(batch), loss / max(len(batch), 1), metrics)

    async def fused(
        self, batch: FusionSamples, parameters: Mapping[str, Array], version: int
    ) -> tuple[Partial, dict[str, Float32]]:
        """What the queries see of the tokens of `batch` on all nodes, `out` [B, N, Hq, dv]; by node the lse.

        Raises:
            Interrupted: a node went away.
            ResourceExhausted: that is too much to be held here.
        """
        size, timer = max(self._plan.job.batch, 256), Timer()
        outs, lses = [], []
        by_node: dict[str, list[Float32]] = {}
        for start in range(0, len(batch), size):
            some = replace(batch, positions=batch.positions[start : start + size])
            merged, each = await self._forward(some, parameters, version, timer)
            each_bytes = merged.out[0].nbytes
            if each_bytes * len(batch) > PREDICTED_FUSED:
                raise ResourceExhausted(
                    f"bound predicted-fused: {len(batch):,} samples have {each_bytes * len(batch):,} bytes "
                    f"of fused outputs, and one call {PREDICTED_FUSED:,}; ask about "
                    f"{max(PREDICTED_FUSED // each_bytes, 1):,} at a time"
                )
            outs.append(merged.out)
            lses.append(merged.lse)
            for node, lse in each.items():
                by_node.setdefault(node, []).append(lse)
        whole = Partial(np.concatenate(outs), np.concatenate(lses))
        return whole, {node: np.concatenate(found) for node, found in by_node.items()}

    async def push(self, parameters: Mapping[str, Array], version: int) -> None:
        """Give every node the committed parameters and free what the run has stored besides."""

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            drop = Drop((f"{self._scope}/data/", f"{self._scope}/keys", f"{self._scope}/values"))
            return (drop,), self._programs.parameters(part, parameters)

        encoders = [(e.node, e) for e in self._plan.encoders]
        parts = [*encoders, ("head", self._plan.head)]
        await self._trip(parts, program, lambda part: {}, lambda *_: None, version, Timer())

    def forget(self) -> None:
        """Have the nodes free all the run has stored."""
        for node in self._plan.nodes:
            self.forget_on(node)

    def forget_on(self, node: str) -> None:
        """Have one node do so."""
        self._trips.post(node, (Drop((f"{self._scope}/",)),))

    # The three trips

    async def _forward(
        self,
        batch: FusionSamples,
        parameters: Mapping[str, Array],
        version: int,
        timer: Timer,
    ) -> tuple[Partial, dict[str, Float32]]:
        queries = parameters["queries"]
        lses: dict[str, Float32] = {}
        ranges = {e.node: range(i, i + 1) for i, e in enumerate(self._plan.encoders)}
        fold = Fold[Partial](ranges, merge)

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            rows, present = batch.rows(part)
            tensors = self._programs.parameters(part, parameters)
            tensors |= {"task/rows": rows, "task/present": present, "task/q": queries}
            return self._programs.forward(part), tensors

        def on(part: PlannedPart, tensors: Mapping[str, Array]) -> None:
            out = tensors["out"]
            partial = Partial(out, tensors["lse"]).check(out.shape, "what it returned")
            fold.add(part.node, ranges[part.node], partial)
            lses[part.node] = partial.lse

        encoders = [(e.node, e) for e in self._plan.encoders]
        rows = (len(batch), *queries.shape[:2])
        wanted: dict[str, Wanted] = {"out": (_FLOAT32, (*rows, "value_dim")), "lse": (_FLOAT32, rows)}
        await self._trip(encoders, program, lambda part: wanted, on, version, timer)
        merged = fold.result()
        assert merged is not None  # every shard has answered, or _trip had raised
        timer.lap("forward")
        return merged, lses

    async def _head(
        self,
        fused: Float32,
        rows: Int64,
        parameters: Mapping[str, Array],
        version: int,
        timer: Timer,
        graph: PlanGraph,
        wanted: Mapping[str, Wanted],
    ) -> Mapping[str, Array]:
        head = self._plan.head
        found: dict[str, Array] = {}

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            tensors = self._programs.parameters(part, parameters)
            return self._programs.head(graph, tuple(sorted(wanted))), tensors | {
                "task/rows": rows,
                "task/fused": fused,
            }

        def on(part: PlannedPart, tensors: Mapping[str, Array]) -> None:
            found.update(tensors)

        await self._trip([("head", head)], program, lambda part: wanted, on, version, timer)
        timer.lap("head")
        return found

    async def _backward(
        self,
        batch: FusionSamples,
        parameters: Mapping[str, Array],
        version: int,
        lse: Float32,
        dout: Array,
        delta: Float32,
        timer: Timer,
    ) -> dict[str, Array]:
        queries = parameters["queries"]
        gradients: dict[str, Array] = {}
        ranges = {e.node: range(i, i + 1) for i, e in enumerate(self._plan.encoders)}
        fold = Fold[Tensors](ranges, add_tensors)

        def program(part: PlannedPart) -> tuple[tuple[Instruction, ...], Mapping[str, Array]]:
            _, present = batch.rows(part)
            seeds = {"task/lse": lse, "task/dout": dout, "task/delta": delta}
            return self._programs.backward(part), {"task/q": queries, "task/present": present, **seeds}

        def on(part: PlannedPart, tensors: Mapping[str, Array]) -> None:
            for name in part.parameters:
                gradients[f"{part.node}/{name}"] = tensors[f"grad/{name}"]
            fold.add(part.node, ranges[part.node], {"queries": tensors["dq"]})

        def wanted(part: PlannedPart) -> Mapping[str, Wanted]:
            return {"dq": (_FLOAT32, queries.shape), **_gradients(part)}

        encoders = [(e.node, e) for e in self._plan.encoders]
        await self._trip(encoders, program, wanted, on, version, timer)
        total = fold.result()
        assert total is not None
        timer.lap("backward")
        return gradients | dict(total)

    async def _trip(
        self,
        parts: Sequence[tuple[str, PlannedPart]],
        program: Callable[[PlannedPart], tuple[tuple[Instruction, ...], Mapping[str, Array]]],
        wanted: Callable[[PlannedPart], Mapping[str, Wanted]],
        on: Callable[[PlannedPart, Mapping[str, Array]], None],
        version: int,
        timer: Timer,
    ) -> None:
        """Have every part (shard -> part) run its program; `on` gets what each returns.

        Raises:
            InvalidTensor: a node returned what it was not asked for; NotFinite for NaN and Inf.
            Interrupted: a node did not answer.
        """
        by_shard = dict(parts)
        errands = []
        for index, (shard, part) in enumerate(parts):
            instructions, tensors = program(part)
            errands.append(
                Errand(
                    shard=shard,
                    holders=(part.node,),
                    coverage=range(index, index + 1),
                    instructions=instructions,
                    wanted=wanted(part),
                    tensors=tensors,
                    releases=self._releases[id(part)],
                )
            )

        def take(answer: Returned) -> None:
            tensors = {name: answer.array(name) for name in answer.tensors}
            for name, array in tensors.items():
                if array.dtype == np.float32 and name != "lse" and not np.isfinite(array).all():
                    raise NotFinite(f"what it returned as {name} is not finite")
            on(by_shard[answer.shard], tensors)

        outcome = await self._trips.make(errands, self._patience, take, version=version, say=self._say)
        for missing in outcome.missing.values():
            if missing.kind is MissingKind.WRONG and isinstance(missing.error, InvalidTensor):
                # The same program on the same data will return the same again: no use to repeat it.
                raise missing.error
        if outcome.missing:
            raise Interrupted(outcome.why)
        graphs_seconds = sum(outcome.run_seconds.values())
        timer.seconds["graphs"] = timer.seconds.get("graphs", 0.0) + graphs_seconds


def _gradients(part: PlannedPart) -> dict[str, Wanted]:
    """The gradient of every parameter of a part."""
    return {f"grad/{name}": (_FLOAT32, shape) for name, shape in part.parameters.items()}
