"""How gradients of an attend are asked for in several calls: each within the bounds of who answers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from edge_attention.client.gradients import TILE, find_gradients
from edge_attention.core.errors import EmptyContext, InvalidTensor
from edge_attention.core.messages.attention import (
    ATTEND_BYTES,
    GRADIENT_SCORES,
    AttendGradientsRequest,
    AttendGradientsResponse,
    ContextSpec,
)

SPEC = ContextSpec("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)


class Asked:
    """A connection that keeps what is asked for, and answers ones."""

    def __init__(self):
        self.requests = []
        self.caller = self

    async def unary(self, method, request, seconds):
        self.requests.append(request)
        span = request.until - request.first
        ones = [np.ones((span, 2, dim), np.float32) for dim in (8, 6)] if request.tokens else [None, None]
        return AttendGradientsResponse(np.ones(request.queries.shape, np.float32), *ones)

    async def patiently(self, ask, until):
        return await ask()


@pytest.mark.parametrize(
    ("count", "tokens", "segments"), [(5000, 3000, 1), (3, 100_000, 2), (2000, 2000, 2048)]
)
@pytest.mark.parametrize("with_tokens", [False, True])
def test_each_call_is_within_the_bounds_and_all_of_them_are_everything(count, tokens, segments, with_tokens):
    asked = Asked()
    per = np.zeros((count, 4), np.float32)
    whole = AttendGradientsRequest(
        "c",
        np.ones((count, 4, 8), np.float32),
        per,
        np.ones((count, 4, 6), np.float32),
        per,
        until=tokens,
        tokens=with_tokens,
    )
    found = asyncio.run(find_gradients(asked, SPEC, whole, 60.0, segments))
    assert found.calls == len(asked.requests)
    covered = np.zeros((count, tokens), np.int8) if count * tokens < 1e8 else None
    begin = 0
    for request in asked.requests:
        span, rows = request.until - request.first, len(request.queries)
        tiles = 1 if span == 1 else (span - 2) // TILE + 2  # that so many tokens lie in, at most
        assert rows * 4 * tiles * TILE <= GRADIENT_SCORES
        assert request.queries.nbytes * segments + (4 << 20) <= ATTEND_BYTES
        if covered is not None:
            covered[begin : begin + rows, request.first : request.until] += 1
            begin = (begin + rows) % count if request.until == tokens else begin
    assert covered is None or (covered == 1).all()
    # Ones of each call: of the queries as many as there are stretches, of the tokens as groups of queries.
    assert (found.queries == len({request.first for request in asked.requests})).all()
    if with_tokens:
        assert (found.keys == sum(request.first == 0 for request in asked.requests)).all()


def test_gradients_of_nothing_are_refused(client):
    context = client.create_context("memory", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
    some = [np.ones((2, 4, 8)), np.ones((2, 4, 6)), np.ones((2, 4)), np.ones((2, 4, 6))]
    with pytest.raises(EmptyContext, match="'memory' has no tokens yet"):
        context.gradients(*some)
    with pytest.raises(InvalidTensor, match="queries holds no queries; give at least one"):
        context.gradients(*(array[:0] for array in some))
