"""AttentionService: what clients call about contexts. Each method is a few lines over the recipe."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from aggregator.attention.append import APPEND_SECONDS, Appender
from aggregator.attention.attend import Attender
from aggregator.attention.contexts import Contexts, StoredContext
from aggregator.attention.gradients import AttendGradients
from aggregator.bounds.bounds import (
    APPEND_BYTES,
    APPEND_COMING_SECONDS,
    APPEND_IDLE_SECONDS,
    APPENDS,
    REQUEST_BYTES,
)
from aggregator.bounds.budget import Budgets, Lease
from aggregator.bounds.turns import Turns
from aggregator.engine.arriving import Arriving
from aggregator.engine.bulk import Bulk
from aggregator.engine.endings import to_the_end
from aggregator.engine.listed import listed
from aggregator.engine.trip import Trips
from aggregator.engine.waiting import each_within
from aggregator.trust.callers import caller_of, owner_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages import attention
from edge_attention.core.messages.program import Drop
from edge_attention.core.tensors import Encoded
from edge_attention.wire import services

CREATED = AuditLine("context_created", lambda q, r: {"context": q.spec.name})
DROPPED = AuditLine("context_dropped", lambda q, r: {"context": q.context})

AT_ONCE = 4096
"""Stretches of positions from which a context is described in a thread."""
MANY_PARTS = 256
"""Segments from which it is; masses, missing segments and stretches of an answer from which that is encoded
in one."""
LARGE_ANSWER = 512 * 1024
"""Bytes of its arrays from which, too: they are copied several times on their way into a message."""


class AttentionApi:
    def __init__(
        self,
        trips: Trips,
        bulk: Bulk,
        contexts: Contexts,
        appender: Appender,
        attender: Attender,
        budgets: Budgets | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._trips = trips
        self._bulk = bulk
        self._contexts = contexts
        self._appender = appender
        self._attender = attender
        self._budgets = budgets or Budgets()
        self._turns = turns or Turns()
        self._gradients = AttendGradients(contexts, trips, self._turns)

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.CREATE_CONTEXT, self.create_context, "user", CREATED),
            Endpoint(services.APPEND, self.append, "user"),
            Endpoint(services.APPEND_DATASET, self.append_dataset, "user"),
            Endpoint(services.ATTEND, self.attend, "user"),
            Endpoint(services.ATTEND_GRADIENTS, self.attend_gradients, "user"),
            Endpoint(services.DESCRIBE_CONTEXT, self.describe_context, "viewer"),
            Endpoint(services.LIST_CONTEXTS, self.list_contexts, "viewer"),
            Endpoint(services.DROP_CONTEXT, self.drop_context, "operator", DROPPED),
        )

    async def create_context(
        self, request: attention.CreateContextRequest, call: Any
    ) -> attention.CreateContextResponse:
        # What is written down is there, whether its caller still waits or not.
        context = await to_the_end(self._contexts.create(request.spec, owner_of(call)), counts=True)
        return attention.CreateContextResponse(self._contexts.describe(context))

    async def append(
        self, requests: AsyncIterator[attention.AppendRequest], call: Any
    ) -> attention.AppendResponse:
        caller = caller_of(call)
        with self._budgets.take(APPENDS, caller), self._budgets.take(APPEND_BYTES, caller, 0) as room:
            return await self._append(requests, caller, room, call)

    async def _append(
        self, requests: AsyncIterator[attention.AppendRequest], caller: str, room: Lease, call: Any
    ) -> attention.AppendResponse:
        context = node = request_id = ""
        arriving: Arriving | None = None
        coming = each_within(requests, APPEND_IDLE_SECONDS, "an append's next message", APPEND_COMING_SECONDS)
        try:
            async for request in coming:
                if arriving is None:
                    context, node, request_id = request.context, request.node, request.request_id
                    spec = self._contexts.get(context).spec
                    if request_id and request.keys is None and request.values is None:
                        return await self._appender.outcome(context, request_id)
                    arriving = Arriving(self._bulk.folder, spec, room)
                elif (request.context or context, request.node or node) != (context, node):
                    raise InvalidArgument("one append goes to one context, and to one node if any is named")
                if request.keys is None or request.values is None:
                    raise InvalidTensor("a message of an append brings no keys or no values; send both")
                await arriving.take(request.keys, request.values)
                del request  # not kept while the next one is waited for
            if arriving is None:
                raise InvalidArgument("an append without a message; send keys and values")
            keys, values = await arriving.tokens()
            seconds = _left(call, APPEND_SECONDS)
            return await self._appender.append(context, node, keys, values, request_id, caller, seconds)
        finally:
            if arriving is not None:
                arriving.close()

    async def append_dataset(
        self, request: attention.AppendDatasetRequest, call: Any
    ) -> attention.AppendResponse:
        caller = caller_of(call)
        with self._budgets.take(APPENDS, caller):
            return await self._appender.append_dataset(request, caller, _left(call, APPEND_SECONDS))

    async def attend(self, request: attention.AttendRequest, call: Any) -> attention.AttendResponse | bytes:
        caller = caller_of(call)
        size = request.queries.nbytes + (request.positions.nbytes if request.positions is not None else 0)
        with self._budgets.take(REQUEST_BYTES, caller, size):
            response = await self._attender.attend(request, caller, _left(call, math.inf))
        parts = len(response.mass) + len(response.missing) + len(response.coverage)
        if parts < MANY_PARTS and _bytes(response) < LARGE_ANSWER:
            return response
        return await asyncio.to_thread(services.ATTEND.response.encode, response)

    async def attend_gradients(self, request: attention.AttendGradientsRequest, call: Any) -> bytes:
        caller = caller_of(call)
        arrays = (request.queries, request.lse, request.dout, request.delta, request.positions)
        size = sum(array.nbytes for array in arrays if array is not None)
        with self._budgets.take(REQUEST_BYTES, caller, size):
            response = await self._gradients.find(request, caller, _left(call, math.inf))
        return await asyncio.to_thread(services.ATTEND_GRADIENTS.response.encode, response)

    async def describe_context(
        self, request: attention.DescribeContextRequest, call: Any
    ) -> attention.DescribeContextResponse | bytes:
        context = self._contexts.get(request.context)
        if len(context.segments) < MANY_PARTS and context.stretches < AT_ONCE:
            return attention.DescribeContextResponse(self._contexts.describe(context, whole=True))
        return await asyncio.to_thread(self._described, replace(context, segments=list(context.segments)))

    def _described(self, context: StoredContext) -> bytes:
        described = attention.DescribeContextResponse(self._contexts.describe(context, whole=True))
        return services.DESCRIBE_CONTEXT.response.encode(described)

    async def list_contexts(
        self, request: attention.ListContextsRequest, call: Any
    ) -> attention.ListContextsResponse | bytes:
        contexts = self._contexts.list()

        def make() -> attention.ListContextsResponse:
            return attention.ListContextsResponse(tuple(map(self._contexts.describe, contexts)))

        count = len(contexts) + sum(len(context.segments) for context in contexts)
        return await listed(services.LIST_CONTEXTS, call, count, make, self._turns)

    async def drop_context(
        self, request: attention.DropContextRequest, call: Any
    ) -> attention.DropContextResponse:
        context = self._contexts.get(request.context)
        async with context.lock:
            self._contexts.require_current(context)
            # Above that of any append that is under way at a node yet: none brings the context back.
            revision = await self._contexts.revisions.take()
            await to_the_end(self._drop(context, revision), counts=True)
        return attention.DropContextResponse()

    async def _drop(self, context: StoredContext, revision: int) -> None:
        await self._contexts.drop(context)
        for node in {name for segment in context.segments for name in segment.holders}:
            self._trips.post(node, (Drop((f"context/{context.id}/",), revision),))


def _bytes(response: attention.AttendResponse) -> int:
    out = response.out.array if isinstance(response.out, Encoded) else response.out
    bound = response.bound.error if response.bound is not None else None
    return sum(array.nbytes for array in (out, response.weights, bound) if array is not None)


def _left(call: Any, most: float) -> float:
    """Seconds until the caller has given up, `most` if it said nothing or more."""
    left = call.time_remaining()
    return most if left is None else min(max(float(left), 0.0), most)
