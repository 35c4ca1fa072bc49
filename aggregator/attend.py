"""The attend recipe: queries down, (out, lse) up, merged in shard order; what is missing is labelled."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator.contexts import Contexts, StoredContext, StoredSegment
from aggregator.dispatch import Dispatcher, Outcome
from aggregator.exchange import Assignment
from aggregator.metrics import Metrics
from edge_attention.core.attention import AttendRequest, AttendResponse, Bound, Missing, ShardMass
from edge_attention.core.bounds import error_bound, lse_upper_bound
from edge_attention.core.errors import (
    EdgeAttentionError,
    EmptyContext,
    InvalidArgument,
    InvalidTensor,
    MessageTooLarge,
)
from edge_attention.core.fold import Fold, join
from edge_attention.core.partial import Partial, identity, mass, merge
from edge_attention.core.program import Contribution, Instruction, Program, Return, Run, Stored, Value
from edge_attention.core.tensors import Encoded, Encoding, Float32, Int64, require
from edge_attention.core.visibility import SegmentView, Visibility, of_segment, visible
from edge_attention.graphs import library
from edge_attention.wire.codec import MESSAGE_LIMIT

DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 3600.0


@dataclass(frozen=True, eq=False)
class _Query:
    """A checked request."""

    request: AttendRequest
    queries: Float32
    positions: Int64
    tokens: int
    """Of the context when it was asked; it may grow before the answer is there."""
    scale: float
    view: Visibility
    deadline: float
    early: bool
    """Whether each node returns its lse before its out, for a certificate if it is late."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A segment the queries see something of."""

    segment: StoredSegment
    view: SegmentView


class Attender:
    """Answers attends."""

    def __init__(self, contexts: Contexts, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._contexts = contexts
        self._dispatcher = dispatcher
        self._metrics = metrics

    async def attend(self, request: AttendRequest) -> AttendResponse:
        """Exact attention over the context, or over what answered, labelled and bounded.

        Raises:
            NotFound, EmptyContext, InvalidTensor, InvalidArgument: nothing was asked of a node.
        """
        try:
            response = await self._attend(request)
        except EdgeAttentionError:
            self._metrics.queries.labels("failed").inc()
            raise
        self._metrics.queries.labels("exact" if response.exact else "partial").inc()
        for stage, seconds in response.seconds.items():
            self._metrics.query_seconds.labels(stage).observe(seconds)
        return response

    async def _attend(self, request: AttendRequest) -> AttendResponse:
        started = time.perf_counter()
        context = self._contexts.get(request.context)
        query = check(context, request)
        parts = {
            segment.id: _Part(segment, view)
            for segment in context.segments
            if (view := of_segment(query.view, segment.tokens, library.TILE)) is not None
        }
        shape = (*query.queries.shape[:2], context.spec.value_dim)
        fold = Fold[Partial]({id: part.segment.tokens for id, part in parts.items()}, merge)
        lses: dict[str, Float32] = {}
        merging = 0.0

        def on(assignment: Assignment, node: str, contribution: Contribution) -> None:
            nonlocal merging
            tensors = contribution.tensors
            lse = tensors.get("lse", lses.get(assignment.shard))
            if not isinstance(lse, np.ndarray):
                raise InvalidTensor(f"node {node!r} returned no lse for shard {assignment.shard!r}")
            begun = time.perf_counter()
            if "out" in tensors and not contribution.final:
                raise InvalidTensor(f"node {node!r} returned out before its last word on {assignment.shard}")
            if "out" in tensors:
                partial = Partial(tensors["out"], lse)  # type: ignore[arg-type]
                partial = partial.check(shape, f"node {node!r}, shard {assignment.shard!r}")
                fold.add(assignment.shard, contribution.coverage, partial)
                lse = partial.lse
            elif contribution.final:
                raise InvalidTensor(f"node {node!r} returned no out for shard {assignment.shard!r}")
            else:
                Partial(np.zeros(shape, np.float32), lse).check(shape, f"node {node!r}")
            lses[assignment.shard] = lse
            merging += time.perf_counter() - begun

        planned = time.perf_counter()
        outcome = await self._dispatcher.run(
            [self._assignment(context, query, part) for part in parts.values()], query.deadline, on
        )
        answered = time.perf_counter()
        merged = fold.result() or identity(shape)
        response = self._response(context, query, parts, outcome, lses, merged)
        merging += time.perf_counter() - answered
        weights = None
        if request.weights:
            weights = await self._weights(context, query, parts, outcome, merged.lse)
        ended = time.perf_counter()
        self._metrics.merge_seconds.observe(merging)
        seconds = {
            "plan": planned - started,
            "wait": answered - planned,
            "merge": merging,
            "node_run": max(outcome.run_seconds.values(), default=0.0),
            "all": ended - started,
        }
        return AttendResponse(**{**vars(response), "weights": weights, "seconds": seconds})

    def _assignment(self, context: StoredContext, query: _Query, part: _Part) -> Assignment:
        inputs = self._inputs(context, query, part)
        values = Stored(context.values(part.segment.id), part.view.tiles)
        group = context.spec.query_heads // context.spec.key_heads
        graph = library.forward_graph(len(query.queries), group)
        lse, out = {"lse": "task/lse"}, {"out": "task/out"}
        give_lse = Return("task/lse", "lse")
        give_out = Return("task/out", "out", query.request.encoding)
        instructions: tuple[Instruction, ...]
        if not query.early:
            run = Run(library.digest(graph), {**inputs, "values": values}, {**lse, **out})
            instructions = (run, give_lse, give_out)
        elif graph == "attention_decode":
            # The scores are kept between the two graphs: the early lse costs nothing.
            scores = Run(library.digest("attention_scores"), inputs, {**lse, "p": "task/p"})
            rest = Run(library.digest("attention_values"), {"p": Stored("task/p"), "values": values}, out)
            instructions = (scores, give_lse, rest, give_out)
        else:
            first = Run(library.digest("attention_lse"), inputs, lse)
            rest = Run(library.digest(graph), {**inputs, "values": values}, out)
            instructions = (first, give_lse, rest, give_out)
        program = Program("", part.segment.id, part.segment.tokens, instructions, 0, query.deadline)
        return Assignment(part.segment.id, self._contexts.serving(context, part.segment), program)

    def _inputs(self, context: StoredContext, query: _Query, part: _Part) -> dict[str, Value]:
        return {
            "q": query.queries,
            "keys": Stored(context.keys(part.segment.id), part.view.tiles),
            "scale": np.asarray(query.scale, np.float32),
            "lo": part.view.lo,
            "hi": part.view.hi,
        }

    def _response(
        self,
        context: StoredContext,
        query: _Query,
        parts: Mapping[str, _Part],
        outcome: Outcome,
        lses: Mapping[str, Float32],
        merged: Partial,
    ) -> AttendResponse:
        masses = tuple(
            ShardMass(id, node, parts[id].segment.tokens, mass(lses[id], merged.lse))
            for id, node in outcome.answered.items()
        )
        missing = tuple(
            Missing(id, parts[id].segment.tokens, parts[id].segment.holders, reason)
            for id, reason in outcome.missing.items()
        )
        bound = None
        if missing:
            bounds = [
                (
                    lses[m.shard] if m.shard in lses else self._lse_bound(query, parts[m.shard]),
                    parts[m.shard].segment.summary,
                )
                for m in missing
            ]
            error = error_bound(merged, bounds)
            if query.request.encoding is Encoding.FLOAT16:
                error = error + self._rounding(parts, outcome)
            bound = Bound(error, all(m.shard in lses for m in missing))
        return AttendResponse(
            out=Encoded(merged.out, query.request.encoding),
            lse=merged.lse,
            exact=not missing,
            coverage=join(parts[id].segment.tokens for id in outcome.answered),
            mass=masses,
            tokens=query.tokens,
            bound=bound,
            missing=missing,
        )

    def _rounding(self, parts: Mapping[str, _Part], outcome: Outcome) -> np.float32:
        """What out in float16 may add to an error: half a unit of the largest value at the node, and here."""
        summaries = [parts[id].segment.summary for id in outcome.answered]
        largest = max((np.maximum(-s.value_min, s.value_max).max() for s in summaries), default=0.0)
        return np.float32(largest * 2.0**-10 + 2.0**-24)

    def _lse_bound(self, query: _Query, part: _Part) -> Float32:
        seen = (part.view.hi - part.view.lo).astype(np.float32)
        return lse_upper_bound(query.queries, part.segment.summary, query.scale, seen)

    async def _weights(
        self,
        context: StoredContext,
        query: _Query,
        parts: Mapping[str, _Part],
        outcome: Outcome,
        lse: Float32,
    ) -> Float32:
        """Every token's global attention weight, computed where the token is from the merged lse."""
        weights = np.zeros((*query.queries.shape[:2], query.tokens), np.float32)
        if weights.nbytes > MESSAGE_LIMIT // 2:
            raise MessageTooLarge(
                f"the weights of {len(query.queries)} queries over {query.tokens:,} tokens take "
                f"{weights.nbytes:,} bytes, a message has {MESSAGE_LIMIT // 2:,} for them: "
                "ask for fewer queries at a time"
            )

        def on(assignment: Assignment, node: str, contribution: Contribution) -> None:
            part = parts[assignment.shard]
            first = part.segment.tokens.start + part.view.tiles.start * library.TILE
            stop = min(first + len(part.view.tiles) * library.TILE, part.segment.tokens.stop)
            returned = contribution.tensors.get("weights")
            if not isinstance(returned, np.ndarray):
                raise InvalidTensor(f"node {node!r} returned no weights")
            tokens = len(part.view.tiles) * library.TILE
            require(returned, f"node {node!r}: weights", shape=(*weights.shape[:2], tokens))
            weights[:, :, first:stop] = returned[:, :, : stop - first]

        assignments = []
        for id, node in outcome.answered.items():
            inputs = {**self._inputs(context, query, parts[id]), "lse": lse}
            run = Run(library.digest("attention_weights"), inputs, {"weights": "task/weights"})
            program = Program(
                "",
                id,
                parts[id].segment.tokens,
                (run, Return("task/weights", "weights")),
                deadline_seconds=query.deadline,
            )
            holders = (node, *(n for n in parts[id].segment.holders if n != node))
            assignments.append(Assignment(id, holders, program))
        second = await self._dispatcher.run(assignments, query.deadline, on)
        for id in (*second.missing, *outcome.missing):
            # Not known is not zero.
            tokens = parts[id].segment.tokens
            weights[:, :, tokens.start : tokens.stop] = np.nan
        return weights


def check(context: StoredContext, request: AttendRequest) -> _Query:
    """The request with its defaults filled in.

    Raises:
        EmptyContext: there is nothing to attend to.
        InvalidTensor, InvalidArgument: naming what is wrong.
    """
    spec = context.spec
    require(request.queries, "queries", shape=("queries", spec.query_heads, spec.key_dim))
    count = len(request.queries)
    if not count:
        raise InvalidTensor("queries holds no queries; give at least one")
    tokens = context.tokens
    if request.until is not None:
        if request.until < 1:
            raise InvalidArgument(f"until is {request.until}; attend to at least one position")
        tokens = min(tokens, request.until)
    if not tokens:
        raise EmptyContext(f"context {spec.name!r} has no tokens yet; append some first")
    positions = request.positions
    if positions is None:
        positions = np.arange(tokens - count, tokens, dtype=np.int64)
        if count > tokens and (request.causal or request.window is not None):
            raise InvalidArgument(
                f"{count} queries do not fit at the end of {tokens} tokens; give their positions"
            )
        positions = np.maximum(positions, 0)
    require(positions, "positions", shape=(count,), dtype=np.int64)
    scale = 1 / math.sqrt(spec.key_dim) if request.scale is None else request.scale
    if not math.isfinite(scale):
        raise InvalidArgument(f"scale is {scale}; it must be a finite number")
    deadline = DEFAULT_DEADLINE if request.deadline_seconds is None else request.deadline_seconds
    if not 0 < deadline <= MAX_DEADLINE:
        raise InvalidArgument(f"deadline is {deadline} s; it must be above 0 and at most {MAX_DEADLINE:.0f}")
    if request.encoding not in (Encoding.RAW, Encoding.FLOAT16):
        raise InvalidArgument(f"out does not travel as {request.encoding}")
    view = visible(tokens, positions, causal=request.causal, window=request.window)
    early = request.deadline_seconds is not None
    return _Query(request, request.queries, positions, context.tokens, scale, view, deadline, early)
