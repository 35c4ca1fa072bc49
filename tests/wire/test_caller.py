"""A call ends within its time, also where gRPC does not end it."""

from __future__ import annotations

import asyncio

import pytest

from edge_attention.core.errors import DeadlineExceeded
from edge_attention.core.messages.fleet import ListNodesRequest
from edge_attention.core.messages.link import UploadChunk
from edge_attention.wire import caller as calls
from edge_attention.wire import services
from edge_attention.wire.caller import Caller


class Still:
    """A channel of a gRPC that stands still: no call ends, not even at its deadline."""

    def unary_unary(self, path, request, response):
        return lambda *args, **kwargs: asyncio.get_running_loop().create_future()

    unary_stream = stream_unary = stream_stream = unary_unary

    async def close(self, grace):
        pass


async def _chunks():
    yield UploadChunk("", "0" * 64, 0, 1, b"x")


@pytest.mark.parametrize("how", ["unary", "send"])
def test_a_call_that_grpc_does_not_end_ends(monkeypatch, how):
    monkeypatch.setattr(calls, "LATE_SECONDS", 0.01)

    async def scenario():
        caller = Caller(Still(), "the aggregator at x:1")
        if how == "unary":
            await caller.unary(services.LIST_NODES, ListNodesRequest(), 0.01)
        else:
            await caller.send(services.BULK_UPLOAD, _chunks, 0.01)

    with pytest.raises(DeadlineExceeded, match="and gRPC did not end the call: it stands still in process"):
        asyncio.run(scenario())
