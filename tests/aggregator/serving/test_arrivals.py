"""Requests that are still coming: bounded, fair, and asked for only when their caller may call."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from aggregator.serving.arrivals import Arrivals
from aggregator.serving.rpc import service_handlers
from edge_attention.core.errors import Damaged, DeadlineExceeded, InvalidArgument, Overloaded, Unauthenticated
from edge_attention.core.messages.attention import AttendRequest
from edge_attention.wire import services
from edge_attention.wire.errors import from_rpc


async def after(event, data=b"x"):
    await event.wait()
    yield data


async def nothing():
    return
    yield b""


def test_one_caller_has_a_half_and_another_comes_beside_it():
    async def run():
        arrivals, event = Arrivals(most=4, seconds=20), asyncio.Event()
        slow = [asyncio.create_task(arrivals.one("slow", after(event))) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert arrivals._coming == 2
        now = asyncio.Event()
        now.set()
        for _ in range(5):
            assert await arrivals.one("good", after(now, b"good")) == b"good"
        event.set()
        assert await asyncio.gather(*slow) == [b"x"] * 10
        assert (arrivals._coming, dict(arrivals._of), list(arrivals._waiting)) == (0, {}, [])

    asyncio.run(run())


def test_what_does_not_come_ends_and_so_does_who_waits_for_its_turn():
    async def run():
        arrivals, never = Arrivals(most=2, seconds=0.1), asyncio.Event()
        calls = [arrivals.one("slow", after(never)) for _ in range(2)]
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, DeadlineExceeded)
        assert "did not arrive in 0.1 s" in first.message
        assert isinstance(second, Overloaded | DeadlineExceeded)
        with pytest.raises(InvalidArgument, match="the call has no request"):
            await arrivals.one("empty", nothing())
        with pytest.raises(Damaged, match="lost on the way"):  # ours never sends none
            await arrivals.one("empty", nothing(), sealed=True)
        held = asyncio.create_task(arrivals.one("a", after(never)))
        waits = asyncio.create_task(arrivals.one("a", after(never)))
        await asyncio.sleep(0.01)
        for task in (waits, held):
            task.cancel()
        await asyncio.gather(held, waits, return_exceptions=True)
        assert (arrivals._coming, dict(arrivals._of), list(arrivals._waiting)) == (0, {}, [])

    asyncio.run(run())


@asynccontextmanager
async def serving(guard):
    async def attend(request, context):
        raise AssertionError("nobody may")

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(service_handlers({services.ATTEND: attend}, guard)))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def test_a_stranger_s_request_is_not_asked_for_and_it_is_told_why():
    """Also where it is large: 30 calls of 3 MiB at once, each of which hears that it has shown nothing."""

    def guard(method, context):
        raise Unauthenticated("show a token")

    async def run():
        async with serving(guard) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(services.ATTEND.path)
            calls = [call(bytes(3 * 1024 * 1024), timeout=180) for _ in range(30)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(from_rpc(error)) for error in found} == {Unauthenticated}

    asyncio.run(run())


def test_half_a_request_of_a_stranger_ends_at_once():
    """Headers and a part of a message, over bare HTTP/2: the refusal does not wait for the rest."""
    refused = []

    def guard(method, context):
        refused.append(method)
        raise Unauthenticated("show a token")

    async def run():
        async with serving(guard) as port:
            path = services.ATTEND.path.encode()
            headers = b"".join(
                b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
                for name, value in (
                    (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
                    (b"te", b"trailers"), (b"content-type", b"application/grpc"),
                )
            )  # fmt: skip

            def frame(kind, flags, stream, payload):
                return (
                    len(payload).to_bytes(3, "big")
                    + bytes([kind, flags])
                    + stream.to_bytes(4, "big")
                    + payload
                )

            data = (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                + frame(4, 0, 0, b"")
                + frame(1, 4, 1, headers)
                + frame(0, 0, 1, b"\x00\x00\x30\x00\x00" + bytes(1000))  # of 3 MiB that it announces
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.write(data)
            found = b""
            async with asyncio.timeout(180):
                while b"show a token" not in found and b"show%20a%20token" not in found:
                    more = await reader.read(65536)
                    assert more, found
                    found += more
            writer.close()

    asyncio.run(run())
    assert refused == [services.ATTEND]


def test_requests_that_are_served_are_as_before():
    async def run():
        seen = []

        async def attend(request, context):
            seen.append(request)
            raise Overloaded("not now", retry_after=1.0)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(service_handlers({services.ATTEND: attend})))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            data = services.ATTEND.request.encode(AttendRequest("c", np.zeros((1, 1, 1), np.float32)))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(services.ATTEND.path)(data, timeout=180)
            error = from_rpc(raised.value)
            assert (type(error), error.retry_after) == (Overloaded, 1.0)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.stream_unary(services.ATTEND.path)(nothing(), timeout=180)
            assert type(from_rpc(raised.value)) is InvalidArgument
        await server.stop(None)
        assert [request.context for request in seen] == ["c"]

    asyncio.run(run())
