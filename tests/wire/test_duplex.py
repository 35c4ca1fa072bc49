"""A stream whose connection breaks in gRPC's own code has ended, and raises no error that nobody expects."""

import asyncio

import grpc.aio
import pytest
from grpc._cython import cygrpc

from edge_attention.core.errors import Unavailable
from edge_attention.wire import services
from edge_attention.wire.caller import Duplex


class Broken:
    """What gRPC's stream does when the connection under it is damaged: it raises what is no status."""

    def __init__(self, error):
        self.error = error

    def __aiter__(self):
        return self

    async def __anext__(self):
        raise self.error

    async def write(self, data):
        raise self.error

    async def code(self):
        return grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "error",
    [
        cygrpc.ExecuteBatchError('Failed "Read"\x1b[2J'),
        grpc.aio.UsageError("Channel is closed."),
        asyncio.InvalidStateError("RPC is finished."),
    ],
)
def test_what_grpc_raises_that_is_no_status_is_an_end_of_the_stream(error):
    async def explained(error):
        return error

    async def scenario():
        stream = Duplex(services.WATCH_MODEL, Broken(error), "there:1", explained)
        with pytest.raises(Unavailable, match="there:1") as read:
            async for _ in stream:
                pass
        with pytest.raises(Unavailable, match="there:1"):
            await stream.write(services.WATCH_MODEL.request.decode(b""))
        assert "\x1b" not in str(read.value)

    asyncio.run(scenario())
