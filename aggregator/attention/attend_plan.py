"""What an attend asks of each segment: checked, planned once for all attends alike.

Queries differ from call to call; what they see and the programs that answer them do not, as long as the
context is the same and they sit at the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from aggregator.attention.contexts import StoredContext, StoredSegment
from aggregator.engine.trip import Errand, Errands
from edge_attention.core.errors import (
    EmptyContext,
    InvalidArgument,
    InvalidTensor,
    MessageTooLarge,
    ResourceExhausted,
)
from edge_attention.core.fold import Leaves
from edge_attention.core.messages.attention import (
    ATTEND_BYTES,
    ATTEND_QUERIES,
    AttendRequest,
    ContextSpec,
    attend_bytes,
)
from edge_attention.core.messages.program import Instruction, Return, Run, Stored, Value
from edge_attention.core.positions import Positions, joined
from edge_attention.core.tensors import Array, Encoding, require
from edge_attention.core.visibility import SegmentView, of_segment, seen_by_any, visible
from edge_attention.graphs.attention import library
from edge_attention.wire.codec import MESSAGE_LIMIT

DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 3600.0
QUERIES, LSE = "task/q", "task/lse"
_FLOAT32 = np.dtype(np.float32)
STRETCH_BYTES = 16
"""What a stretch of positions takes of an answer that is not whole, at most."""
_PLANS = 256
_PLANS_BYTES = 64 * 1024 * 1024
"""Of what plans that are kept say about what queries see."""
_LARGE, _MANY = 65_536, 256
"""Queries times segments, and segments, from which a plan is made in a thread."""
_POSITIONS_BYTES = 8 * 64
"""Positions of more queries than 64 are planned each time: they hardly come again."""


@dataclass(frozen=True, eq=False)
class PlanPart:
    """A segment the queries see something of, and what is run over it.

    `cover`: its tokens' numbers where all segments' lie one after the other; where none of them has tokens
    between those of another these are its positions. What covers what is told so, and checked. `seen`: those
    of its positions that some query sees.
    """

    segment: StoredSegment
    cover: range
    seen: Positions
    view: SegmentView
    attend: tuple[Instruction, ...]
    weigh: tuple[Instruction, ...]


@dataclass(eq=False)
class Plan:
    """A checked request but for its queries and how long it may take, and what all answers to it share.

    `spec` is the context's, `shape` that of `out`, `tokens` the context's then, `stretches` how many
    ranges the parts' seen positions are. What follows from these is found out once, and not on the way of
    every answer. `used` tells which plans were asked for longest ago.
    """

    spec: ContextSpec
    shape: tuple[int, ...]
    tokens: int
    scale: float
    encoding: Encoding
    parts: Mapping[str, PlanPart]
    stretches: int
    used: int = 0
    _errands: Errands | None = None

    def errands(self, holders: Sequence[tuple[str, ...]]) -> Errands:
        """What its parts are asked, the queries apart. `holders`: who has each of them now."""
        known = self._errands
        if known is None or [errand.holders for errand in known.all] != holders:
            known = self._errands = Errands(
                Errand(
                    shard=id,
                    holders=who,
                    coverage=part.cover,
                    instructions=part.attend,
                    wanted=self.wanted,
                )
                for (id, part), who in zip(self.parts.items(), holders, strict=True)
            )
        return known

    @cached_property
    def nbytes(self) -> int:
        """Bytes that the plan takes while it is kept, roughly."""
        return sum(
            1024 + part.view.lo.nbytes + part.view.hi.nbytes + part.seen.nbytes
            for part in self.parts.values()
        )

    @cached_property
    def work(self) -> float:
        """Multiplications of its scores and of its values: the queries' heads times the tokens they read."""
        tokens = sum(len(part.view.tiles) for part in self.parts.values()) * library.TILE
        spec = self.spec
        return float(self.shape[0] * spec.query_heads * (spec.key_dim + spec.value_dim)) * tokens

    @cached_property
    def size(self) -> int:
        """Bytes that an attend takes here, at most."""
        return attend_bytes(self.spec, self.shape[0], len(self.parts))

    @cached_property
    def answer(self) -> int:
        """Bytes of the attend's answer, at most, without weights."""
        (count, heads, dim), parts = self.shape, len(self.parts)
        each = 4 if self.encoding is Encoding.RAW else 2
        # Where not all of it comes, what does is told stretch by stretch, and so is what does not.
        return count * heads * (each * dim + 4 + 4 * parts) + STRETCH_BYTES * (self.stretches - parts)

    @cached_property
    def leaves(self) -> Leaves:
        """Part -> what covers it, as answers are folded."""
        return Leaves({id: part.cover for id, part in self.parts.items()})

    @cached_property
    def coverage(self) -> tuple[range, ...]:
        """The positions that an answer of all parts stands on."""
        return joined([part.seen for part in self.parts.values()])

    @cached_property
    def wanted(self) -> Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """What each part is to return."""
        return {"out": (_FLOAT32, self.shape), "lse": (_FLOAT32, self.shape[:-1])}


class Plans:
    """Plans by what they depend on; those least recently used go first."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan] = {}
        self._bytes = 0
        self._used = 0

    def get(self, context: StoredContext, request: AttendRequest) -> Plan:
        """The plan of `request`, whose queries are checked too. Takes long where it `is_large`.

        Raises:
            EmptyContext: there is nothing to attend to.
            InvalidTensor, InvalidArgument: naming what is wrong.
        """
        plan = self.known(context, request)
        return self.keep(context, request, make_plan(context, request)) if plan is None else plan

    def known(self, context: StoredContext, request: AttendRequest) -> Plan | None:
        """The plan of `request`, if it was made before. Its queries are checked; raises as `get`."""
        require_attend(context, request)
        key = _key(context, request)
        plan = None if key is None else self._plans.get(key)
        if plan is not None:
            plan.used = self._used = self._used + 1
        return plan

    def keep(self, context: StoredContext, request: AttendRequest, plan: Plan) -> Plan:
        """Keep `plan`, which was made of `request`, for others like it. Returns it."""
        key = _key(context, request)
        if key is not None and key not in self._plans:
            self._plans[key] = plan
            self._bytes += plan.nbytes
            plan.used = self._used = self._used + 1
            while len(self._plans) > _PLANS or self._bytes > _PLANS_BYTES:
                oldest = min(self._plans, key=lambda key: self._plans[key].used)
                self._bytes -= self._plans.pop(oldest).nbytes
        return plan


def _key(context: StoredContext, request: AttendRequest) -> Hashable | None:
    """What a plan depends on; None: it hardly comes again."""
    positions = request.positions
    if positions is not None and positions.nbytes > _POSITIONS_BYTES:
        return None
    return (
        context.id,
        context.revision,
        len(request.queries),
        None if positions is None else (positions.dtype.str, positions.shape, positions.tobytes()),
        request.causal,
        request.window,
        request.scale,
        # Whether there is one: what is left of it is another number at each call.
        request.deadline_seconds is not None,
        id(request.encoding),  # there is one object of each; Python computes its hash step by step
        request.until,
    )


def deadline_of(request: AttendRequest) -> float:
    """Seconds the whole request may take.

    Raises:
        InvalidArgument: it names a deadline that is none.
    """
    deadline = DEFAULT_DEADLINE if request.deadline_seconds is None else request.deadline_seconds
    if not 0 < deadline <= MAX_DEADLINE:
        raise InvalidArgument(f"deadline is {deadline} s; it must be above 0 and at most {MAX_DEADLINE:.0f}")
    return deadline


def is_large(context: StoredContext, request: AttendRequest) -> bool:
    """Whether to plan it takes longer than the event loop may."""
    # Nothing is known of its shape yet: of one number there is no length.
    segments = len(context.segments)
    return segments > _MANY or sum(request.queries.shape[:1]) * segments > _LARGE


def require_attend(context: StoredContext, request: AttendRequest) -> None:
    """Refuse what can be no attend of this context.

    Raises:
        InvalidTensor: the queries have another shape, or are none.
        ResourceExhausted: they are too many.
    """
    spec, queries = context.spec, request.queries
    # Said with words where they do not fit, and where they may not be finite.
    if queries.ndim != 3 or queries.shape[1:] != (spec.query_heads, spec.key_dim) or not _plain(queries):
        require(queries, "queries", shape=("queries", spec.query_heads, spec.key_dim))
    count, segments = len(queries), len(context.segments)
    if not count:
        raise InvalidTensor("queries holds no queries; give at least one")
    if count > ATTEND_QUERIES:
        raise ResourceExhausted(
            f"bound attend-queries: {count:,} queries; an attend has {ATTEND_QUERIES:,} at most: ask for "
            "fewer at a time"
        )
    if 16 * count * segments > ATTEND_BYTES:
        raise _too_large(context, count, segments, 16 * count * segments)


def _plain(array: Array) -> bool:
    """Whether it is float32, and all of it finite."""
    return array.dtype == _FLOAT32 and bool(np.logical_and.reduce(np.isfinite(array), axis=None))


def require_answer(context: StoredContext, request: AttendRequest, plan: Plan) -> int:
    """The bytes an attend takes here, at most. Before any node is asked.

    Raises:
        ResourceExhausted: more than one attend may.
        MessageTooLarge: its answer, or its weights, would not fit a message.
    """
    (count, heads, _), parts, answer = plan.shape, len(plan.parts), plan.answer
    if plan.size > ATTEND_BYTES:
        raise _too_large(context, count, parts, plan.size)
    if answer > MESSAGE_LIMIT:
        raise MessageTooLarge(
            f"the answer to {count:,} queries of {heads} heads over {parts} segments takes {answer:,} bytes "
            f"and a message has {MESSAGE_LIMIT:,}: ask for fewer queries at a time"
        )
    if request.weights and (weights := 4 * count * heads * plan.tokens) > MESSAGE_LIMIT // 2:
        raise MessageTooLarge(
            f"the weights of {count} queries over {plan.tokens:,} tokens take "
            f"{weights:,} bytes, a message has {MESSAGE_LIMIT // 2:,} for them: "
            "ask for fewer queries at a time"
        )
    return plan.size


def _too_large(context: StoredContext, count: int, segments: int, size: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"bound attend-bytes: {count:,} queries over {segments:,} segments of context {context.spec.name!r} "
        f"take {size:,} bytes of the aggregator's memory; one attend may have {ATTEND_BYTES:,}: ask for "
        "fewer queries at a time"
    )


def make_plan(context: StoredContext, request: AttendRequest) -> Plan:
    """The plan of a request with these defaults filled in: positions, scale."""
    spec, count, tokens = context.spec, len(request.queries), context.tokens
    if not tokens:
        raise EmptyContext(f"context {spec.name!r} has no tokens yet; append some first")
    if request.until is not None:
        if request.until < 1:
            raise InvalidArgument(f"until is {request.until}; attend to at least one position")
        tokens = min(tokens, request.until)
    positions = request.positions
    if positions is None:
        if count > tokens and (request.causal or request.window is not None):
            raise InvalidArgument(
                f"{count} queries do not fit at the end of {tokens} tokens; give their positions"
            )
        positions = np.maximum(np.arange(tokens - count, tokens, dtype=np.int64), 0)
    require(positions, "positions", shape=(count,), dtype=np.int64)
    scale = 1 / math.sqrt(spec.key_dim) if request.scale is None else request.scale
    if not math.isfinite(scale):
        raise InvalidArgument(f"scale is {scale}; it must be a finite number")
    view = visible(tokens, positions, causal=request.causal, window=request.window)
    graph = library.forward_graph(count, spec.query_heads // spec.key_heads)
    # With a deadline each node returns its lse before its out: a certificate, should it be late.
    early = request.deadline_seconds is not None
    parts: dict[str, PlanPart] = {}
    any_sees = seen_by_any(view)
    covered = 0
    for segment in context.segments:
        cover = range(covered, covered + segment.positions.count)
        covered = cover.stop
        at = of_segment(view, segment.positions, library.TILE)
        if at is not None and any_sees is not None:
            seen = segment.positions.within(any_sees)
            parts[segment.id] = _part(
                context, segment, cover, seen, at, graph, scale, early, request.encoding
            )
    shape = (count, spec.query_heads, spec.value_dim)
    stretches = sum(part.seen.number for part in parts.values())
    return Plan(spec, shape, context.tokens, scale, request.encoding, parts, stretches)


def _part(
    context: StoredContext,
    segment: StoredSegment,
    cover: range,
    seen: Positions,
    view: SegmentView,
    graph: str,
    scale: float,
    early: bool,
    encoding: Encoding,
) -> PlanPart:
    values = Stored(context.values(segment.id), view.tiles)
    inputs: dict[str, Value] = {
        "q": Stored(QUERIES),
        "keys": Stored(context.keys(segment.id), view.tiles),
        "scale": np.asarray(scale, np.float32),
        "lo": view.lo,
        "hi": view.hi,
    }
    lse, out = {"lse": LSE}, {"out": "task/out"}
    give_lse, give_out = Return(LSE, "lse"), Return("task/out", "out", encoding)
    attend: tuple[Instruction, ...]
    if not early:
        run = Run(library.digest(graph), {**inputs, "values": values}, {**lse, **out})
        attend = (run, give_lse, give_out)
    elif graph == "attention_decode":
        # The scores are kept between the two graphs: the early lse costs nothing.
        scores = Run(library.digest("attention_scores"), inputs, {**lse, "p": "task/p"})
        rest = Run(library.digest("attention_values"), {"p": Stored("task/p"), "values": values}, out)
        attend = (scores, give_lse, rest, give_out)
    else:
        first = Run(library.digest("attention_lse"), inputs, lse)
        rest = Run(library.digest(graph), {**inputs, "values": values}, out)
        attend = (first, give_lse, rest, give_out)
    weights = Run(
        library.digest("attention_weights"), {**inputs, "lse": Stored(LSE)}, {"weights": "task/weights"}
    )
    return PlanPart(segment, cover, seen, view, attend, (weights, Return("task/weights", "weights")))
