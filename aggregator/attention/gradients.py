"""The way back through an attend: (lse, dout, delta) down; the queries' gradient up, the tokens' if wanted.

Exact or not at all: a gradient that lacks a shard is another function's. The tokens' gradients lie by
position, so those of tokens that a node computed from its own data never leave it (graphs/attention/library).
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aggregator.attention.attend_plan import QUERIES, deadline_of, is_large, require_attend
from aggregator.attention.contexts import Contexts, StoredContext, StoredSegment
from aggregator.bounds.bounds import CONTEXT_STRETCHES
from aggregator.bounds.turns import Turns
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips, Wanted
from edge_attention.core.errors import (
    EmptyContext,
    FailedPrecondition,
    InvalidArgument,
    MessageTooLarge,
    PermissionDenied,
    ResourceExhausted,
)
from edge_attention.core.messages.attention import (
    ATTEND_BYTES,
    GRADIENT_SCORES,
    AttendGradientsRequest,
    AttendGradientsResponse,
    AttendRequest,
)
from edge_attention.core.messages.program import Return, Run, Stored
from edge_attention.core.positions import joined
from edge_attention.core.tensors import Float32, require
from edge_attention.core.visibility import SegmentView, Visibility, of_segment, visible
from edge_attention.graphs.attention import library
from edge_attention.wire.codec import MESSAGE_LIMIT

LSE, DOUT, DELTA = "task/lse", "task/dout", "task/delta"
_FLOAT32 = np.dtype(np.float32)
_FEW_STRETCHES = 1024
"""Ranges of positions that are held against each other on the event loop; more are on a thread."""
_ROOM = 64 * 1024
"""Bytes of an answer that are not its arrays, at most."""


class AttendGradients:
    """Answers AttendGradients: asks every segment that the queries see, and sums what comes."""

    def __init__(self, contexts: Contexts, trips: Trips, turns: Turns | None = None) -> None:
        self._contexts = contexts
        self._trips = trips
        self._turns = turns or Turns()

    async def find(
        self, request: AttendGradientsRequest, caller: str = "", seconds: float = math.inf
    ) -> AttendGradientsResponse:
        """The gradients over all tokens of the range. `seconds`: until `caller` has given up.

        Raises:
            NotFound, EmptyContext, InvalidTensor, InvalidArgument, MessageTooLarge, ResourceExhausted:
                nothing was asked of a node.
            PrivateTensor: gradients of tokens that a node computed from its data were asked for.
            Unavailable, DeadlineExceeded: a node that holds tokens did not answer; says which and why.
        """
        began = time.monotonic()
        context = self._contexts.get(request.context)
        context = replace(context, segments=list(context.segments))  # as it is now
        deadline = min(deadline_of(_as_attend(request)), seconds)
        span, scale, view = _checked(context, request)
        if request.coverage:
            if len(request.coverage) > CONTEXT_STRETCHES:
                raise InvalidArgument(
                    f"coverage has {len(request.coverage):,} ranges; the most is {CONTEXT_STRETCHES:,}"
                )
            few = len(request.coverage) + context.stretches <= _FEW_STRETCHES
            there = partial(_require_there, context, request.coverage)
            if few:
                there()
            else:
                await asyncio.to_thread(there)
        if _large(context, request):
            async with self._turns.plans.turn(caller, 0, deadline):
                parts = await asyncio.to_thread(_parts, context, view)
        else:
            parts = _parts(context, view)
        size = _required(context, request, len(span), parts)
        tiles = sum(len(seen.tiles) for _, _, seen in parts)
        spec, count = context.spec, len(request.queries)
        tokens = library.TILE * tiles
        work = float(2.5 * count * spec.query_heads * (spec.key_dim + spec.value_dim)) * tokens
        deadline = max(deadline - (time.monotonic() - began), 0.0)
        async with self._turns.attend(work, len(parts)).turn(caller, size, deadline) as turn:
            return await self._ask(context, request, span, scale, parts, max(deadline - turn.waited, 0.05))

    async def _ask(
        self,
        context: StoredContext,
        request: AttendGradientsRequest,
        span: range,
        scale: float,
        parts: list[tuple[StoredSegment, range, SegmentView]],
        deadline: float,
    ) -> AttendGradientsResponse:
        spec = context.spec
        shares: dict[str, Float32] = {}
        """Of segments that have come before one that goes before them."""
        dqueries = np.zeros(request.queries.shape, np.float32)
        turns = deque(segment.id for segment, _, _ in parts)
        dkeys = dvalues = None
        if request.tokens:
            dkeys = np.zeros((len(span), spec.key_heads, spec.key_dim), np.float32)
            dvalues = np.zeros((len(span), spec.key_heads, spec.value_dim), np.float32)
        by_id = {segment.id: (segment, seen) for segment, _, seen in parts}

        def take(answer: Returned) -> None:
            arrays = {name: answer.array(name) for name in answer.tensors}
            for name, array in arrays.items():
                require(array, name, shape=array.shape)
            shares[answer.shard] = arrays["dq"]
            while turns and turns[0] in shares:  # in order of position: the same bits, whoever comes first
                np.add(dqueries, shares.pop(turns.popleft()), out=dqueries)
            if dkeys is None or dvalues is None:
                return
            segment, seen = by_id[answer.shard]
            first = seen.tiles.start * library.TILE
            stop = min(first + len(arrays["dkeys"]), segment.positions.count)
            at = segment.positions.at(range(first, stop)) - span.start
            inside = (at >= 0) & (at < len(span))
            dkeys[at[inside]] = arrays["dkeys"][: stop - first][inside]
            dvalues[at[inside]] = arrays["dvalues"][: stop - first][inside]

        errands = [
            self._errand(context, request, segment, cover, seen, scale) for segment, cover, seen in parts
        ]
        tensors = {QUERIES: request.queries, LSE: request.lse, DOUT: request.dout, DELTA: request.delta}
        if errands:
            outcome = await self._trips.make(
                errands, deadline, take, tensors=tensors, believed=(PermissionDenied,)
            )
            if outcome.missing:
                raise outcome.cause(
                    f"the gradients of context {spec.name!r} lack {len(outcome.missing)} of {len(parts)} "
                    f"segments ({outcome.why}); a gradient is whole or none: ask again when they are there"
                )
        return AttendGradientsResponse(dqueries, dkeys, dvalues)

    def _errand(
        self,
        context: StoredContext,
        request: AttendGradientsRequest,
        segment: StoredSegment,
        cover: range,
        seen: SegmentView,
        scale: float,
    ) -> Errand:
        spec, columns = context.spec, len(seen.tiles) * library.TILE
        wanted: dict[str, Wanted] = {"dq": (_FLOAT32, request.queries.shape)}
        if request.tokens:
            wanted["dkeys"] = (_FLOAT32, (columns, spec.key_heads, spec.key_dim))
            wanted["dvalues"] = (_FLOAT32, (columns, spec.key_heads, spec.value_dim))
        inputs: dict[str, Any] = {
            "q": Stored(QUERIES),
            "keys": Stored(context.keys(segment.id), seen.tiles),
            "values": Stored(context.values(segment.id), seen.tiles),
            "scale": np.asarray(scale, np.float32),
            "lo": seen.lo,
            "hi": seen.hi,
            "lse": Stored(LSE),
            "dout": Stored(DOUT),
            "delta": Stored(DELTA),
        }
        run = Run(library.digest("attention_backward"), inputs, {name: f"task/{name}" for name in wanted})
        return Errand(
            shard=segment.id,
            holders=self._contexts.serving(context, segment),
            coverage=cover,
            instructions=(run, *(Return(f"task/{name}", name) for name in wanted)),
            wanted=wanted,
        )


def _as_attend(request: AttendGradientsRequest) -> AttendRequest:
    """The attend that these are the gradients of."""
    return AttendRequest(
        request.context,
        request.queries,
        request.positions,
        request.causal,
        request.window,
        request.scale,
        request.deadline_seconds,
        until=request.until,
    )


def _large(context: StoredContext, request: AttendGradientsRequest) -> bool:
    return is_large(context, _as_attend(request))


def _checked(context: StoredContext, request: AttendGradientsRequest) -> tuple[range, float, Visibility]:
    """The positions that are asked for, the scale, and what of them each query sees."""
    spec, count, tokens = context.spec, len(request.queries), context.tokens
    require_attend(context, _as_attend(request))
    if not tokens:
        raise EmptyContext(f"context {spec.name!r} has no tokens yet; append some first")
    per_head = (count, spec.query_heads)
    require(request.delta, "delta", shape=per_head)
    require(request.dout, "dout", shape=(*per_head, spec.value_dim))
    # A query that saw nothing has an lse of -inf.
    lse = np.where(np.isneginf(request.lse), np.float32(0), request.lse)
    require(lse, "lse", shape=per_head)
    until = tokens if request.until is None else min(tokens, request.until)
    if not 0 <= request.first < until:
        raise InvalidArgument(f"first is {request.first} and until {until}; ask for one position at least")
    span = range(request.first, until)
    positions = request.positions
    masked = request.causal or request.window is not None
    if positions is None and masked:
        raise InvalidArgument("gradients of an attend with causal or window need the queries' positions")
    if positions is None:
        positions = np.zeros(count, np.int64)
    require(positions, "positions", shape=(count,), dtype=np.int64)
    scale = 1 / math.sqrt(spec.key_dim) if request.scale is None else request.scale
    if not math.isfinite(scale):
        raise InvalidArgument(f"scale is {scale}; it must be a finite number")
    if (size := _bytes(context, count, len(span), request.tokens)) > MESSAGE_LIMIT - _ROOM:
        raise MessageTooLarge(
            f"the gradients of {count:,} queries and {len(span):,} tokens take {size:,} bytes and a message "
            f"has {MESSAGE_LIMIT:,}: ask for fewer queries or tokens at a time"
        )
    if (scores := count * spec.query_heads * len(span)) > GRADIENT_SCORES:
        raise ResourceExhausted(
            f"bound gradient-scores: {count:,} queries of {spec.query_heads} heads over {len(span):,} tokens "
            f"have {scores:,} scores; gradients are of {GRADIENT_SCORES:,} at most: ask for fewer queries or "
            "tokens at a time"
        )
    seen = visible(tokens, positions, causal=request.causal, window=request.window)
    stop = np.minimum(seen.stop, span.stop)
    return span, scale, Visibility(np.minimum(np.maximum(seen.start, span.start), stop), stop)


def _require_there(context: StoredContext, coverage: Sequence[range]) -> None:
    """Refuse gradients of an attend that stood on tokens which are no more.

    Raises FailedPrecondition: it says which.
    """
    there = joined([segment.positions for segment in context.segments])
    stops = [part.stop for part in there]
    for part in coverage:
        at = bisect_right(stops, part.start)  # the first stretch that ends behind where it begins
        start = part.start
        if at < len(there) and there[at].start <= start:
            start, at = stops[at], at + 1
        gone = range(start, min(there[at].start if at < len(there) else part.stop, part.stop))
        if gone:
            raise FailedPrecondition(
                f"tokens {gone.start:,} to {gone.stop:,} of context {context.spec.name!r}, on which the "
                "attend stood, have been trimmed since: attend again"
            )


def _parts(context: StoredContext, view: Visibility) -> list[tuple[StoredSegment, range, SegmentView]]:
    """The segments of which queries see something: each with its tokens' numbers, and what is seen."""
    parts = []
    covered = 0
    for segment in context.segments:
        cover = range(covered, covered + segment.positions.count)
        covered = cover.stop
        if (seen := of_segment(view, segment.positions, library.TILE)) is not None:
            parts.append((segment, cover, seen))
    return parts


def _required(
    context: StoredContext,
    request: AttendGradientsRequest,
    tokens: int,
    parts: list[tuple[StoredSegment, range, SegmentView]],
) -> int:
    """The bytes that an answer over `parts` takes here, at most. Before any node is asked.

    Raises:
        ResourceExhausted: more than one call may, here or at a node.
    """
    spec, count = context.spec, len(request.queries)
    # A node computes whole tiles, however few of their tokens are asked for.
    columns = max((len(seen.tiles) for _, _, seen in parts), default=0) * library.TILE
    if (scores := count * spec.query_heads * columns) > GRADIENT_SCORES:
        raise ResourceExhausted(
            f"bound gradient-scores: {count:,} queries of {spec.query_heads} heads over tiles of {columns:,} "
            f"tokens have {scores:,} scores; gradients are of {GRADIENT_SCORES:,} at most: ask for fewer "
            "queries or tokens at a time"
        )
    # All but the first segment's share of the queries' may have to wait for that.
    size = _bytes(context, count, tokens, request.tokens) + len(parts) * request.queries.nbytes
    if size > ATTEND_BYTES:
        raise ResourceExhausted(
            f"bound attend-bytes: gradients of {count:,} queries over {len(parts):,} segments of context "
            f"{spec.name!r} take {size:,} bytes of the aggregator's memory; one call may have "
            f"{ATTEND_BYTES:,}: ask for fewer queries at a time"
        )
    return size


def _bytes(context: StoredContext, queries: int, tokens: int, with_tokens: bool) -> int:
    """Bytes of an answer's arrays."""
    spec = context.spec
    each = spec.key_heads * (spec.key_dim + spec.value_dim) if with_tokens else 0
    return 4 * (queries * spec.query_heads * spec.key_dim + tokens * each)
