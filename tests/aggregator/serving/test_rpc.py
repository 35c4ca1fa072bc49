"""Methods over real gRPC on the loopback: streams, errors by class, nothing of the server's inside."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from aggregator.serving import rpc
from aggregator.serving.rpc import service_handlers
from aggregator.trust.authority import Authority
from edge_attention.core import errors
from edge_attention.core.messages.attention import DropContextRequest, DropContextResponse
from edge_attention.core.messages.link import (
    Chunk,
    Credit,
    DownloadRequest,
    HeartbeatAck,
    UploadChunk,
    Uploaded,
)
from edge_attention.core.printable import shown
from edge_attention.trust.certificates import key_pem, new_key, pem
from edge_attention.wire import link, services
from edge_attention.wire.caller import Caller
from edge_attention.wire.codec import MESSAGE_LIMIT
from edge_attention.wire.errors import ERROR_KEY, to_status
from edge_attention.wire.methods import CHANNEL_OPTIONS, Method

CATALOGUE = [getattr(errors, name) for name in errors.__all__ if name != "by_name"]
ECHO = Method(link.LINK, "Connect", link.from_node, link.to_node, streams_request=True, streams_response=True)


@contextlib.asynccontextmanager
async def serving(handlers, observer=None) -> AsyncIterator[tuple[Caller, grpc.aio.Channel]]:
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers(service_handlers(handlers, observer=observer))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            yield Caller(channel, "the test's server"), channel
    finally:
        await server.stop(None)


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test(), 180))


async def listed(items) -> list:
    return [item async for item in items]


async def these(*items):
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def piece(offset=0, data=b"x") -> UploadChunk:
    return UploadChunk("", "d", offset, 10, data)


async def count(requests, context) -> Uploaded:
    return Uploaded(sum([len(r.data) async for r in requests]))


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda c: c.__name__)
def test_an_error_arrives_as_its_class_with_its_sentence(cls):
    sentence = "naïve: 100% of shard 's0' is 在那里, and what to do"

    async def fail(request, context):
        raise cls(sentence)

    async def fail_later(request, context):
        yield Chunk(0, 1, b"x")
        raise cls(sentence)

    async def test():
        async with serving({services.DROP_CONTEXT: fail, services.BULK_DOWNLOAD: fail_later}) as (caller, _):
            with pytest.raises(cls) as caught:
                await caller.unary(services.DROP_CONTEXT, DropContextRequest("c"))
            assert (type(caught.value), caught.value.message) == (cls, sentence)
            stream = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"))
            assert await anext(stream) == Chunk(0, 1, b"x"), "what came before the error is not lost"
            with pytest.raises(cls) as caught:
                await anext(stream)
            assert (type(caught.value), caught.value.message) == (cls, sentence)

    run(test)


def rpc_error() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="secret-9f")


@pytest.mark.parametrize(
    "error", [KeyError("secret-9f"), ValueError("secret-9f"), rpc_error(), StopAsyncIteration("secret-9f")]
)
def test_an_unexpected_exception_is_internal_and_tells_nothing(error, caplog):
    async def fail(request, context):
        raise error

    async def test():
        async with serving({services.DROP_CONTEXT: fail}) as (caller, _):
            with pytest.raises(errors.Internal) as caught:
                await caller.unary(services.DROP_CONTEXT, DropContextRequest("c"))
            assert "secret-9f" not in caught.value.message
            assert "Traceback" not in caught.value.message
            assert type(error).__name__ in caught.value.message

    with caplog.at_level(logging.ERROR):
        run(test)
    assert any("secret-9f" in (r.exc_text or str(r.exc_info)) for r in caplog.records), "the log does say"


class Seen:
    """An observer that remembers."""

    def __init__(self):
        self.refusals, self.answers = [], []

    def refused(self, error):
        self.refusals.append(error)

    def answered(self, method, seconds):
        self.answers.append((method, seconds))


def test_an_observer_is_told_of_answers_and_of_every_refusal():
    async def drop(request, context):
        if request.context == "slow":
            await asyncio.sleep(0.05)  # the handler's own time is none of the edge's
        if request.context == "gone":
            raise errors.NotFound("gone")
        if request.context == "bug":
            raise KeyError("bug")
        return DropContextResponse()

    async def chunks(request, context):
        yield Chunk(0, 1, b"x")
        raise errors.DataLoss("damaged")

    async def test():
        seen = Seen()
        async with serving({services.DROP_CONTEXT: drop, services.BULK_DOWNLOAD: chunks}, seen) as (
            caller,
            _,
        ):
            for name in ("a", "gone", "bug", "slow"):
                with contextlib.suppress(errors.EdgeAttentionError):
                    await caller.unary(services.DROP_CONTEXT, DropContextRequest(name))
            with pytest.raises(errors.DataLoss):
                await listed(caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d")))
            # Told when the answer was sent, which a client may see before.
            while len(seen.answers) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert [type(e) for e in seen.refusals] == [errors.NotFound, errors.Internal, errors.DataLoss]
        assert [method for method, _ in seen.answers] == [services.DROP_CONTEXT] * 2
        assert all(seconds > 0 for _, seconds in seen.answers)

    run(test)


def test_unary_and_streams_both_ways_carry_values():
    async def drop(request, context):
        assert request == DropContextRequest("c")
        return DropContextResponse()

    async def chunks(request, context):
        for i in range(3):
            yield Chunk(i, 3, bytes([i]))

    async def echo(requests, context):
        async for request in requests:
            yield HeartbeatAck(request.bytes)

    async def test():
        handlers = {
            services.DROP_CONTEXT: drop,
            services.BULK_DOWNLOAD: chunks,
            services.BULK_UPLOAD: count,
            ECHO: echo,
        }
        async with serving(handlers) as (caller, _):
            assert await caller.unary(services.DROP_CONTEXT, DropContextRequest("c")) == DropContextResponse()
            got = await listed(caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d")))
            assert got == [Chunk(i, 3, bytes([i])) for i in range(3)]
            assert await caller.send(
                services.BULK_UPLOAD, these(piece(0, b"ab"), piece(2, b"cde"))
            ) == Uploaded(5)
            stream = caller.duplex(ECHO)
            answers = aiter(stream)
            for n in (1, 2**40):
                await stream.write(Credit(n, 0))
                assert await anext(answers) == HeartbeatAck(n)
            await stream.done_writing()
            assert await listed(answers) == []

    run(test)


def test_an_error_ends_a_stream_both_ways_for_reader_and_writer():
    async def fail(requests, context):
        async for _ in requests:
            raise errors.StaleVersion("too old")
            yield

    async def test():
        async with serving({ECHO: fail}) as (caller, _):
            stream = caller.duplex(ECHO)
            await stream.write(Credit(1, 1))
            with pytest.raises(errors.StaleVersion, match="too old"):
                await listed(stream)
            with pytest.raises(errors.EdgeAttentionError):
                await stream.write(Credit(1, 1))

    run(test)


def test_a_call_that_ends_while_its_caller_still_sends_has_its_answer_or_its_reason():
    async def refuse(requests, context):
        async for _ in requests:
            raise errors.NotFound("no such file")

    async def enough(requests, context):
        async for _ in requests:
            return Uploaded(7)

    async def test():
        pieces = [piece(data=bytes(300_000))] * 30
        async with serving({services.BULK_UPLOAD: refuse}) as (caller, _):
            for _ in range(30):
                with pytest.raises(errors.NotFound, match="no such file"):
                    await caller.send(services.BULK_UPLOAD, these(*pieces))
        async with serving({services.BULK_UPLOAD: enough}) as (caller, _):
            for _ in range(30):
                assert await caller.send(services.BULK_UPLOAD, these(*pieces)) == Uploaded(7)

    run(test)


def test_of_refused_calls_so_many_are_read_on_at_a_time(monkeypatch):
    monkeypatch.setattr(rpc, "DRAINS", 2)
    monkeypatch.setattr(rpc, "DRAIN_SECONDS", 60.0)

    async def refuse(requests, context):
        raise errors.NotFound("no such file")

    async def endless():
        yield piece()
        await asyncio.sleep(60)

    async def test():
        async with serving({services.BULK_UPLOAD: refuse}) as (caller, _):
            calls = [asyncio.create_task(caller.send(services.BULK_UPLOAD, endless())) for _ in range(5)]
            for _ in range(3):
                done, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                assert all(isinstance(call.exception(), errors.NotFound) for call in done)
                if len(calls) == 2:
                    break
            assert len(calls) == 2
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            with pytest.raises(errors.NotFound):
                await caller.send(services.BULK_UPLOAD, these(piece()))

    run(test)


def test_a_deadline_that_passes_while_more_is_sent_is_a_deadline():
    async def stuck(requests, context):
        await asyncio.sleep(60)

    async def test():
        pieces = [piece(data=bytes(300_000))] * 200
        async with serving({services.BULK_UPLOAD: stuck}) as (caller, _):
            for _ in range(20):
                with pytest.raises(errors.DeadlineExceeded):
                    await caller.send(services.BULK_UPLOAD, these(*pieces), timeout=0.1)

    run(test)


def test_where_the_answer_is_lost_for_that_the_caller_is_told_to_try_again(monkeypatch):
    """A server that takes no more than it needs, as others may."""
    monkeypatch.setattr(rpc, "DRAIN_BYTES", 0)

    async def refuse(requests, context):
        async for _ in requests:
            raise errors.NotFound("no such file")

    async def test():
        pieces = [piece(data=bytes(300_000))] * 30
        async with serving({services.BULK_UPLOAD: refuse}) as (caller, _):
            for _ in range(50):
                with pytest.raises((errors.NotFound, errors.Unavailable)) as raised:
                    await caller.send(services.BULK_UPLOAD, these(*pieces))
                if isinstance(raised.value, errors.Unavailable):
                    assert "ended the call before all was sent" in raised.value.message

    run(test)


def test_what_a_request_iterator_raises_reaches_the_caller():
    async def test():
        async with serving({services.BULK_UPLOAD: count}) as (caller, _):
            with pytest.raises(OSError, match="the disk"):
                await caller.send(services.BULK_UPLOAD, these(piece(), OSError("the disk")))
            with pytest.raises(errors.NotFound, match="no file"):
                await caller.send(services.BULK_UPLOAD, these(errors.NotFound("no file")))
            assert await caller.send(services.BULK_UPLOAD, these(piece())) == Uploaded(1), "the channel lives"

    run(test)


def test_a_message_past_the_limit_is_refused_before_it_is_sent_wherever_it_is_made():
    large = b"x" * MESSAGE_LIMIT

    async def chunks(request, context):
        yield Chunk(0, 1, large)

    async def test():
        async with serving({services.BULK_UPLOAD: count, services.BULK_DOWNLOAD: chunks}) as (
            caller,
            channel,
        ):
            with pytest.raises(errors.MessageTooLarge, match="at most"):
                await caller.send(services.BULK_UPLOAD, these(piece(0, large)))
            with pytest.raises(errors.MessageTooLarge, match="download response"):
                await listed(caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d")))
            # A client that is not ours: within gRPC's limit and past ours, then past both.
            for size in (MESSAGE_LIMIT + 1, 2 * MESSAGE_LIMIT + 1):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.stream_unary(services.BULK_UPLOAD.path)(iter([b"\x7a" + b"x" * size]))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(test)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05ab"])
def test_bytes_that_are_no_message_are_the_clients_fault(data):
    async def drop(request, context):
        return DropContextResponse()

    async def test():
        async with serving({services.DROP_CONTEXT: drop, services.BULK_UPLOAD: count}) as (_, channel):
            for call in (
                channel.unary_unary(services.DROP_CONTEXT.path)(data),
                channel.stream_unary(services.BULK_UPLOAD.path)(iter([data])),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert dict(caught.value.trailing_metadata())[ERROR_KEY] == "InvalidArgument"

    run(test)


def test_deadlines_absent_servers_and_absent_methods_have_their_names():
    async def never(request, context):
        await asyncio.Event().wait()

    async def test():
        async with serving({services.DROP_CONTEXT: never}) as (caller, _):
            with pytest.raises(errors.DeadlineExceeded, match="the test's server"):
                await caller.unary(services.DROP_CONTEXT, DropContextRequest("c"), timeout=0.1)
            with pytest.raises(errors.EdgeAttentionError):
                await caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d")).__anext__()
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(errors.Unavailable, match=r"box 7 cannot be reached: .*[^.]; is it running"):
                await Caller(channel, "box 7").unary(
                    services.DROP_CONTEXT, DropContextRequest("c"), timeout=20
                )

    run(test)


@pytest.mark.parametrize("tls", [False, True])
def test_a_port_of_the_web_is_named_as_what_it_is(tls, tmp_path):
    async def answer(reader, writer):
        with contextlib.suppress(OSError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            await reader.read(1)
            writer.close()

    async def test():
        key, authority = new_key(), Authority.make()
        certificate = authority.issue_server(key.public_key(), ["localhost"], timedelta(days=1))
        (tmp_path / "server.pem").write_bytes(key_pem(key) + pem(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context if tls else None)
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        credentials = grpc.ssl_channel_credentials(pem(authority.certificate))
        options = [("grpc.ssl_target_name_override", "localhost")]
        channel = (
            grpc.aio.secure_channel(where, credentials, options) if tls else grpc.aio.insecure_channel(where)
        )
        async with channel, server:
            with pytest.raises(errors.Unreachable) as raised:
                await Caller(channel, "X:9464").unary(
                    services.DROP_CONTEXT, DropContextRequest("c"), timeout=20
                )
        assert raised.value.message == (
            "X:9464 is not an aggregator's gRPC port; that is 50051 unless --listen says otherwise, 9464 is "
            "its page"
        )

    run(test)


def test_a_channel_closed_under_a_call_is_an_error_and_a_cancelled_task_is_cancelled():
    async def test():
        entered = asyncio.Event()

        async def never(request, context):
            entered.set()
            await asyncio.Event().wait()

        async with serving({services.DROP_CONTEXT: never}) as (caller, channel):
            for end in ("cancel", "close"):
                entered.clear()
                call = asyncio.create_task(caller.unary(services.DROP_CONTEXT, DropContextRequest("c")))
                await entered.wait()
                if end == "cancel":
                    call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await call
                    assert call.cancelled()
                else:
                    await channel.close()
                    with pytest.raises(errors.Cancelled, match="the test's server"):
                        await call

    run(test)


def test_a_reader_that_leaves_ends_the_handler_with_its_cleanup():
    async def test():
        closed = asyncio.Event()

        async def endless(request, context):
            try:
                while True:
                    yield Chunk(0, 1, b"x")
                    await asyncio.sleep(0)
            finally:
                closed.set()

        async with serving({services.BULK_DOWNLOAD: endless}) as (caller, _):
            stream = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"))
            assert await anext(stream) == Chunk(0, 1, b"x")
            await stream.aclose()
            await closed.wait()

    run(test)


def test_a_caller_that_took_nothing_for_long_has_the_status_of_its_call_once_it_reads_again():
    async def test():
        closed, ended = asyncio.Event(), asyncio.Event()

        async def endless(request, context):
            context.add_done_callback(lambda _: ended.set())
            late = errors.DeadlineExceeded("nothing was taken")
            task, at = asyncio.current_task(), 0
            try:
                while True:
                    end = functools.partial(rpc.end_unread, task, context, late)
                    ending = asyncio.get_running_loop().call_later(0.2, end)
                    try:
                        yield Chunk(at, 1 << 30, bytes(1 << 20))
                    finally:
                        ending.cancel()
                    at += 1 << 20
            finally:
                closed.set()

        async with serving({services.BULK_DOWNLOAD: endless}) as (caller, _):
            stream = caller.receive(services.BULK_DOWNLOAD, DownloadRequest("", "d"))
            assert (await anext(stream)).offset == 0
            # What it held is given back while nobody reads.
            await closed.wait()
            await ended.wait()
            with pytest.raises(errors.DeadlineExceeded, match="nothing was taken"):
                async for _ in stream:
                    pass

    run(test)


@pytest.mark.parametrize("character", ["x", "%", "在", "😀", "\n", "\ud800"])
def test_a_sentence_of_any_length_travels_shortened(character):
    async def fail(request, context):
        raise errors.InvalidGraph(character * 100_000)

    async def test():
        async with serving({services.DROP_CONTEXT: fail}) as (caller, _):
            with pytest.raises(errors.InvalidGraph) as caught:
                await caller.unary(services.DROP_CONTEXT, DropContextRequest("c"))
            assert caught.value.message.endswith("...")
            assert caught.value.message[:400] == (shown(character) * 400)[:400]

    run(test)


def test_an_error_of_a_newer_server_is_what_its_status_says():
    newer = type("NewerRefusal", (errors.FailedPrecondition,), {})

    async def fail(request, context):
        raise newer("not yet")

    async def test():
        async with serving({services.DROP_CONTEXT: fail}) as (caller, _):
            with pytest.raises(errors.FailedPrecondition, match="not yet") as caught:
                await caller.unary(services.DROP_CONTEXT, DropContextRequest("c"))
            assert type(caught.value) is errors.FailedPrecondition

    assert to_status(newer("x"))[2] == ((ERROR_KEY, "NewerRefusal"),)
    run(test)
