"""Calls whose request or answer comes damaged: asked again at once, and nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import grpc.aio
import pytest

from aggregator.engine.endings import to_the_end
from aggregator.serving import answers as kept
from aggregator.serving.answers import Answers
from aggregator.serving.rpc import service_handlers
from edge_attention.core.errors import AlreadyExists, Damaged, DataLoss, InvalidArgument
from edge_attention.core.messages.attention import (
    Context,
    ContextSpec,
    CreateContextRequest,
    CreateContextResponse,
    DescribeContextRequest,
    DescribeContextResponse,
    DropContextRequest,
    DropContextResponse,
)
from edge_attention.core.messages.link import UploadChunk, Uploaded
from edge_attention.wire import caller as calling
from edge_attention.wire import checksum, services
from edge_attention.wire.caller import TRIES, Caller
from edge_attention.wire.methods import CHANNEL_OPTIONS

SPEC = ContextSpec("c", 1, 1, 1, 1)
CONTEXT = Context(SPEC, 0, ())


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


class Damaging(Caller):
    """Damages so many requests, or answers, of calls to come."""

    requests = answers = calls = 0
    bare = False

    def _call(self, line, method):
        call = super()._call(line, method)

        def damaged(data):
            if self.requests:
                self.requests -= 1
                return flipped(data)
            return data

        async def each(stream):
            async for data in stream:
                yield damaged(data)

        async def asked(data, **how):
            self.calls += 1
            answer = await call(each(data) if method.streams_request else damaged(data), **how)
            if self.answers:
                self.answers -= 1
                return answer[: -checksum.TRAILER] if self.bare else flipped(answer)
            return answer

        return asked


@contextlib.asynccontextmanager
async def serving(handlers, who=lambda: ""):
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers(service_handlers(handlers, who=who))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            yield Damaging(channel, "the test's server")
    finally:
        await server.stop(None)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 180))


class House:
    """Makes, describes and drops contexts, and takes uploads; counts what it did."""

    def __init__(self):
        self.made, self.described, self.taken = [], 0, []

    async def create(self, request, context):
        if request.spec.name in self.made:
            raise AlreadyExists("taken")
        self.made.append(request.spec.name)
        return CreateContextResponse(CONTEXT)

    async def describe(self, request, context):
        self.described += 1
        return DescribeContextResponse(CONTEXT)

    async def upload(self, requests, context):
        came = [request.offset async for request in requests]
        self.taken.append(came)
        return Uploaded(len(came))

    def handlers(self):
        return {
            services.CREATE_CONTEXT: self.create,
            services.DESCRIBE_CONTEXT: self.describe,
            services.BULK_UPLOAD: self.upload,
        }


@pytest.mark.parametrize(("requests", "answers"), [(1, 0), (0, 1), (2, 1), (TRIES - 1, 0), (0, TRIES - 1)])
def test_what_comes_damaged_is_asked_again_and_done_once(requests, answers):
    async def test():
        house = House()
        async with serving(house.handlers()) as caller:
            caller.requests, caller.answers = requests, answers
            made = await caller.unary(services.CREATE_CONTEXT, CreateContextRequest(SPEC), 30)
            assert made.context.spec == SPEC
            assert house.made == ["c"]
            assert caller.calls == requests + answers + 1
            caller.requests, caller.answers = requests, answers
            await caller.unary(services.DESCRIBE_CONTEXT, DescribeContextRequest("c"))
            assert house.described == answers + 1

    run(test)


def test_what_keeps_being_damaged_is_given_up_and_said():
    async def test():
        house = House()
        async with serving(house.handlers()) as caller:
            caller.requests = TRIES
            with pytest.raises(Damaged, match="create context request of 21 bytes has a wrong checksum"):
                await caller.unary(services.CREATE_CONTEXT, CreateContextRequest(SPEC))
            assert (caller.calls, house.made) == (TRIES, [])
            caller.answers = TRIES
            with pytest.raises(DataLoss, match="has done what was asked, but no answer came whole") as caught:
                await caller.unary(services.CREATE_CONTEXT, CreateContextRequest(SPEC))
            assert not isinstance(caught.value, Damaged)
            assert (caller.calls, house.made) == (2 * TRIES, ["c"])
            caller.answers = TRIES
            with pytest.raises(Damaged):
                await caller.unary(services.DESCRIBE_CONTEXT, DescribeContextRequest("c"))

    run(test)


def test_a_server_that_sends_no_checksums_is_asked_once_for_what_changes_something():
    """It is of an earlier release, and would do it again."""

    async def test():
        house = House()
        async with serving(house.handlers()) as caller:
            caller.answers, caller.bare = TRIES, True
            with pytest.raises(DataLoss, match="no checksum, or it was damaged"):
                await caller.unary(services.CREATE_CONTEXT, CreateContextRequest(SPEC))
            assert (caller.calls, house.made) == (1, ["c"])

    run(test)


def test_it_is_not_asked_again_past_its_deadline(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        perf_counter = monotonic

    clock, house = Clock(), House()
    monkeypatch.setattr(calling, "time", clock)

    async def describe(request, context):
        clock.now += 31
        return await house.describe(request, context)

    async def test():
        async with serving({services.DESCRIBE_CONTEXT: describe}) as caller:
            caller.answers = TRIES
            with pytest.raises(DataLoss):
                await caller.unary(services.DESCRIBE_CONTEXT, DescribeContextRequest("c"), 30)
            assert (caller.calls, house.described) == (1, 1)

    run(test)


def test_a_stream_of_requests_is_sent_again_where_it_can_be_made_again():
    async def test():
        house = House()

        async def chunks():
            for at in range(3):
                yield UploadChunk("", "d", at, 3, b"x")

        async with serving(house.handlers()) as caller:
            caller.requests, caller.answers = 1, 1
            assert await caller.send(services.BULK_UPLOAD, chunks) == Uploaded(3)
            assert house.taken == [[0, 1, 2], [0, 1, 2]]
            caller.requests = 1
            with pytest.raises(Damaged):
                await caller.send(services.BULK_UPLOAD, chunks())

    run(test)


def test_a_client_without_checksums_is_served_and_one_that_says_it_sends_them_is_held_to_it():
    async def test():
        house = House()
        async with serving(house.handlers()) as caller:
            call = caller._lines.opened.channel.unary_unary(services.DESCRIBE_CONTEXT.path)
            data = services.DESCRIBE_CONTEXT.request.encode(DescribeContextRequest("c"))
            bare = data[: -checksum.TRAILER]
            assert checksum.intact(await call(bare))
            assert checksum.intact(await call(data))
            assert checksum.intact(await call(data, metadata=(("edge-attention-sealed", "1"),)))
            for sent, metadata in [(flipped(data), ()), (bare, (("edge-attention-sealed", "1"),))]:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(sent, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.DATA_LOSS
            assert house.described == 3

    run(test)


def test_answers_are_of_one_caller_alone():
    async def test():
        now = ["ann"]
        done = []

        async def drop(request, context):
            done.append(request.context)
            return DropContextResponse()

        async with serving({services.DROP_CONTEXT: drop}, who=lambda: now[0]) as caller:
            call = caller._lines.opened.channel.unary_unary(services.DROP_CONTEXT.path)
            data = services.DROP_CONTEXT.request.encode(DropContextRequest("c"))
            for name in ("ann", "bob", "ann"):
                now[0] = name
                await call(data, metadata=(("edge-attention-request", "17"),))
            assert done == ["c", "c"]
            with pytest.raises(grpc.aio.AioRpcError, match="at most 64 letters"):
                await call(data, metadata=(("edge-attention-request", "x" * 65),))

    run(test)


# The answers themselves


def once(answers, key, data=b"x", did=None):
    async def work():
        if did is not None:
            did.append(key)
        return data

    return answers.once(key, work)


def test_answers_are_kept_for_a_while_and_so_many_of_a_caller(monkeypatch):
    monkeypatch.setattr(kept, "KEPT_OF_CALLER", 3)
    monkeypatch.setattr(kept, "KEPT", 5)
    now, did = [0.0], []

    async def test():
        answers = Answers(lambda: now[0])
        for id in ("1", "2", "3", "1", "4", "1"):
            await once(answers, ("ann", "/m", id), did=did)
        assert [id for _, _, id in did] == ["1", "2", "3", "4", "1"], "the fourth made room for itself"
        for id in ("1", "2", "3"):
            await once(answers, ("bob", "/m", id), did=did)
        assert len(answers._kept) == 5
        now[0] = kept.KEPT_SECONDS + 1
        await once(answers, ("bob", "/m", "3"), did=did)
        assert len(did) == 8, "still there: nothing has asked the clock"
        await once(answers, ("bob", "/m", "4"), did=did)
        assert list(answers._kept) == [("bob", "/m", "4")]
        assert dict(answers._of) == {"bob": 1}

    run(test)


def test_a_call_that_comes_while_the_first_is_under_way_gets_its_answer_or_does_it_itself():
    async def test():
        answers, did, go = Answers(), [], asyncio.Event()
        key = ("ann", "/m", "1")

        async def work():
            did.append(1)
            await go.wait()
            return b"%d" % len(did)

        first, second = (asyncio.create_task(answers.once(key, work)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        assert [await first, await second] == [b"1", b"1"]
        go.clear()
        key = ("ann", "/m", "2")
        first, second = (asyncio.create_task(answers.once(key, work)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        go.set()
        assert await second == b"3"

        async def fail():
            raise InvalidArgument("no")

        with pytest.raises(InvalidArgument):
            await answers.once(("ann", "/m", "3"), fail)
        assert await answers.once(("ann", "/m", "3"), work) == b"4", "a failure is not kept"

    run(test)


def test_of_a_large_answer_it_is_known_that_it_was_given():
    async def test():
        answers, did = Answers(), []
        key = ("ann", "/m", "1")
        large = bytes(kept.ANSWER_BYTES + 1)
        assert await once(answers, key, large, did) == large
        with pytest.raises(DataLoss, match="was done when it was first asked for"):
            await once(answers, key, large, did)
        assert did == [key]

    run(test)


def test_every_call_that_changes_something_says_so():
    reading = {
        "ListNodes",
        "DescribeAggregator",
        "ProbeNode",
        "Attend",
        "AttendGradients",
        "DescribeContext",
        "ListContexts",
    }
    reading |= {"PlanRun", "WatchRun", "DescribeRun", "ListRuns", "GetParameters", "GetModel", "Predict"}
    reading |= {"Upload", "Download"}  # by digest: twice is once
    reading |= {"Infer", "Generate", "DescribeModel", "ListModels", "WatchModel"}
    reading |= {"ListEnsembles", "ExportContext"}
    reading |= {"Deploy"}  # a stream: who loses it has undone it
    for found in vars(services).values():
        if isinstance(found, services.Method):
            assert found.changes == (found.name not in reading), found.path


def test_what_was_committed_as_its_caller_was_cancelled_is_not_done_again(monkeypatch):
    """As where the line is taken for dead, and the same call comes over another one."""
    monkeypatch.setattr(calling.secrets, "token_hex", lambda size: "the-same-call")

    async def test():
        begun, commits, made, serving_it = asyncio.Event(), asyncio.Event(), [], []

        async def create(request, context):
            async def commit():
                begun.set()
                await commits.wait()
                made.append(request.spec.name)

            serving_it.append(asyncio.current_task())
            await to_the_end(commit(), counts=True)
            return CreateContextResponse(CONTEXT)

        async with serving({services.CREATE_CONTEXT: create}) as caller:
            ask = partial(caller.unary, services.CREATE_CONTEXT, CreateContextRequest(SPEC), 60)
            first = asyncio.create_task(ask())
            await begun.wait()
            first.cancel()
            async with asyncio.timeout(60):
                while not serving_it[0].cancelling():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            second = asyncio.create_task(ask())
            commits.set()
            assert (await second).context.spec == SPEC
        assert made == ["c"]

    run(test)
