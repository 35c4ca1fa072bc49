"""Serving `Method`s: bytes in, our dataclasses, bytes out; errors by the catalogue.

Decoding happens in the handler and not in gRPC's deserializer, so that a malformed message is answered
with an error that says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from aggregator.serving.answers import Answers, Key
from aggregator.serving.arrivals import Arrivals
from edge_attention.core.errors import (
    DiskFull,
    EdgeAttentionError,
    Internal,
    Unauthenticated,
)
from edge_attention.wire.errors import to_status
from edge_attention.wire.methods import REQUEST_KEY, SEALED_KEY, AnyMethod, Method, Service

log = logging.getLogger(__name__)

Q = TypeVar("Q")
R = TypeVar("R")
Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Any]


class Observer(Protocol):
    """Who counts what happens at the edge."""

    def refused(self, error: EdgeAttentionError) -> None:
        """A call ends with `error`."""

    def answered(self, method: AnyMethod, seconds: float) -> None:
        """A call without streams was answered; decoding, encoding and sending took so long."""


class Served:
    """What a guard returns to be entered around a call's handler. This one changes nothing."""

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def away(self) -> None:
        """The handler has given a response and does not run: gRPC sends it."""

    def back(self) -> None:
        """The handler runs again. Raises the error with which the call is to end, if it is to."""


MethodGuard = Callable[[AnyMethod, "grpc.aio.ServicerContext[Any, Any]"], Served]
"""Asked before a call's request is looked at; raises the error to refuse it with."""

DRAINS = 16
DRAIN_SECONDS = 2.5
DRAIN_BYTES = 128 * 1024 * 1024
"""Refused calls whose callers' rest is taken, at a time, and of each. Less than a server takes to stop."""

LARGE_ARRIVALS, LARGE_SECONDS = 16, 120.0
"""The same as of other requests (arrivals.py), of methods whose messages are past MESSAGE_LIMIT."""
BY_THREAD = 64 * 1024
"""Bytes of a request to such a method from which a thread reads it."""

_SERVED = Served()


def _no_guard(method: AnyMethod, context: object) -> Served:
    return _SERVED


def _nobody() -> str:
    return ""


AnswerRoom = Callable[["grpc.aio.ServicerContext[Any, Any]", int], None]
"""Told how many bytes a call without a stream of responses is answered with, before gRPC has them; raises the
error to answer with instead."""


def _any_room(context: object, size: int) -> None:
    pass


def service_handlers(
    handlers: Mapping[AnyMethod, Handler],
    guard: MethodGuard | None = None,
    observer: Observer | None = None,
    who: Callable[[], str] = _nobody,
    room: AnswerRoom = _any_room,
) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """gRPC handlers for `handlers`, by service.

    `guard` says who may call; `observer` is told what becomes of calls; `who`, asked while a call is served,
    says who made it; `room` whether there is any for an answer.

    A handler is called with the decoded request (an async iterator of them where the method streams)
    and the call's context, and returns the response (is an async generator of them), or what it has encoded
    itself, in a thread, because it takes long; so may be the responses of a stream. That of a `raw` method
    reads and writes bytes itself, by the request iterator and the context, and returns at the end.
    """
    services: dict[Service, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    drains, answers = _Drains(), Answers()
    arrivals = {False: Arrivals(), True: Arrivals(LARGE_ARRIVALS, LARGE_SECONDS, "large-arrivals")}

    async def arrived(method: AnyMethod, raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        sealed = bool(_told(context, SEALED_KEY))
        return await arrivals[method.large].one(who() or context.peer(), raw, sealed)

    for method, handler in handlers.items():
        rpcs = services.setdefault(method.service, {})
        rpcs[method.name] = _rpc_handler(
            method,
            handler,
            guard or _no_guard,
            observer,
            drains,
            lambda path, id: (who(), path, id),
            answers,
            arrived,
            room,
        )
    return [grpc.method_handlers_generic_handler(service.name, rpcs) for service, rpcs in services.items()]


def _rpc_handler(
    method: AnyMethod,
    handler: Handler,
    guard: MethodGuard,
    observer: Observer | None,
    drains: _Drains,
    key: Callable[[str, str], Key],
    answers: Answers,
    arrived: Callable[[AnyMethod, Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]],
    room: AnswerRoom,
) -> grpc.RpcMethodHandler[Any, Any]:
    async def requests(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        sealed = method.request.sealed or bool(_told(context, SEALED_KEY))
        if method.streams_request:
            return _decoded(method, raw, sealed)
        return await _read(method, raw, sealed)

    async def answered(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        with guard(method, context):
            data = raw if method.streams_request else await arrived(method, raw, context)
            came = time.perf_counter()
            request = await requests(data, context)
            del data
            asked = time.perf_counter()
            if method.changes and (id := _told(context, REQUEST_KEY)):

                async def work() -> bytes:
                    return method.response.encode(await handler(request, context))

                data = await answers.once(key(method.path, id), work)
                done = time.perf_counter()
            else:
                response = await handler(request, context)
                done = time.perf_counter()
                data = response if isinstance(response, bytes) else method.response.encode(response)
            if not method.large:
                room(context, len(data))
        if observer is not None and not method.streams_request:
            before, told = asked - came, observer

            def sent(_: object) -> None:
                told.answered(method, before + time.perf_counter() - done)

            context.add_done_callback(sent)  # type: ignore[arg-type]  # the stub wants a class
        return data

    async def unary(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            return await answered(raw, context)
        except Exception as error:
            if method.streams_request and not isinstance(error, Unauthenticated):
                if isinstance(error, EdgeAttentionError):
                    _forget_frames(error)
                await drains.take(raw)
            await abort(method, error, context, observer)
            raise

    async def stream(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        try:
            with guard(method, context) as served:
                if method.raw:
                    await handler(raw, context)
                    return
                asked = raw if method.streams_request else await arrived(method, raw, context)
                asked = await requests(asked, context)
                async with contextlib.aclosing(handler(asked, context)) as responses:
                    del asked
                    async for response in responses:
                        data = response if isinstance(response, bytes) else method.response.encode(response)
                        del response  # it may be long until the other side has taken the bytes
                        served.away()
                        yield data
                        served.back()
        except Exception as error:
            await abort(method, error, context, observer)
            raise

    # Of a call registered as unary gRPC receives the request before anybody is asked whether it may: of
    # a thousand calls of a stranger gigabytes. On the wire there is no difference.
    if method.streams_response:
        return grpc.stream_stream_rpc_method_handler(stream)
    return grpc.stream_unary_rpc_method_handler(unary)


def _forget_frames(error: BaseException) -> None:
    """Let go of what those had who raised `error`: answers of megabytes, of a caller that reads none.

    It takes as long as that caller pleases until gRPC has sent the status.
    """
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__context__


class _Drains:
    """Takes what the callers of refused calls still send, within limits, before their calls end.

    A caller in asyncio whose write fails because the call has ended takes that for the call's end, in one of
    seven calls, and loses the status (grpc/grpc#36066).
    """

    def __init__(self) -> None:
        self._now = 0

    async def take(self, raw: AsyncIterable[bytes]) -> None:
        if self._now >= DRAINS:
            return
        self._now += 1
        size = 0
        try:
            # RuntimeError: somebody still reads.
            with contextlib.suppress(TimeoutError, grpc.aio.BaseError, RuntimeError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    async for data in raw:
                        size += len(data)
                        del data  # not kept while the next one is waited for
                        if size > DRAIN_BYTES:
                            return
        finally:
            self._now -= 1


def _told(context: grpc.aio.ServicerContext[Any, Any], wanted: str) -> str:
    """What the call's metadata say under this key; "" for nothing."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == wanted), "")


async def _read(method: Method[Q, R], data: bytes, sealed: bool) -> Q:
    """The request; a long one is read by a thread."""
    if method.large and len(data) > BY_THREAD:
        return await asyncio.to_thread(method.request.decode, data, sealed)
    return method.request.decode(data, sealed)


async def _decoded(method: Method[Q, R], raw: AsyncIterable[bytes], sealed: bool) -> AsyncIterator[Q]:
    async for data in raw:
        message = await _read(method, data, sealed)
        # Not kept while the next one is waited for: of many streams at once that would be much.
        del data
        yield message
        del message


async def abort(
    method: AnyMethod,
    error: Exception,
    context: grpc.aio.ServicerContext[Any, Any],
    observer: Observer | None = None,
) -> None:
    """End the call with what stands for `error`. Returns only for errors gRPC raises to end a call."""
    if isinstance(error, grpc.aio.AbortError | grpc.aio.InternalError):
        return
    raised = error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("%s failed: %s", method.path, error)
        error = DiskFull(f"{method.name}: the server's disk is full; free space there, then try again")
    if not isinstance(error, EdgeAttentionError):
        log.exception("%s failed", method.path)
        error = Internal(f"{method.name} failed in the server: {type(error).__name__}; its log says more")
    if observer is not None:
        observer.refused(error)
    code, details, metadata = to_status(error)
    _forget_frames(raised)
    await context.abort(code, details, metadata)


_ENDING: set[asyncio.Task[None]] = set()


def end_unread(
    task: asyncio.Task[Any], context: grpc.aio.ServicerContext[Any, Any], error: EdgeAttentionError
) -> None:
    """End a streamed call, served by `task`, whose caller takes nothing: to be called from outside of it.

    Its status goes behind what the caller has yet to take: cancelled alone, the call would have none, and who
    reads again would wait for good (grpcio 1.85). The status may wait for as long as the caller is connected.
    """

    async def tell() -> None:
        code, details, metadata = to_status(error)
        with contextlib.suppress(grpc.aio.BaseError):  # as abort ends, or there is nobody to be told
            await context.abort(code, details, metadata)

    telling = asyncio.create_task(tell(), name="the status of a call that nobody reads")
    _ENDING.add(telling)
    telling.add_done_callback(_ENDING.discard)
    task.cancel()
