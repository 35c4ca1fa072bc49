"""A client's way to its aggregator: the channel, timeouts, when to ask again, and files sent up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edge_attention.client import forks
from edge_attention.client.dial import client_dial
from edge_attention.client.forks import on_fork, pending, refuse_after_fork, refuse_in_child
from edge_attention.core.addresses import meant_by
from edge_attention.core.errors import DataLoss, FailedPrecondition, InvalidArgument, Overloaded, Unavailable
from edge_attention.core.messages.link import UploadChunk
from edge_attention.jobs import values
from edge_attention.wire import services
from edge_attention.wire.caller import Caller

T = TypeVar("T")

MIB = 1024 * 1024
OnSent = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
DEADLINE_MARGIN = 0.75  # the server answers at the deadline, labelled; ours comes after it, within a second
MAX_SECONDS = 1e9  # what no timeout is above
SLOWEST = 250_000  # bytes a second a connection is expected to carry, for timeouts of bulk calls


class ClientConnection:
    """What a client and its handles (contexts, runs) share. Close it when all of them are done.

    Attributes:
        address: `HOST:PORT`.
        timeout: seconds a call may take that has no deadline of its own.
        patience: seconds a run goes on trying to reach an aggregator that is away.
        retry: whether a call that was refused as too much for now is made again.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        patience: float,
        retry: bool,
        token: str | None,
        authority: str | Path | None,
        identity: str | Path | None,
    ) -> None:
        """See `AsyncClient`. Nothing is dialled before the first call.

        Raises:
            InvalidArgument: an address that is none, a timeout that is not positive, a token that is none.
            FailedPrecondition: this process was forked by one that had a client open.
        """
        refuse_after_fork()
        if not isinstance(address, str):
            raise InvalidArgument(
                f"the address is {values.said(address)}; it must be a string, as '127.0.0.1:50051'"
            )
        if "://" in address:
            raise InvalidArgument(
                f"{address!r} is a web address; an aggregator's is HOST:PORT, as {meant_by(address)!r}"
            )
        host, colon, port = address.rpartition(":")
        whole = port.isascii() and port.isdigit() and len(port) < 6
        if not (colon and host and whole and int(port) < 65536):
            raise InvalidArgument(f"{address!r} is not HOST:PORT, as 127.0.0.1:50051")
        self.address = address
        self.timeout = values.above(timeout, "timeout", MAX_SECONDS)
        self.patience = values.number(patience, "patience")
        self.retry = values.switch(retry, "retry")
        token = None if token is None else values.text(token, "token")
        authority = None if authority is None else values.path(authority, "authority")
        identity = None if identity is None else values.path(identity, "identity")
        where = f"the aggregator at {address}"
        self._dial, self._keeper = client_dial(address, where, token, authority, identity)
        if self._keeper is not None:
            weakref.finalize(self, self._keeper.forget).atexit = False
        self._closed = False
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._caller: Caller | None = None
        _connections.add(self)

    @property
    def caller(self) -> Caller:
        """The channel, for calls in the event loop of the first of them.

        Raises:
            FailedPrecondition: the client is closed, was made before a fork, or belongs to another loop.
        """
        self.check()
        # Made at the first call: a channel belongs to the event loop it was made in.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise FailedPrecondition(
                f"the client of {self.address} is for an event loop, and none runs here: use a Client"
            ) from None
        if self._caller is None:
            self._loop, self._caller = loop, self._dial.caller()
            forks.opened()
        elif loop is not self._loop:
            raise FailedPrecondition(
                f"the client of {self.address} belongs to the event loop of its first call, and this is "
                "another: make an AsyncClient in each event loop (each asyncio.run), or use a Client, which "
                "may be called from any"
            )
        return self._caller

    def seconds(self, timeout: float | None) -> float:
        """A call's own `timeout`, or the client's where it is None."""
        return self.timeout if timeout is None else values.above(timeout, "timeout", MAX_SECONDS)

    @property
    def inherited(self) -> bool:
        """Whether it was made before a fork, in the process this is a child of."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """FailedPrecondition if it can call nobody: closed, or made before a fork."""
        refuse_in_child(self._pid, f"the client of {self.address}")
        if self._closed:
            raise FailedPrecondition(f"the client of {self.address} is closed; make another")

    async def close(self) -> None:
        """End all calls under way and the channel. In a child that was forked meanwhile nothing happens."""
        if self.inherited:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.close()
        caller, self._caller = self._caller, None
        if caller is not None:
            try:
                await caller.close()
            finally:
                forks.closed()

    def __reduce__(self) -> NoReturn:
        raise FailedPrecondition(
            f"the client of {self.address} cannot be copied, nor sent to another process: make one there, "
            "with its address"
        )

    async def patiently(self, call: Callable[[], Awaitable[T]], until: float) -> T:
        """`call()`; while it is refused as too much for now, again when it is worth it and `until` allows.

        Args:
            call: one that has had no effect where it was refused.
            until: of `time.monotonic`.
        """
        while True:
            try:
                return await call()
            except Overloaded as error:
                if not self.retry or error.retry_after is None:
                    raise
                # Not all at the same moment.
                wait = error.retry_after * random.uniform(0.75, 1.5)
                if time.monotonic() + wait >= until:
                    raise
                await asyncio.sleep(wait)

    async def upload(self, data: bytes) -> str:
        """Send a file unless the aggregator has it; returns its SHA-256, by which it is known there.

        Raises:
            DataLoss: the aggregator did not keep it.
            Unavailable: it could not be reached three times in a row.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())

        async def read(at: int) -> bytes:
            return data[at : at + MIB]

        await self._upload(digest, len(data), read, _nobody)
        return digest

    async def upload_file(self, path: Path, progress: OnSent) -> str:
        """As `upload`, of a file on the disk, which is never in memory as a whole.

        `progress`: told the bytes that are there, and those of the whole.

        Raises:
            InvalidArgument: it cannot be read.
            DataLoss: it has changed meanwhile, too.
        """
        try:
            with path.open("rb", buffering=0) as file:
                digest = await asyncio.to_thread(lambda: hashlib.file_digest(file, "sha256").hexdigest())
                size = os.fstat(file.fileno()).st_size

                async def read(at: int) -> bytes:
                    return await asyncio.to_thread(os.pread, file.fileno(), MIB, at)

                await self._upload(digest, size, read, progress)
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from None
        return digest

    async def _upload(
        self, digest: str, size: int, read: Callable[[int], Awaitable[bytes]], progress: OnSent
    ) -> None:
        async def chunks(start: int) -> AsyncIterator[UploadChunk]:
            if start >= size:
                yield UploadChunk("", digest, start, size, b"")
            for at in range(start, size, MIB):
                yield UploadChunk("", digest, at, size, await read(at))
                progress(min(at + MIB, size), size)

        timeout = self.timeout + size / SLOWEST
        ask = partial(chunks, size)  # without data: how much is there
        for attempt in range(3):
            try:
                there = (await self.caller.send(services.BULK_UPLOAD, ask, timeout)).received
                if there < size:
                    there = (
                        await self.caller.send(services.BULK_UPLOAD, partial(chunks, there), timeout)
                    ).received
            except Unavailable:
                if attempt == 2:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
            else:
                if there == size:
                    progress(size, size)
                    return
        raise DataLoss(f"the aggregator at {self.address} did not keep file {digest[:12]}: send it again")


def _nobody(done: int, total: int) -> None:
    pass


def _inherited() -> list[Any]:
    """In a forked child: the parent's connections, and what is under way on them."""
    found = list(_connections)
    return [found, *(thing for one in found for thing in pending(one._loop))]


_connections: weakref.WeakSet[ClientConnection] = weakref.WeakSet()
on_fork(_inherited)
