"""Serving and calling `Method`s: bytes in, our dataclasses, bytes out; errors by the catalogue.

Decoding happens in the handler and not in gRPC's deserializer, so that a malformed message is answered
with an error that says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from edge_attention.core.errors import (
    Cancelled,
    Damaged,
    DataLoss,
    DeadlineExceeded,
    DiskFull,
    EdgeAttentionError,
    Internal,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from edge_attention.wire import checksum
from edge_attention.wire.answers import Answers, Key
from edge_attention.wire.errors import from_rpc, to_status
from edge_attention.wire.methods import AnyMethod, Method, Service

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
    """Around one call's handler. What a guard returns is one; this one lets everything be."""

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def away(self) -> None:
        """The handler has given a response and does not run: gRPC sends it."""

    def back(self) -> None:
        """The handler runs again. Raises the error the call is to end with, if it is."""


Guard = Callable[[AnyMethod, "grpc.aio.ServicerContext[Any, Any]"], Served]
"""Asked before a call's request is looked at; raises the error to refuse it with."""

SEALED_KEY = "edge-attention-sealed"
"""Metadata of a call all of whose messages have a checksum: one that comes without has lost it on the way."""

REQUEST_KEY = "edge-attention-request"
"""Metadata of a call that changes something: its id, the same when it is asked again."""

TRIES = 4
"""A call whose request or answer comes damaged is made so often in all, at once, within its deadline."""

DRAINS = 16
DRAIN_SECONDS = 2.5
DRAIN_BYTES = 128 * 1024 * 1024
"""Refused calls whose callers' rest is taken, at a time, and of each. Less than a server takes to stop."""

_SERVED = Served()


def _no_guard(method: AnyMethod, context: object) -> Served:
    return _SERVED


def _nobody() -> str:
    return ""


def service_handlers(
    handlers: Mapping[AnyMethod, Handler],
    guard: Guard | None = None,
    observer: Observer | None = None,
    who: Callable[[], str] = _nobody,
) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """gRPC handlers for `handlers`, by service.

    `guard` says who may call; `observer` is told what becomes of calls; `who`, asked while a call is served,
    says who made it.

    A handler is called with the decoded request (an async iterator of them where the method streams)
    and the call's context, and returns the response (is an async generator of them).
    """
    services: dict[Service, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    drains, answers = _Drains(), Answers()
    for method, handler in handlers.items():
        rpcs = services.setdefault(method.service, {})
        rpcs[method.name] = _rpc_handler(
            method, handler, guard or _no_guard, observer, drains, lambda path, id: (who(), path, id), answers
        )
    return [grpc.method_handlers_generic_handler(service.name, rpcs) for service, rpcs in services.items()]


def _rpc_handler(
    method: AnyMethod,
    handler: Handler,
    guard: Guard,
    observer: Observer | None,
    drains: _Drains,
    key: Callable[[str, str], Key],
    answers: Answers,
) -> grpc.RpcMethodHandler[Any, Any]:
    def requests(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if method.raw:
            return raw
        sealed = method.request.sealed or bool(_told(context, SEALED_KEY))
        if method.streams_request:
            return _decoded(method, raw, sealed)
        return method.request.decode(raw, sealed)

    async def unary(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            came = time.perf_counter()
            with guard(method, context):
                request = requests(raw, context)
                asked = time.perf_counter()
                if method.changes and (id := _told(context, REQUEST_KEY)):

                    async def work() -> bytes:
                        return method.response.encode(await handler(request, context))

                    data = await answers.once(key(method.path, id), work)
                    answered = time.perf_counter()
                else:
                    response = await handler(request, context)
                    answered = time.perf_counter()
                    data = method.response.encode(response)
        except Exception as error:
            if method.streams_request and not isinstance(error, Unauthenticated):
                if isinstance(error, EdgeAttentionError):
                    error.__traceback__ = None  # its frames hold what the handler had taken
                await drains.take(raw)
            await abort(method, error, context, observer)
            raise
        if observer is not None and not method.streams_request:
            before, told = asked - came, observer

            def sent(_: object) -> None:
                told.answered(method, before + time.perf_counter() - answered)

            context.add_done_callback(sent)  # type: ignore[arg-type]  # the stub wants a class
        return data

    async def stream(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        try:
            with guard(method, context) as served:
                async with contextlib.aclosing(handler(requests(raw, context), context)) as responses:
                    async for response in responses:
                        data = response if method.raw else method.response.encode(response)
                        del response  # it may be long until the other side has taken the bytes
                        served.away()
                        yield data
                        served.back()
        except Exception as error:
            await abort(method, error, context, observer)
            raise

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    behaviour: Any = stream if method.streams_response else unary
    return kinds[method.streams_request, method.streams_response](behaviour)


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


async def _decoded(method: Method[Q, R], raw: AsyncIterable[bytes], sealed: bool) -> AsyncIterator[Q]:
    async for data in raw:
        message = method.request.decode(data, sealed)
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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("%s failed: %s", method.path, error)
        error = DiskFull(f"{method.name}: the server's disk is full; free space there, then try again")
    if not isinstance(error, EdgeAttentionError):
        log.exception("%s failed", method.path)
        error = Internal(f"{method.name} failed in the server: {type(error).__name__}; its log says more")
    if observer is not None:
        observer.refused(error)
    code, details, metadata = to_status(error)
    await context.abort(code, details, metadata)


Metadata = tuple[tuple[str, str], ...]
Open = Callable[[], "Awaitable[grpc.aio.Channel]"]


class Caller:
    """Calls methods on an asyncio channel. Errors are raised as the class the server named.

    Args:
        channel: the channel, or what opens it at the first call.
        where: who is called, for errors.
        metadata: what goes with every call, asked for at each.
        explain: asked why the server cannot be reached; None if it cannot tell.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | Open,
        where: str,
        metadata: Callable[[], Metadata] | None = None,
        explain: Callable[[], Awaitable[str | None]] | None = None,
    ) -> None:
        self._channel: Any = None if callable(channel) else channel
        self._open = channel if callable(channel) else None
        self._opening = asyncio.Lock()
        self._where = where
        self._metadata = metadata or (lambda: ())
        self._explain = explain
        self._calls: dict[AnyMethod, Any] = {}

    async def close(self) -> None:
        """End all calls under way and the connection."""
        if self._channel is not None:
            await self._channel.close(None)

    async def _ready(self) -> None:
        if self._channel is None and self._open is not None:
            async with self._opening:
                if self._channel is None:
                    self._channel = await self._open()

    def _call(self, method: AnyMethod) -> Any:
        call = self._calls.get(method)
        if call is None:
            kinds = {
                (False, False): self._channel.unary_unary,
                (False, True): self._channel.unary_stream,
                (True, False): self._channel.stream_unary,
                (True, True): self._channel.stream_stream,
            }
            call = self._calls[method] = kinds[method.streams_request, method.streams_response](
                method.path, None, None
            )
        return call

    async def unary(self, method: Method[Q, R], request: Q, timeout: float | None = None) -> R:
        """One request, one response, within `timeout` seconds."""
        data = method.request.encode(request)

        async def ask(left: float | None, metadata: Metadata) -> bytes:
            try:
                await self._ready()
                answer: bytes = await self._call(method)(data, timeout=left, metadata=metadata)
                return answer
            except (grpc.RpcError, asyncio.CancelledError) as error:
                raise await self._failure(error) from None

        return await self._asked(method, ask, timeout, TRIES)

    async def send(
        self,
        method: Method[Q, R],
        requests: AsyncIterable[Q] | Callable[[], AsyncIterable[Q]],
        timeout: float | None = None,
    ) -> R:
        """A stream of requests, one response. Requests that can be made again are sent again, if need be."""

        async def ask(left: float | None, metadata: Metadata) -> bytes:
            failed: list[Exception] = []
            began = time.monotonic()

            async def raw() -> AsyncIterator[bytes]:
                # gRPC swallows what a request iterator raises; the caller must not lose it.
                try:
                    async for request in requests() if callable(requests) else requests:
                        yield method.request.encode(request)
                except Exception as error:
                    failed.append(error)
                    raise

            try:
                await self._ready()
                answer: bytes = await self._call(method)(raw(), timeout=left, metadata=metadata)
                return answer
            except (grpc.RpcError, asyncio.CancelledError) as error:
                failure = failed[0] if failed else await self._failure(error)
                if isinstance(failure, Unavailable) and left is not None and time.monotonic() >= began + left:
                    # A write that fails hides that too.
                    failure = DeadlineExceeded(f"{self._where} did not answer in time")
                raise failure from None

        return await self._asked(method, ask, timeout, TRIES if callable(requests) else 1)

    async def _asked(
        self,
        method: Method[Q, R],
        ask: Callable[[float | None, Metadata], Awaitable[bytes]],
        timeout: float | None,
        tries: int,
    ) -> R:
        """The answer `ask` gets; it is asked again, at once, where a message came damaged.

        Raises:
            Damaged: it was never done.
            DataLoss: it may have been done; no answer came whole.
        """
        until = None if timeout is None else time.monotonic() + timeout
        id: Metadata = ((REQUEST_KEY, secrets.token_hex(16)),) if method.changes else ()
        done, data = False, b""
        for number in itertools.count(1):
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                data = await ask(left, self._told() + id)
                done = method.changes
                return method.response.decode(data)
            except Damaged as error:
                late = until is not None and time.monotonic() >= until
                # Who sends no checksums keeps no answers, either: an aggregator of an earlier release.
                if number < tries and not late and not (done and checksum.lacking(data)):
                    continue
                if done:
                    raise DataLoss(
                        f"{self._where} has done what was asked, but no answer came whole: {error.message}; "
                        "look what there is before you ask again"
                    ) from None
                raise
        raise AssertionError

    async def receive(
        self, method: Method[Q, R], request: Q, timeout: float | None = None
    ) -> AsyncIterator[R]:
        """One request, a stream of responses. What comes damaged is for who reads it to ask for again."""
        await self._ready()
        data = method.request.encode(request)
        call = self._call(method)(data, timeout=timeout, metadata=self._told())
        try:
            async for data in call:
                yield method.response.decode(data)
        except (grpc.RpcError, asyncio.CancelledError) as error:
            raise await self._failure(error) from None
        finally:
            call.cancel()

    def _told(self) -> Metadata:
        return (*self._metadata(), (SEALED_KEY, "1"))

    async def _failure(self, error: grpc.RpcError | asyncio.CancelledError) -> BaseException:
        if isinstance(error, grpc.RpcError):
            return await self.explained(from_rpc(error, self._where))
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return error
        # gRPC says so too when the channel was closed under the call; this task must not die of that.
        return Cancelled(f"the connection to {self._where} was closed during the call")

    async def explained(self, error: EdgeAttentionError) -> EdgeAttentionError:
        """`error`, or why the server cannot be reached, where that can be told."""
        if self._explain is None or not isinstance(error, Unreachable):
            return error
        reason = await self._explain()
        return error if reason is None else Unreachable(reason)

    def duplex(self, method: Method[Q, R]) -> Duplex[Q, R]:
        """A stream both ways. The channel must be open."""
        call = self._call(method)(metadata=self._metadata())
        return Duplex(method, call, self._where, self.explained)


class Duplex(Generic[Q, R]):
    """An open stream both ways: `write`, iterate to read, `cancel`."""

    def __init__(
        self,
        method: Method[Q, R],
        call: Any,
        where: str,
        explained: Callable[[EdgeAttentionError], Awaitable[EdgeAttentionError]],
    ) -> None:
        self._method, self._raw, self._where, self._explained = method, call, where, explained

    async def write(self, request: Q) -> None:
        """Returns when gRPC has taken the message; raises when the stream has ended."""
        try:
            await self._raw.write(self._method.request.encode(request))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise await self._error(error) from None

    async def write_all(self, requests: asyncio.Queue[Q | None]) -> None:
        """Write what comes through the queue, until None. The reading side tells of an error."""
        with contextlib.suppress(EdgeAttentionError):
            while (request := await requests.get()) is not None:
                await self.write(request)
            await self.done_writing()

    async def __aiter__(self) -> AsyncIterator[R]:
        try:
            async for data in self._raw:
                yield self._method.response.decode(data)
        except grpc.RpcError as error:
            raise await self._error(error) from None

    async def _error(self, error: Exception) -> EdgeAttentionError:
        if isinstance(error, grpc.RpcError):
            return await self._explained(from_rpc(error, self._where))
        code = await self._raw.code()
        return Unavailable(f"the stream to {self._where} has ended with {code.name}")

    async def done_writing(self) -> None:
        await self._raw.done_writing()

    def cancel(self) -> None:
        self._raw.cancel()
