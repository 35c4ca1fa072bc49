"""A connection that dies without a word is replaced within a call's time; work that many wait for is once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from pathlib import Path

import grpc.aio
import pytest

from aggregator.serving.rpc import service_handlers
from edge_attention.core.errors import Cancelled, DeadlineExceeded, Unavailable, Unreachable
from edge_attention.core.messages.attention import Context as Described
from edge_attention.core.messages.attention import (
    ContextSpec,
    CreateContextRequest,
    CreateContextResponse,
    DescribeContextRequest,
    DescribeContextResponse,
)
from edge_attention.core.messages.link import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.wire import caller as calling
from edge_attention.wire import lines, services
from edge_attention.wire.caller import Caller
from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_attention.wire.once import Once

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from proxy import Blackhole, HalfOpen, Pass, Proxy

SPEC = ContextSpec("c", 2, 2, 4, 4)
CONTEXT = Described(SPEC, 0, ())


class House:
    """Answers; counts what it was asked, and may be slow."""

    def __init__(self):
        self.described = self.created = self.slow = 0
        self.received = []

    def handlers(self):
        return {
            services.DESCRIBE_CONTEXT: self.describe,
            services.CREATE_CONTEXT: self.create,
            services.BULK_DOWNLOAD: self.download,
            services.BULK_UPLOAD: self.upload,
        }

    async def describe(self, request, context):
        self.described += 1
        await asyncio.sleep(self.slow)
        return DescribeContextResponse(CONTEXT)

    async def create(self, request, context):
        self.created += 1
        return CreateContextResponse(CONTEXT)

    async def download(self, request, context):
        yield Chunk(0, 3, b"x")
        await asyncio.sleep(self.slow)
        yield Chunk(1, 3, b"yz")

    async def upload(self, chunks, context):
        got = [chunk.offset async for chunk in chunks]
        self.received.append(got)
        return Uploaded(len(got))


@contextlib.asynccontextmanager
async def serving(**options):
    """A house, what is between, and a caller through it."""
    house = House()
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers(service_handlers(house.handlers()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made = []
    with Proxy(f"127.0.0.1:{port}") as proxy:

        async def open():
            own = ("grpc.use_local_subchannel_pool", 1)
            made.append(grpc.aio.insecure_channel(proxy.address, options=(*CHANNEL_OPTIONS, own)))
            return made[-1]

        caller = Caller(open, "the test's server", **options)
        house.channels = made
        try:
            yield house, proxy, caller
        finally:
            await caller.close()
            await server.stop(None)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 180))


def describe(caller, timeout):
    return caller.unary(services.DESCRIBE_CONTEXT, DescribeContextRequest("c"), timeout)


def create(caller, timeout):
    return caller.unary(services.CREATE_CONTEXT, CreateContextRequest(SPEC), timeout)


@pytest.mark.parametrize("call", [describe, create])
def test_a_dead_connection_is_replaced_by_the_next_call_within_its_time(call):
    async def test():
        async with serving() as (house, proxy, caller):
            await describe(caller, 60)
            for number in range(2):
                proxy.set_mode(HalfOpen())
                proxy.set_mode(Pass())
                await call(caller, 10)
                assert proxy.connections == 2 + number
            assert house.created in (0, 2), "what changes something is done once each time"
            before = proxy.connections
            await asyncio.gather(*(call(caller, 10) for _ in range(20)))
            assert proxy.connections == before

    run(test)


def test_many_calls_that_wait_on_a_dead_connection_all_go_over_one_new_one():
    async def test():
        async with serving() as (_, proxy, caller):
            await describe(caller, 60)
            proxy.set_mode(HalfOpen())
            await asyncio.gather(*(describe(caller, 60) for _ in range(50)))
            assert proxy.connections == 2

    run(test)


def test_a_slow_answer_over_a_good_connection_is_waited_for_and_asked_once(monkeypatch):
    monkeypatch.setattr(calling, "QUIET_SECONDS", 0.2)
    # However late its answer to the question whether it lives: another connection is dialled only then.
    monkeypatch.setattr(lines, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(lines, "CHECK_SECONDS", 120.0)

    async def test():
        async with serving() as (house, proxy, caller):
            house.slow = 1.5
            await describe(caller, 120)
            assert (house.described, len(house.channels), proxy.connections) == (1, 1, 1)

    run(test)


def test_where_nobody_answers_over_a_new_one_either_the_old_one_stays(monkeypatch):
    monkeypatch.setattr(lines, "CHECK_SECONDS", 0.5)

    async def test():
        async with serving() as (_, proxy, caller):
            await describe(caller, 60)
            line = caller._lines.opened
            proxy.set_mode(Blackhole())
            with pytest.raises(DeadlineExceeded):
                await describe(caller, 2)
            assert caller._lines.opened is line

    run(test)


def test_an_upload_goes_on_over_the_new_connection_and_an_old_server_is_not_asked_twice(monkeypatch):
    monkeypatch.setattr(calling, "STREAM_QUIET_SECONDS", 0.3)

    async def chunks():
        for at in range(3):
            yield UploadChunk("", "d", at, 3, b"x")

    async def test():
        async with serving() as (house, proxy, caller):
            await describe(caller, 60)
            proxy.set_mode(HalfOpen())
            assert (await caller.send(services.BULK_UPLOAD, chunks, 120)).received == 3
            assert house.received == [[0, 1, 2]]
            proxy.set_mode(Pass())
            proxy.set_mode(HalfOpen())
            caller._seals = False  # as one that keeps no answers
            with pytest.raises(DeadlineExceeded):
                await create(caller, 3)
            assert house.created == 0
            await create(caller, 60)
            assert house.created == 1, "the next call has another connection"

    run(test)


def test_a_caller_that_closes_ends_what_is_left_on_a_dead_connection():
    async def test():
        async with serving() as (_, proxy, caller):
            await describe(caller, 60)
            proxy.set_mode(HalfOpen())
            caller._seals = False
            left = asyncio.create_task(create(caller, 50))
            async with asyncio.timeout(180):
                while not caller._lines._old:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await caller.close()
            with pytest.raises(Cancelled, match="closed during the call"):
                await asyncio.wait_for(left, 40)

    run(test)


def test_a_stream_whose_connection_died_ends_and_the_next_goes(monkeypatch):
    monkeypatch.setattr(calling, "STREAM_QUIET_SECONDS", 0.3)

    async def test():
        async with serving() as (house, proxy, caller):
            house.slow = 1000
            stream = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"))
            assert await anext(stream) == Chunk(0, 3, b"x")
            proxy.set_mode(HalfOpen())
            with pytest.raises(Unavailable, match="has died, and there is another"):
                await anext(stream)
            house.slow = 0
            again = [c async for c in caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"))]
            assert len(again) == 2

    run(test)


def test_a_stream_that_is_silent_too_long_ends_and_says_so():
    async def test():
        async with serving() as (house, _, caller):
            house.slow = 1000
            with pytest.raises(DeadlineExceeded, match=r"sent nothing for 0.5 s"):
                async for _ in caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"), silence=0.5):
                    pass

    run(test)


def test_who_takes_long_over_a_message_is_no_silent_server():
    async def test():
        async with serving() as (_, _, caller):
            got = []
            async for chunk in caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"), silence=4.0):
                got.append(chunk)
                await asyncio.sleep(3.0)
            assert len(got) == 2

    run(test)


def test_dialling_and_finding_out_why_are_within_the_time_and_once_for_all(monkeypatch):
    threads, asked = [], 0
    gone = threading.Event()

    def hangs():
        threads.append(threading.current_thread())
        gone.wait(180)
        return "it hung"

    dialling, why = Once(hangs), Once(hangs)

    async def explain(seconds):
        nonlocal asked
        asked += 1
        with contextlib.suppress(TimeoutError):
            await why.result(seconds)

    async def never():
        await dialling.result()

    async def test():
        caller = Caller(never, "nobody", explain=explain)
        ended = await asyncio.gather(*(describe(caller, 0.5) for _ in range(64)), return_exceptions=True)
        assert {type(error) for error in ended} == {DeadlineExceeded}
        assert "as it was dialled" in str(ended[0])
        await caller.close()
        caller = Caller(grpc.aio.insecure_channel("127.0.0.1:1"), "nobody", explain=explain)
        ended = await asyncio.gather(*(describe(caller, 3.0) for _ in range(64)), return_exceptions=True)
        assert {type(error) for error in ended} <= {Unreachable, DeadlineExceeded}
        # Whoever has no time left to find out why does not ask.
        assert 0 < asked <= sum(type(error) is Unreachable for error in ended)
        await caller.close()
        assert len(threads) == 2, "one that dials, one that finds out"
        assert all(thread.daemon for thread in threads), "no process waits for them at its end"
        gone.set()

    run(test)


def test_once_gives_its_result_to_all_keeps_it_a_while_and_no_error():
    calls = []

    def work():
        calls.append(None)
        time.sleep(0.05)
        if len(calls) == 2:
            raise Unavailable("now it fails")
        return len(calls)

    async def test():
        once = Once(work, keep_seconds=1000)
        assert await asyncio.gather(*(once.result() for _ in range(10))) == [1] * 10
        assert await once.result() == 1, "kept"
        once = Once(work)
        with pytest.raises(Unavailable):
            await once.result(180)
        assert await once.result(180) == 3, "an error is not kept"
        assert await once.result(180) == 4, "nor a result that is not to be"

    run(test)
