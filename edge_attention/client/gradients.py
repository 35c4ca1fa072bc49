"""Gradients of an attend, asked for in calls that fit a message, and summed here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from edge_attention.client.connection import DEADLINE_MARGIN, MIB, ClientConnection
from edge_attention.core.messages import attention as wire
from edge_attention.core.tensors import Float32
from edge_attention.wire import services

__all__ = ["Gradients", "find_gradients"]

HALF = MIB * 3 // 2
"""Bytes that queries, and tokens, may take of one message."""
TILE = 512
"""Tokens that a node computes at once, however few of them a call is about."""
AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of a loss, by what was attended.

    Attributes:
        queries: float32 [queries, query_heads, key_dim].
        keys: float32 [tokens, key_heads, key_dim], by position; None if not asked for.
        values: float32 [tokens, key_heads, value_dim]; the same.
        calls: how many calls it was divided in.
    """

    queries: Float32
    keys: Float32 | None
    values: Float32 | None
    calls: int


async def find_gradients(
    connection: ClientConnection,
    spec: wire.ContextSpec,
    whole: wire.AttendGradientsRequest,
    seconds: float,
    segments: int,
) -> Gradients:
    """The gradients that `whole` asks for, whose `until` is given, within `seconds`.

    `segments`: of the context: each one's share of the queries' gradient may have to wait at the aggregator.
    """
    began = time.monotonic()
    count, heads = len(whole.queries), spec.query_heads
    assert whole.until is not None
    most = min(
        HALF // (4 * heads * (spec.key_dim + spec.value_dim + 2)),
        wire.GRADIENT_SCORES // (heads * 2 * TILE),
        (wire.ATTEND_BYTES - MIB * 4) // (4 * heads * spec.key_dim * max(segments, 1)),
    )
    step = min(count, max(1, most))
    # Where a stretch begins and ends in the middle of tiles it has a part of one more of them.
    tiles = max(2, wire.GRADIENT_SCORES // (step * heads * TILE))
    stretch = (tiles - 1) * TILE + 1
    if whole.tokens:
        stretch = min(stretch, max(1, HALF // (4 * spec.key_heads * (spec.key_dim + spec.value_dim))))
    gate = asyncio.Semaphore(AT_ONCE)

    def ask(part: slice, span: range) -> Callable[[], Awaitable[wire.AttendGradientsResponse]]:
        async def call() -> wire.AttendGradientsResponse:
            left = max(1e-3, seconds - (time.monotonic() - began))
            request = wire.AttendGradientsRequest(
                context=whole.context,
                queries=whole.queries[part],
                lse=whole.lse[part],
                dout=whole.dout[part],
                delta=whole.delta[part],
                positions=None if whole.positions is None else whole.positions[part],
                causal=whole.causal,
                window=whole.window,
                scale=whole.scale,
                deadline_seconds=left,
                first=span.start,
                until=span.stop,
                tokens=whole.tokens,
                coverage=whole.coverage,
            )
            return await connection.caller.unary(services.ATTEND_GRADIENTS, request, left + DEADLINE_MARGIN)

        return call

    spans = [range(at, min(at + stretch, whole.until)) for at in range(whole.first, whole.until, stretch)]
    groups = [slice(at, min(at + step, count)) for at in range(0, count, step)]
    queries = np.zeros(whole.queries.shape, np.float32)
    tokens = whole.until - whole.first if whole.tokens else 0
    keys = np.zeros((tokens, spec.key_heads, spec.key_dim), np.float32)
    values = np.zeros((tokens, spec.key_heads, spec.value_dim), np.float32)
    for part in groups:  # one group's calls at once: memory is of the answers that wait to be summed

        async def patient(span: range, part: slice = part) -> wire.AttendGradientsResponse:
            async with gate:
                return await connection.patiently(ask(part, span), began + seconds)

        tasks = [asyncio.ensure_future(patient(span)) for span in spans]
        try:
            for span, task in zip(spans, tasks, strict=True):
                found = await task
                queries[part] += found.dqueries
                if found.dkeys is not None and found.dvalues is not None:
                    at = slice(span.start - whole.first, span.stop - whole.first)
                    keys[at] += found.dkeys
                    values[at] += found.dvalues
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    calls = len(spans) * len(groups)
    return Gradients(queries, keys if whole.tokens else None, values if whole.tokens else None, calls)
