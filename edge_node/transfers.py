"""The node's end of bulk: what is too large for a message, by digest and resumable."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from edge_attention.core.errors import Cancelled, Damaged, DataLoss, OutOfMemory, Unavailable
from edge_attention.core.halves import from_wire, stored_dtype, to_wire
from edge_attention.core.messages.link import DownloadRequest, UploadChunk, Uploaded
from edge_attention.core.messages.program import BulkTensor, Contribution
from edge_attention.core.tensors import Array, DataType, Encoded, Encoding
from edge_attention.wire.codec import Codec
from edge_attention.wire.link import CONNECT, DOWNLOAD, LINK, UPLOAD
from edge_attention.wire.methods import Method
from edge_attention.wire.tensors import check_size
from edge_node import shared_memory
from edge_node.dialling import LinkLine

T = TypeVar("T")

INLINE = 1024 * 1024
CHUNK = 512 * 1024
"""Bytes of a message. Of every node the aggregator has some in memory, so it may ask for smaller ones."""

LARGE_CHUNK = 1024 * 1024
"""Bytes of a message while they go quickly: there are fewer to handle. Where they do not, a large one that is
lost with its connection would be much to send again."""

QUICK_SECONDS = 0.05
"""What a chunk takes that goes quickly."""

LEAST_CHUNK = 4 * 1024
"""Nobody can ask for smaller ones than these."""

TOGETHER = 2
"""Files under way at a time: of many small ones each would be a round trip or two."""

TIMES = 5
"""A file is tried so often, should the other side have less of it than it had, or its digest be another; and
a chunk that comes damaged."""


class _BulkBytes(Codec[bytes]):
    """Messages as they are on the wire: a damaged one must not end the stream, and size is credit."""

    def __init__(self) -> None:
        pass

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: bytes, sealed: bool | None = None) -> bytes:
        return data


NODE_STREAM = Method(
    LINK, CONNECT.name, _BulkBytes(), _BulkBytes(), streams_request=True, streams_response=True
)


class Room(Protocol):
    """Who counts the bytes that are about to come. `reserve` raises OutOfMemory."""

    def reserve(self, size: int, what: str) -> None: ...

    def release(self, size: int) -> None: ...


class StopCheck(Protocol):
    """Whether somebody still waits. `check` raises if not."""

    def check(self) -> None: ...


def _size(value: Array | Encoded) -> int:
    return value.array.nbytes if isinstance(value, Encoded) else value.nbytes


def is_large(contribution: Contribution, limit: int = INLINE) -> bool:
    """Whether it has more than `limit` bytes of tensors, so that `split` finds some to upload."""
    return sum([_size(value) for value in contribution.tensors.values()]) > limit


def in_messages(contribution: Contribution, limit: int) -> list[Contribution]:
    """`contribution` as several, numbered from it on: each with `limit` bytes of tensors, or a larger one."""
    parts: list[dict[str, Array | Encoded]] = [{}]
    left = limit
    for name, value in contribution.tensors.items():
        left -= _size(value)
        if left < 0 and parts[-1]:
            parts.append({})
            left = limit - _size(value)
        parts[-1][name] = value
    number, last = contribution.number, contribution.number + len(parts) - 1
    before = [
        replace(contribution, number=n, tensors=part, final=False, run_seconds=0.0, task_seconds=0.0)
        for n, part in enumerate(parts[:-1], number)
    ]
    return [*before, replace(contribution, number=last, tensors=parts[-1])]


def split(contribution: Contribution, limit: int = INLINE) -> tuple[Contribution, dict[str, memoryview]]:
    """`contribution` with at most `limit` bytes of tensors in it, and the others' bytes by digest."""
    if not is_large(contribution, limit):
        return contribution, {}
    inline, blobs = dict(contribution.tensors), dict[str, memoryview]()
    bulk: list[BulkTensor] = []
    arrays = {name: v.array if isinstance(v, Encoded) else v for name, v in inline.items()}
    left = sum(array.nbytes for array in arrays.values())
    for name in sorted(arrays, key=lambda name: -arrays[name].nbytes):
        if left <= limit:
            break
        value, array = inline.pop(name), arrays[name]
        left -= array.nbytes
        encoding = value.encoding if isinstance(value, Encoded) else Encoding.RAW
        sent: Any = np.ascontiguousarray(to_wire(array, encoding))
        data = memoryview(sent.reshape(-1)).cast("B")
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        bulk.append(BulkTensor(name, DataType.of(array.dtype), array.shape, encoding, digest, len(data)))
    return replace(contribution, tensors=inline, bulk_tensors=tuple(bulk)), blobs


async def together(work: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """`work` on every item, TOGETHER at a time. After an error the others are called off."""
    free = asyncio.Semaphore(TOGETHER)

    async def one(item: T) -> None:
        async with free:
            await work(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Transfers:
    """Bulk over whatever connection there is: a transfer that breaks goes on where it was, on the next."""

    def __init__(self, room: Room, counted: Callable[[str, int], None]) -> None:
        """`counted(direction, bytes)` is told what goes over the wire."""
        self._room = room
        self._counted = counted
        self._chunk = CHUNK
        self._quick = False
        self._connection: tuple[LinkLine, str] | None = None
        self._online = asyncio.Event()

    def online(self, caller: LinkLine, session: str) -> None:
        """There is a connection: transfers that wait for one go on over it."""
        self._connection = (caller, session)
        self._online.set()

    def offline(self) -> None:
        """The connection is gone: transfers wait for the next one."""
        self._connection = None
        self._online.clear()

    async def download(self, digest: str, limit: int, stop: StopCheck) -> memoryview:
        """The file; its bytes stay reserved until the caller releases them.

        Raises:
            OutOfMemory: larger than `limit` or than there is room.
            DataLoss: it came damaged.
            NotFound: the aggregator does not have it.
        """
        data: memoryview | None = None
        where, received = f"file {digest[:12]}", 0
        found, hashing = hashlib.sha256(), None
        damaged = again = 0
        try:
            while True:
                caller, session = await self._connected(stop)
                try:
                    async for chunk in caller.receive(DOWNLOAD, DownloadRequest(session, digest, received)):
                        stop.check()
                        if chunk.size > limit:
                            raise OutOfMemory(f"{where} has {chunk.size:,} bytes; the limit is {limit:,}")
                        if data is None:
                            self._room.reserve(chunk.size, where)
                            # Not a bytearray: that would write it all twice.
                            data = shared_memory.empty(chunk.size, np.uint8).data
                        end = received + len(chunk.data)
                        if chunk.offset != received or end > len(data) or chunk.size != len(data):
                            raise DataLoss(f"{where} came in chunks that do not follow each other")
                        part = data[received:end]
                        part[:] = chunk.data
                        received, damaged = end, 0
                        if hashing is not None:
                            await hashing
                        # While the next one comes.
                        hashing = asyncio.create_task(asyncio.to_thread(found.update, part))
                        self._counted("received", len(chunk.data))
                    if data is None or received < len(data):
                        raise Damaged(f"{where} ended after {received:,} bytes")
                except Damaged:
                    # It goes on at once where it was; what came before is whole.
                    damaged += 1
                    if damaged == TIMES:
                        raise
                except (Unavailable, Cancelled):
                    await self._again(stop)
                if data is not None and received == len(data):
                    if hashing is not None:
                        await hashing
                    if found.hexdigest() == digest:
                        return data
                    again += 1
                    if again == TIMES:
                        raise DataLoss(f"{where} came damaged {TIMES} times: its bytes have another digest")
                    found, hashing, received = hashlib.sha256(), None, 0
        except BaseException:
            self._room.release(len(data or b""))
            raise

    async def tensor(self, bulk: BulkTensor, stop: StopCheck) -> Array:
        """The tensor, downloaded; `bulk.size` bytes stay reserved until the caller releases them."""
        dtype = stored_dtype(bulk.encoding, np.dtype(bulk.data_type.value), bulk.name)
        check_size(bulk.name, bulk.shape, dtype.itemsize, bulk.size)
        data = await self.download(bulk.digest, bulk.size, stop)
        if len(data) != bulk.size:
            self._room.release(len(data))
            raise DataLoss(f"{bulk.name} was announced with {bulk.size:,} bytes; its file has {len(data):,}")
        return from_wire(np.frombuffer(data, dtype).reshape(bulk.shape), bulk.encoding)

    async def upload_all(self, files: Mapping[str, memoryview], stop: StopCheck) -> None:
        """Returns when the aggregator has every file, by digest. It hears of all before the first byte."""
        there: dict[str, int] = {}

        async def ask(digest: str) -> None:
            there[digest] = await self._ask(digest, len(files[digest]), stop)

        async def upload(digest: str) -> None:
            await self._upload(digest, files[digest], there[digest], stop)

        await together(ask, files)
        await together(upload, files)

    async def _ask(self, digest: str, size: int, stop: StopCheck) -> int:
        """How much of the file the aggregator has."""

        async def question(session: str) -> AsyncIterator[UploadChunk]:
            yield UploadChunk(session, digest, 0, size, b"")

        damaged = 0
        while True:
            caller, session = await self._connected(stop)
            try:
                return self._answered(await caller.send(UPLOAD, question(session)))
            except Damaged:
                damaged += 1
                if damaged == TIMES:
                    raise
            except (Unavailable, Cancelled):
                await self._again(stop)

    async def _upload(self, digest: str, data: memoryview, there: int, stop: StopCheck) -> None:
        async def chunks(session: str, start: int) -> AsyncIterator[UploadChunk]:
            while start < len(data):
                stop.check()
                part: Any = data[start : start + self._size]
                self._counted("sent", len(part))
                began = time.monotonic()
                yield UploadChunk(session, digest, start, len(data), part)
                self._quick = time.monotonic() - began < QUICK_SECONDS
                start += len(part)

        times = 0
        while there < len(data):
            caller, session = await self._connected(stop)
            before = there
            try:
                there = self._answered(await caller.send(UPLOAD, chunks(session, there)))
                # No more than it had: it was done with the file, for a task that returned the same bytes; or
                # what came next was damaged.
                times = 0 if there > before else times + 1
                if there > len(data) or times == TIMES:
                    raise DataLoss(f"the aggregator took {there:,} of a tensor's {len(data):,} bytes")
            except DataLoss:
                # The first chunk was damaged, or the answer; or the whole file, which then begins anew.
                times += 1
                if times >= TIMES or there > len(data):
                    raise
                there = await self._ask(digest, len(data), stop)
            except (Unavailable, Cancelled):
                await self._again(stop)
                there = await self._ask(digest, len(data), stop)

    @property
    def _size(self) -> int:
        """Bytes of the next chunk."""
        return min(self._chunk, LARGE_CHUNK if self._quick else CHUNK)

    def _answered(self, answer: Uploaded) -> int:
        """How much of the file is there; chunks are no larger from now on than is asked."""
        self._chunk = max(LEAST_CHUNK, answer.chunk_bytes) if answer.chunk_bytes else CHUNK
        return answer.received

    async def _connected(self, stop: StopCheck) -> tuple[LinkLine, str]:
        while True:
            stop.check()
            if self._connection is not None:
                return self._connection
            # Woken now and then, to see whether anybody still waits for the task.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._online.wait(), 1)

    async def _again(self, stop: StopCheck) -> None:
        stop.check()
        await asyncio.sleep(1)
