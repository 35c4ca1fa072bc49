"""The node's end of bulk: what is too large for a message, by digest and resumable."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from edge_attention.core.errors import Cancelled, DataLoss, OutOfMemory, Unavailable
from edge_attention.core.halves import from_wire, stored_dtype, to_wire
from edge_attention.core.program import BulkTensor, Contribution
from edge_attention.core.session import DownloadRequest, UploadChunk
from edge_attention.core.tensors import Array, DataType, Encoded, Encoding
from edge_attention.wire.codec import Codec
from edge_attention.wire.link import CONNECT, DOWNLOAD, LINK, UPLOAD
from edge_attention.wire.methods import Method
from edge_attention.wire.rpc import Caller
from edge_attention.wire.tensors import check_size

CHUNK = INLINE = 1024 * 1024


class _Bytes(Codec[bytes]):
    """Messages as they are on the wire: a damaged one must not end the stream, and size is credit."""

    def __init__(self) -> None:
        pass

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: bytes) -> bytes:
        return data


NODE_STREAM = Method(LINK, CONNECT.name, _Bytes(), _Bytes(), streams_request=True, streams_response=True)


class Room(Protocol):
    """Who counts the bytes that are about to come. `reserve` raises OutOfMemory."""

    def reserve(self, size: int, what: str) -> None: ...

    def release(self, size: int) -> None: ...


class Stop(Protocol):
    """Whether somebody still waits. `check` raises if not."""

    def check(self) -> None: ...


def split(contribution: Contribution) -> tuple[Contribution, dict[str, memoryview]]:
    """`contribution` with at most INLINE bytes of tensors in it, and the others' bytes by digest."""
    inline, blobs = dict(contribution.tensors), dict[str, memoryview]()
    bulk: list[BulkTensor] = []
    arrays = {name: v.array if isinstance(v, Encoded) else v for name, v in inline.items()}
    left = sum(array.nbytes for array in arrays.values())
    if left <= INLINE:
        return contribution, blobs
    for name in sorted(arrays, key=lambda name: -arrays[name].nbytes):
        if left <= INLINE:
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


class Transfers:
    """Bulk over whatever connection there is: a transfer that breaks goes on where it was, on the next."""

    def __init__(self, room: Room, counted: Callable[[str, int], None]) -> None:
        """`counted(direction, bytes)` is told what goes over the wire."""
        self._room, self._counted = room, counted
        self._connection: tuple[Caller, str] | None = None
        self._online = asyncio.Event()

    def online(self, caller: Caller, session: str) -> None:
        self._connection = (caller, session)
        self._online.set()

    def offline(self) -> None:
        self._connection = None
        self._online.clear()

    async def download(self, digest: str, limit: int, stop: Stop) -> bytearray:
        """The file; its bytes stay reserved until the caller releases them.

        Raises:
            OutOfMemory: larger than `limit` or than there is room.
            DataLoss: it came damaged.
            NotFound: the aggregator does not have it.
        """
        data: bytearray | None = None
        where, received = f"file {digest[:12]}", 0
        try:
            while data is None or received < len(data):
                caller, session = await self._connected(stop)
                try:
                    async for chunk in caller.receive(DOWNLOAD, DownloadRequest(session, digest, received)):
                        stop.check()
                        if chunk.size > limit:
                            raise OutOfMemory(f"{where} has {chunk.size:,} bytes; the limit is {limit:,}")
                        if data is None:
                            self._room.reserve(chunk.size, where)
                            data = bytearray(chunk.size)
                        end = received + len(chunk.data)
                        if chunk.offset != received or end > len(data) or chunk.size != len(data):
                            raise DataLoss(f"{where} came in chunks that do not follow each other")
                        data[received:end] = chunk.data
                        received = end
                        self._counted("received", len(chunk.data))
                    if data is None or received < len(data):
                        raise DataLoss(f"{where} ended after {received:,} bytes")
                except (Unavailable, Cancelled):
                    await self._again(stop)
            if (await asyncio.to_thread(hashlib.sha256, data)).hexdigest() != digest:
                raise DataLoss(f"{where} came damaged: its bytes have another digest")
            return data
        except BaseException:
            self._room.release(len(data or b""))
            raise

    async def tensor(self, bulk: BulkTensor, stop: Stop) -> Array:
        """The tensor, downloaded; `bulk.size` bytes stay reserved until the caller releases them."""
        dtype = stored_dtype(bulk.encoding, np.dtype(bulk.data_type.value), bulk.name)
        check_size(bulk.name, bulk.shape, dtype.itemsize, bulk.size)
        data = await self.download(bulk.digest, bulk.size, stop)
        if len(data) != bulk.size:
            self._room.release(len(data))
            raise DataLoss(f"{bulk.name} was announced with {bulk.size:,} bytes; its file has {len(data):,}")
        return from_wire(np.frombuffer(data, dtype).reshape(bulk.shape), bulk.encoding)

    async def upload(self, digest: str, data: memoryview, stop: Stop) -> None:
        """Returns when the aggregator has the whole file."""

        async def chunks(session: str, start: int, stop_at: int) -> AsyncIterator[UploadChunk]:
            for offset in range(start, max(stop_at, start + 1), CHUNK):
                stop.check()
                part = bytes(data[offset : min(offset + CHUNK, stop_at)])
                self._counted("sent", len(part))
                yield UploadChunk(session, digest, offset, len(data), part)

        while True:
            caller, session = await self._connected(stop)
            try:
                # Without data it asks how much is there.
                received = (await caller.send(UPLOAD, chunks(session, 0, 0))).received
                if received < len(data):
                    received = (await caller.send(UPLOAD, chunks(session, received, len(data)))).received
                if received != len(data):
                    raise DataLoss(f"the aggregator took {received:,} of a tensor's {len(data):,} bytes")
                return
            except (Unavailable, Cancelled):
                await self._again(stop)

    async def _connected(self, stop: Stop) -> tuple[Caller, str]:
        while True:
            stop.check()
            if self._connection is not None:
                return self._connection
            # Woken now and then, to see whether anybody still waits for the task.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._online.wait(), 1)

    async def _again(self, stop: Stop) -> None:
        stop.check()
        await asyncio.sleep(1)
