"""What an attend asks of each segment: checked, planned once for all attends alike.

Queries differ from call to call; what they see and the programs that answer them do not, as long as the
context is the same and they sit at the same positions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from aggregator.contexts import StoredContext, StoredSegment
from edge_attention.core.attention import AttendRequest
from edge_attention.core.errors import EmptyContext, InvalidArgument, InvalidTensor
from edge_attention.core.program import Instruction, Program, Return, Run, Stored, Value
from edge_attention.core.tensors import Array, Encoding, require
from edge_attention.core.visibility import SegmentView, of_segment, visible
from edge_attention.graphs import library

DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 3600.0
QUERIES, LSE = "task/q", "task/lse"
_PLANS = 256
_POSITIONS_BYTES = 8 * 64
"""Positions of more queries than 64 are planned each time: they hardly come again."""


@dataclass(frozen=True, eq=False)
class Part:
    """A segment the queries see something of, and the programs over it but for their tensors."""

    segment: StoredSegment
    view: SegmentView
    attend: tuple[Instruction, ...]
    weigh: tuple[Instruction, ...]

    def program(
        self, instructions: tuple[Instruction, ...], tensors: Mapping[str, Array], seconds: float
    ) -> Program:
        segment = self.segment
        return Program("", segment.id, segment.tokens, instructions, 0, seconds, tensors)


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked request but for its queries. `shape` is that of `out`, `tokens` the context's then."""

    shape: tuple[int, ...]
    tokens: int
    scale: float
    deadline: float
    encoding: Encoding
    parts: Mapping[str, Part]


class Plans:
    """Plans by what they depend on; those least recently used go first."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def get(self, context: StoredContext, request: AttendRequest) -> Plan:
        """The plan of `request`, whose queries are checked too.

        Raises:
            EmptyContext: there is nothing to attend to.
            InvalidTensor, InvalidArgument: naming what is wrong.
        """
        spec, positions = context.spec, request.positions
        require(request.queries, "queries", shape=("queries", spec.query_heads, spec.key_dim))
        if not len(request.queries):
            raise InvalidTensor("queries holds no queries; give at least one")
        if positions is not None and positions.nbytes > _POSITIONS_BYTES:
            return make_plan(context, request)
        key = (
            context.id,
            context.revision,
            len(request.queries),
            None if positions is None else (positions.dtype.str, positions.shape, positions.tobytes()),
            request.causal,
            request.window,
            request.scale,
            request.deadline_seconds,
            request.encoding,
            request.until,
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = make_plan(context, request)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan


def make_plan(context: StoredContext, request: AttendRequest) -> Plan:
    """The plan of a request with these defaults filled in: positions, scale, deadline."""
    spec, count, tokens = context.spec, len(request.queries), context.tokens
    if request.until is not None:
        if request.until < 1:
            raise InvalidArgument(f"until is {request.until}; attend to at least one position")
        tokens = min(tokens, request.until)
    if not tokens:
        raise EmptyContext(f"context {spec.name!r} has no tokens yet; append some first")
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
    deadline = DEFAULT_DEADLINE if request.deadline_seconds is None else request.deadline_seconds
    if not 0 < deadline <= MAX_DEADLINE:
        raise InvalidArgument(f"deadline is {deadline} s; it must be above 0 and at most {MAX_DEADLINE:.0f}")
    view = visible(tokens, positions, causal=request.causal, window=request.window)
    graph = library.forward_graph(count, spec.query_heads // spec.key_heads)
    # With a deadline each node returns its lse before its out: a certificate, should it be late.
    early = request.deadline_seconds is not None
    parts = {
        segment.id: _part(context, segment, seen, graph, scale, early, request.encoding)
        for segment in context.segments
        if (seen := of_segment(view, segment.tokens, library.TILE)) is not None
    }
    shape = (count, spec.query_heads, spec.value_dim)
    return Plan(shape, context.tokens, scale, deadline, request.encoding, parts)


def _part(
    context: StoredContext,
    segment: StoredSegment,
    view: SegmentView,
    graph: str,
    scale: float,
    early: bool,
    encoding: Encoding,
) -> Part:
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
    return Part(segment, view, attend, (weights, Return("task/weights", "weights")))
