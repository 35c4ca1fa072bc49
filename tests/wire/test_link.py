"""The node link: what can be told of a damaged message, and a stream of bytes that survives one."""

from __future__ import annotations

import asyncio

import grpc.aio
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator.serving.rpc import service_handlers
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.link import Heartbeat, HeartbeatAck
from edge_attention.core.messages.program import Contribution
from edge_attention.wire import link
from edge_attention.wire.caller import Caller


def contribution(**changes) -> bytes:
    fields = {"tensors": {"out": np.ones(3, np.float32)}, **changes}
    return link.from_node.encode(Contribution("t-7", "s0", range(3), 1, 0, **fields))


def test_a_contribution_with_a_damaged_tensor_still_names_its_task():
    sent = contribution()
    at = sent.index(np.ones(3, np.float32).tobytes())
    damaged = sent[:at] + b"\x01" + sent[at + 1 :]
    try:
        link.from_node.decode(damaged)
    except EdgeAttentionError as error:
        said = error.message
    assert "a connect request of" in said
    assert "has a wrong checksum" in said
    assert link.task_of(damaged) == link.task_of(sent) == "t-7"


@given(st.binary(max_size=100))
def test_bytes_that_are_nothing_name_no_task_and_raise_nothing(data):
    assert isinstance(link.task_of(data), str)


def test_other_messages_name_no_task():
    assert link.task_of(link.from_node.encode(Heartbeat(1, 2, 3))) == ""
    assert link.task_of(b"\xff") == ""


def test_the_connect_handler_gets_bytes_so_that_a_damaged_message_does_not_end_the_stream():
    assert link.CONNECT.raw

    async def connect(requests, context):
        async for data in requests:
            try:
                answer = HeartbeatAck(link.from_node.decode(data).number)
            except EdgeAttentionError:
                answer = HeartbeatAck(999)
            await context.write(link.to_node.encode(answer))

    async def test() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(service_handlers({link.CONNECT: connect}))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ours = Caller(channel, "test").duplex(link.CONNECT)
            await ours.write(Heartbeat(5, 0, 0))
            assert await anext(aiter(ours)) == HeartbeatAck(5)
            ours.cancel()
            raw = channel.stream_stream(link.CONNECT.path)()
            for data, number in [(b"\xff", 999), (link.from_node.encode(Heartbeat(6, 0, 0)), 6)]:
                await raw.write(data)
                assert link.to_node.decode(await raw.read()) == HeartbeatAck(number)
            raw.cancel()
        await server.stop(None)

    asyncio.run(asyncio.wait_for(test(), 180))
