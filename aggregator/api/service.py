"""The client services: each method is a few lines over a recipe. A new client call goes here."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from aggregator.attention.append import APPEND_SECONDS, Appender
from aggregator.attention.attend import Attender
from aggregator.attention.contexts import Contexts
from aggregator.bounds.bounds import (
    APPEND_BYTES,
    APPEND_COMING_SECONDS,
    APPEND_IDLE_SECONDS,
    APPENDS,
    DOWNLOADS,
    REQUEST_BYTES,
    UPLOAD_BYTES,
    UPLOAD_IDLE_SECONDS,
    UPLOADS,
)
from aggregator.bounds.budget import Budgets, Lease
from aggregator.engine.arriving import Arriving
from aggregator.engine.bulk import Bulk
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.waiting import each_within
from aggregator.fleet.membership import Membership
from aggregator.serving.rpc import Handler
from aggregator.trust.callers import caller_of, owner_of
from aggregator.trust.revocations import Revoked
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages import attention, fleet
from edge_attention.core.messages.link import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.core.messages.program import Drop
from edge_attention.wire import services
from edge_attention.wire.methods import AnyMethod


class Api:
    """Serves fleet, bulk and attention; training has its own (training/service.py)."""

    def __init__(
        self,
        membership: Membership,
        dispatcher: Dispatcher,
        bulk: Bulk,
        contexts: Contexts,
        appender: Appender,
        attender: Attender,
        revoked: Revoked = dict,
        budgets: Budgets | None = None,
    ) -> None:
        self._membership = membership
        self._dispatcher = dispatcher
        self._bulk = bulk
        self._contexts = contexts
        self._appender = appender
        self._attender = attender
        self._revoked = revoked
        self._budgets = budgets or Budgets()

    def handlers(self) -> Mapping[AnyMethod, Handler]:
        return {
            services.LIST_NODES: self.list_nodes,
            services.BULK_UPLOAD: self.upload,
            services.BULK_DOWNLOAD: self.download,
            services.CREATE_CONTEXT: self.create_context,
            services.APPEND: self.append,
            services.APPEND_DATASET: self.append_dataset,
            services.ATTEND: self.attend,
            services.DESCRIBE_CONTEXT: self.describe_context,
            services.LIST_CONTEXTS: self.list_contexts,
            services.DROP_CONTEXT: self.drop_context,
        }

    async def list_nodes(self, request: fleet.ListNodesRequest, call: Any) -> fleet.ListNodesResponse:
        revoked, nodes = self._revoked(), self._membership.nodes(time.monotonic())
        return fleet.ListNodesResponse(
            tuple(replace(node, revoked_at=revoked.get(node.name)) for node in nodes)
        )

    async def upload(self, chunks: AsyncIterator[UploadChunk], call: Any) -> Uploaded:
        caller, sender = caller_of(call), f"client {call.peer()} {id(chunks)}"
        with self._budgets.take(UPLOADS, caller), self._budgets.take(UPLOAD_BYTES, caller, 0) as room:
            try:
                coming = each_within(chunks, UPLOAD_IDLE_SECONDS, "an upload's next chunk")
                return await self._bulk.upload(sender, coming, keep=True, room=room)
            finally:
                # A connection of a client's is one try; it does not come back to finish a part.
                self._bulk.forget(sender)

    async def download(self, request: DownloadRequest, call: Any) -> AsyncIterator[Chunk]:
        with self._budgets.take(DOWNLOADS, caller_of(call)):
            async for chunk in self._bulk.download(request):
                yield chunk
                del chunk

    async def create_context(
        self, request: attention.CreateContextRequest, call: Any
    ) -> attention.CreateContextResponse:
        context = self._contexts.create(request.spec, owner_of(call))
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

    async def attend(self, request: attention.AttendRequest, call: Any) -> attention.AttendResponse:
        caller = caller_of(call)
        size = request.queries.nbytes + (request.positions.nbytes if request.positions is not None else 0)
        with self._budgets.take(REQUEST_BYTES, caller, size):
            return await self._attender.attend(request, caller, _left(call, math.inf))

    async def describe_context(
        self, request: attention.DescribeContextRequest, call: Any
    ) -> attention.DescribeContextResponse:
        context = self._contexts.get(request.context)
        return attention.DescribeContextResponse(self._contexts.describe(context))

    async def list_contexts(
        self, request: attention.ListContextsRequest, call: Any
    ) -> attention.ListContextsResponse:
        return attention.ListContextsResponse(
            tuple(self._contexts.describe(context) for context in self._contexts.list())
        )

    async def drop_context(
        self, request: attention.DropContextRequest, call: Any
    ) -> attention.DropContextResponse:
        context = self._contexts.get(request.context)
        async with context.lock:
            self._contexts.require_current(context)
            # Above that of any append that is under way at a node yet: none brings the context back.
            revision = await self._contexts.revisions.take()
            self._contexts.drop(request.context)
        for node in {name for segment in context.segments for name in segment.holders}:
            self._dispatcher.post(node, (Drop((f"context/{context.id}/",), revision),))
        return attention.DropContextResponse()


def _left(call: Any, most: float) -> float:
    """Seconds until the caller has given up, `most` if it said nothing or more."""
    left = call.time_remaining()
    return most if left is None else min(max(float(left), 0.0), most)
