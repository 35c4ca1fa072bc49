"""The client services: each method is a few lines over a recipe. A new client call goes here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator.append import Appender
from aggregator.attend import Attender
from aggregator.bulk import Bulk
from aggregator.contexts import Contexts
from aggregator.dispatch import Dispatcher
from aggregator.membership import Membership
from aggregator.revocations import Revoked
from edge_attention.core import attention, fleet
from edge_attention.core.errors import InvalidArgument, InvalidTensor, ResourceExhausted
from edge_attention.core.program import Drop
from edge_attention.core.session import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.core.tensors import Float32, require
from edge_attention.wire import services
from edge_attention.wire.methods import AnyMethod
from edge_attention.wire.rpc import Handler

APPEND_LIMIT = 256 * 1024 * 1024
"""Bytes of keys and values one append may bring: it is checked and placed as a whole."""


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
    ) -> None:
        self._membership = membership
        self._dispatcher = dispatcher
        self._bulk = bulk
        self._contexts = contexts
        self._appender = appender
        self._attender = attender
        self._revoked = revoked

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
        sender = f"client {call.peer()} {id(chunks)}"
        try:
            return await self._bulk.upload(sender, chunks, keep=True)
        finally:
            # A connection of a client's is one try; it does not come back to finish a part.
            self._bulk.forget(sender)

    def download(self, request: DownloadRequest, call: Any) -> AsyncIterator[Chunk]:
        return self._bulk.download(request)

    async def create_context(
        self, request: attention.CreateContextRequest, call: Any
    ) -> attention.CreateContextResponse:
        context = self._contexts.create(request.spec)
        return attention.CreateContextResponse(self._contexts.describe(context))

    async def append(
        self, requests: AsyncIterator[attention.AppendRequest], call: Any
    ) -> attention.AppendResponse:
        first: attention.AppendRequest | None = None
        keys: list[Float32] = []
        values: list[Float32] = []
        size = 0
        async for request in requests:
            if first is None:
                first = request
                spec = self._contexts.get(request.context).spec
                if request.request_id and request.keys is None and request.values is None:
                    return await self._appender.outcome(request.context, request.request_id)
            elif (request.context or first.context, request.node or first.node) != (
                first.context,
                first.node,
            ):
                raise InvalidArgument("one append goes to one context, and to one node if any is named")
            if request.keys is None or request.values is None:
                raise InvalidTensor("a message of an append brings no keys or no values; send both")
            part = len(request.keys)
            require(request.keys, "keys", shape=("tokens", spec.key_heads, spec.key_dim), finite=False)
            require(request.values, "values", shape=(part, spec.key_heads, spec.value_dim), finite=False)
            size += request.keys.nbytes + request.values.nbytes
            if size > APPEND_LIMIT:
                raise ResourceExhausted(
                    f"this append brings over {APPEND_LIMIT:,} bytes; cut it into several"
                )
            keys.append(request.keys)
            values.append(request.values)
        if first is None:
            raise InvalidArgument("an append without a message; send keys and values")
        return await self._appender.append(
            first.context, first.node, np.concatenate(keys), np.concatenate(values), first.request_id
        )

    async def append_dataset(
        self, request: attention.AppendDatasetRequest, call: Any
    ) -> attention.AppendResponse:
        return await self._appender.append_dataset(request)

    async def attend(self, request: attention.AttendRequest, call: Any) -> attention.AttendResponse:
        return await self._attender.attend(request)

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
