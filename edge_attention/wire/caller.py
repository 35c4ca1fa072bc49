"""Calling `Method`s: our dataclasses in, bytes out and in, our dataclasses; errors by the catalogue.

What a call may take covers all of it: opening the connection, another try where an answer came damaged or the
connection has died, and finding out why nobody can be reached.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from edge_attention.core.errors import (
    Cancelled,
    Damaged,
    DataLoss,
    DeadlineExceeded,
    EdgeAttentionError,
    Unavailable,
    Unreachable,
)
from edge_attention.core.printable import shown
from edge_attention.wire import checksum
from edge_attention.wire.errors import from_rpc
from edge_attention.wire.lines import QUIET_PART, QUIET_SECONDS, STREAM_QUIET_SECONDS, Line, Lines, Open
from edge_attention.wire.methods import REQUEST_KEY, SEALED_KEY, AnyMethod, Method
from edge_attention.wire.writer import StreamWriter

Q = TypeVar("Q")
R = TypeVar("R")

TRIES = 6
"""A call whose request or answer comes damaged is made so often in all, at once, within its deadline."""

LATE_SECONDS = 5.0
"""So long after a call's deadline gRPC is late with saying so, which it is only where it stands still."""

EXPLAIN_SECONDS = 5.0
"""What finding out why nobody can be reached takes at most."""

Metadata = tuple[tuple[str, str], ...]
Explain = Callable[[float], Awaitable[str | None]]


class _Died(Exception):
    """The call's connection has died, and there is another."""


class _Ends:
    """When a call's time is over; without `seconds` never. `quiet`: how long it may hear nothing."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds
        self.quiet = QUIET_SECONDS if seconds is None else min(QUIET_SECONDS, QUIET_PART * seconds)

    @property
    def left(self) -> float | None:
        return None if self._at is None else max(self._at - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at


AskOnce = Callable[[_Ends, Metadata], Awaitable[bytes]]


class Caller:
    """Calls methods on an asyncio channel. Errors are raised as the class the server named.

    Args:
        channel: the channel, or what opens one: at the first call, and where one has died.
        where: who is called, for errors.
        metadata: what goes with every call, asked for at each.
        explain: asked why the server cannot be reached, within so many seconds; None if it cannot tell.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | Open,
        where: str,
        metadata: Callable[[], Metadata] | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._lines = Lines(channel) if callable(channel) else Lines(None, channel)
        self._where = where
        self._metadata = metadata or (lambda: ())
        self._explain = explain
        # Whether the server's answers have checksums: one that has them keeps what it answered, too.
        self._seals = False

    async def close(self) -> None:
        """End all calls under way and the connection."""
        await self._lines.close()

    async def unary(self, method: Method[Q, R], request: Q, timeout: float | None = None) -> R:
        """One request, one response, within `timeout` seconds."""
        data = method.request.encode(request)
        again = self._seals or not method.changes

        async def ask(ends: _Ends, metadata: Metadata) -> bytes:
            line = await self._line(ends)
            call = self._call(line, method)(data, timeout=ends.left, metadata=metadata)
            watch = self._lines.watch(line, ends.quiet)
            try:
                with line.using(call, again):
                    answer = await _answer(call, ends)
                line.hear()
                return answer
            except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
                raise await self._failure(error, ends, line) from None
            except TimeoutError:
                raise self._still() from None
            finally:
                watch.stop()
                del call  # an error that is kept keeps this frame, and gRPC dials while there is a call

        return await self._asked(method, ask, timeout, TRIES)

    async def send(
        self,
        method: Method[Q, R],
        requests: AsyncIterable[Q] | Callable[[], AsyncIterable[Q]],
        timeout: float | None = None,
    ) -> R:
        """A stream of requests, one response. Requests that can be made again are sent again, if need be."""
        again = callable(requests) and (self._seals or not method.changes)

        async def ask(ends: _Ends, metadata: Metadata) -> bytes:
            failed: list[Exception] = []
            line = await self._line(ends)
            watch = self._lines.watch(line, STREAM_QUIET_SECONDS)

            async def raw() -> AsyncIterator[bytes]:
                # gRPC swallows what a request iterator raises; the caller must not lose it.
                try:
                    async for request in requests() if callable(requests) else requests:
                        watch.moved()
                        yield method.request.encode(request)
                except Exception as error:
                    failed.append(error)
                    raise

            call: Any = None
            try:
                call = self._call(line, method)(raw(), timeout=ends.left, metadata=metadata)
                with line.using(call, again):
                    answer = await _answer(call, ends)
                line.hear()
                return answer
            except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
                failure = failed[0] if failed else await self._failure(error, ends, line)
                if isinstance(failure, Unavailable) and ends.over:
                    # A write that fails hides that too.
                    failure = DeadlineExceeded(f"{self._where} did not answer in time")
                raise failure from None
            except TimeoutError:
                raise failed[0] if failed else self._still() from None
            finally:
                watch.stop()
                del call

        return await self._asked(method, ask, timeout, TRIES if callable(requests) else 1)

    async def _asked(self, method: Method[Q, R], ask: AskOnce, timeout: float | None, tries: int) -> R:
        """The answer `ask` gets; it is asked again, at once, where a message came damaged or the line died.

        Raises:
            Damaged: it was never done.
            DataLoss: it may have been done; no answer came whole.
        """
        ends = _Ends(timeout)
        id: Metadata = ((REQUEST_KEY, secrets.token_hex(16)),) if method.changes else ()
        done, data, number = False, b"", itertools.count(1)
        while True:
            try:
                data = await ask(ends, self._told() + id)
                done = method.changes
                decoded = method.response.decode(data)
                self._seals = self._seals or not checksum.lacking(data)
                return decoded
            except _Died:
                continue  # another is there, within the same time
            except Damaged as error:
                # Who sends no checksums keeps no answers, either: an aggregator of an earlier release.
                if next(number) < tries and not ends.over and not (done and checksum.lacking(data)):
                    continue
                if done:
                    raise DataLoss(
                        f"{self._where} has done what was asked, but no answer came whole: {error.message}; "
                        "look what there is before you ask again"
                    ) from None
                raise

    async def receive(
        self,
        method: Method[Q, R],
        request: Q | AsyncIterable[Q],
        timeout: float | None = None,
        silence: float | None = None,
    ) -> AsyncIterator[R]:
        """One request, a stream of responses. What comes damaged is for who reads it to ask for again.

        Args:
            request: of a method that streams them, all of them; what they raise ends the call as cancelled.
            silence: seconds that may pass between two responses, or before the first.

        Raises:
            DeadlineExceeded: more have passed.
            Unavailable: the connection has died; the next call has another.
        """
        ends = _Ends(timeout)
        line = await self._line(_Ends(silence) if timeout is None else ends)
        sent: Any = _encoded(method, request) if method.streams_request else method.request.encode(request)  # type: ignore[arg-type]
        call: Any = self._call(line, method)(sent, timeout=ends.left, metadata=self._told())
        silent = False

        def late(quiet: float) -> bool:
            nonlocal silent
            if silent := silence is not None and quiet >= silence:
                call.cancel()
            return silent

        quiet = STREAM_QUIET_SECONDS if silence is None else min(STREAM_QUIET_SECONDS, QUIET_PART * silence)
        watch = self._lines.watch(line, quiet, late)
        try:
            with line.using(call, again=True):
                async for data in call:
                    line.hear()
                    yield method.response.decode(data)
                    watch.moved()  # what is done with a message is not the server's silence
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
            if silent and not _cancelling():
                raise DeadlineExceeded(f"{self._where} has sent nothing for {silence:g} s") from None
            failure = await self._failure(error, ends, line)
            if isinstance(failure, _Died):
                failure = Unavailable(f"the connection to {self._where} has died, and there is another")
            raise failure from None
        finally:
            watch.stop()
            call.cancel()
            call = None

    async def _line(self, ends: _Ends) -> Line:
        try:
            return await self._lines.now(ends.left)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._where} did not answer in time, as it was dialled") from None

    def _call(self, line: Line, method: AnyMethod) -> Any:
        return line.method(method)

    def _still(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._where} did not answer in time, and gRPC did not end the call: it stands still in "
            f"process {os.getpid()}, as it may after a fork; start another"
        )

    def _told(self) -> Metadata:
        return (*self._metadata(), (SEALED_KEY, "1"))

    async def _failure(
        self, error: grpc.RpcError | grpc.aio.BaseError | asyncio.CancelledError, ends: _Ends, line: Line
    ) -> BaseException:
        if isinstance(error, grpc.aio.BaseError):
            return _broken(self._where, error)
        call: Any = error
        error.__traceback__ = None  # gRPC's frames, which have the call
        ours = isinstance(error, asyncio.CancelledError)
        if ours and _cancelling():
            return error
        if line.dead and not self._lines.closed and (ours or call.code() is grpc.StatusCode.CANCELLED):
            return _Died()
        if isinstance(error, grpc.RpcError):
            return await self.explained(from_rpc(error, self._where), ends.left)
        # gRPC says so too when the channel was closed under the call; this task must not die of that.
        return Cancelled(f"the connection to {self._where} was closed during the call")

    async def explained(self, error: EdgeAttentionError, seconds: float | None = None) -> EdgeAttentionError:
        """`error`, or why the server cannot be reached, if that can be told in what is left of a call."""
        if self._explain is None or not isinstance(error, Unreachable):
            return error
        left = EXPLAIN_SECONDS if seconds is None else min(seconds, EXPLAIN_SECONDS)
        reason = await self._explain(left) if left > 0 else None
        return error if reason is None else Unreachable(reason)

    def duplex(self, method: Method[Q, R]) -> Duplex[Q, R]:
        """A stream both ways. The channel must be open."""
        call = self._call(self._lines.opened, method)(metadata=self._metadata())
        return Duplex(method, call, self._where, self.explained)


async def _encoded(method: AnyMethod, requests: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield method.request.encode(request)


async def _answer(call: Awaitable[bytes], ends: _Ends) -> bytes:
    """The call's answer. gRPC ends it at its deadline by itself, unless it stands still.

    Raises:
        TimeoutError: it does.
    """
    if (left := ends.left) is None:
        return await call
    async with asyncio.timeout(left + LATE_SECONDS):
        return await call


def _cancelling() -> bool:
    """Whether it is this task that is to end, and not the call that was cancelled."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _broken(where: str, error: Exception) -> Unavailable:
    """What gRPC raises that is no status: in the middle of a call its connection broke under its own code."""
    return Unavailable(f"the connection to {where} broke: {type(error).__name__}: {shown(error, 200)}")


class Duplex(Generic[Q, R]):
    """An open stream both ways: `write`, iterate to read, `cancel`."""

    def __init__(
        self,
        method: Method[Q, R],
        call: Any,
        where: str,
        explained: Callable[[EdgeAttentionError], Awaitable[EdgeAttentionError]],
    ) -> None:
        self._method = method
        self._raw = call
        self._where = where
        self._explained = explained

    async def write(self, request: Q) -> None:
        """Returns when gRPC has taken the message; raises when the stream has ended."""
        try:
            await self._raw.write(self._method.request.encode(request))
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise await self._error(error) from None

    def writer(
        self,
        next: Callable[[], bytes | None],
        written: Callable[[int], None],
        more: Callable[[], bool] | None = None,
    ) -> StreamWriter:
        """Writes what `next` gives, encoded, in place of `write`. The reading side tells of errors."""
        return StreamWriter(self._raw.write, next, written, more)

    async def __aiter__(self) -> AsyncIterator[R]:
        try:
            async for data in self._raw:
                yield self._method.response.decode(data)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise await self._error(error) from None

    async def _error(self, error: Exception) -> EdgeAttentionError:
        if isinstance(error, grpc.RpcError):
            return await self._explained(from_rpc(error, self._where))
        if isinstance(error, grpc.aio.BaseError):
            return _broken(self._where, error)
        code = await self._raw.code()
        return Unavailable(f"the stream to {self._where} has ended with {code.name}")

    async def done_writing(self) -> None:
        await self._raw.done_writing()

    def cancel(self) -> None:
        self._raw.cancel()
