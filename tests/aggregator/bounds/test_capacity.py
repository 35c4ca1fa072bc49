"""What strangers can take of the gRPC port, who show neither certificate nor token."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator.bounds import capacity
from aggregator.server import ServerSettings, running

SETTINGS = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", None, 10.0, 60.0)


def served(scenario):
    async def whole():
        async with running(SETTINGS) as port, asyncio.timeout(180):
            await scenario(port)

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def channel(port):
    """A connection of its own: without the option channels to one address share theirs."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as made:
        yield made


def check(made, **options):
    return health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(), **options)


async def watching(made):
    call = health_pb2_grpc.HealthStub(made).Watch(health_pb2.HealthCheckRequest())
    await call.read()
    return call


def test_a_connection_that_says_nothing_ends(monkeypatch):
    monkeypatch.setattr(capacity, "HANDSHAKE_MILLISECONDS", 200)

    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    served(scenario)


def test_connections_are_limited_and_those_that_are_here_go_on(monkeypatch):
    monkeypatch.setattr(capacity, "CONNECTIONS", 2)

    async def scenario(port):
        async with channel(port) as first, channel(port) as second:
            for made in (first, second):
                assert (await check(made)).status == health_pb2.HealthCheckResponse.SERVING
            async with channel(port) as third:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await check(third)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await check(first)).status == health_pb2.HealthCheckResponse.SERVING
        async with channel(port) as fourth:
            assert (await check(fourth, wait_for_ready=True)).status == health_pb2.HealthCheckResponse.SERVING

    served(scenario)


def test_a_connection_has_so_many_calls_under_way(monkeypatch):
    monkeypatch.setattr(capacity, "STREAMS", 3)

    async def scenario(port):
        async with channel(port) as made, channel(port) as other:
            held = [await watching(made) for _ in range(3)]
            with pytest.raises(grpc.aio.AioRpcError) as waits:
                await check(made, timeout=0.5)
            assert waits.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert (await check(other)).status == health_pb2.HealthCheckResponse.SERVING
            held.pop().cancel()
            assert (await check(made)).status == health_pb2.HealthCheckResponse.SERVING

    served(scenario)


def test_who_watches_health_is_limited_and_who_asks_is_not():
    async def scenario(port):
        async with channel(port) as made:
            held = [await watching(made) for _ in range(capacity.WATCHERS)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watching(made)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "ask with Check" in refused.value.details()
            assert (await check(made)).status == health_pb2.HealthCheckResponse.SERVING
            held.pop().cancel()
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await watching(made)
                    break

    served(scenario)


def test_as_many_files_may_be_opened_as_the_system_allows():
    """In a process of its own, since what is raised stays."""
    code = (
        "import resource as r; from aggregator.bounds import capacity as c\n"
        "from edge_attention import descriptors as d\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, min(hard, 2000) if hard > 0 else 2000))\n"
        "print(c.connections()); d.raise_descriptors(); print(*r.getrlimit(r.RLIMIT_NOFILE), c.connections())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = 2000 if hard == resource.RLIM_INFINITY else min(hard, 2000)
    assert done.stdout.split() == ["128", str(most), str(most), str(most // 2)]
