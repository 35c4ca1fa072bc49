"""What is too large for a message: graphs and tensors by digest, in chunks, from any offset.

Neither way is a file held in memory: what goes down is read from where it lies, chunk by chunk, what comes
up goes to the spool. Only what recipes `lend` as bytes, small tensors and graphs, is here itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from aggregator.bounds.budget import Lease
from aggregator.engine.arriving import OnDisk, Rows
from aggregator.engine.lanes import Lanes
from aggregator.engine.spool import Spool, SpooledTensor, SpoolFile
from aggregator.store.blobs import require_digest
from aggregator.store.folder import require_space
from aggregator.store.state import State
from edge_attention.core.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from edge_attention.core.messages.link import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import Array, DataType, Encoding
from edge_attention.graphs.attention import library

CHUNK = 512 * 1024

MOST_CHUNK = 1024 * 1024
"""The most that is asked of a node. It sends such large ones only while they go quickly."""

INLINE_LIMIT = 1024 * 1024
"""Tensors of a program beyond this many bytes travel by Download."""

UPLOAD_LIMIT = 4 * 1024 * 1024 * 1024
"""Bytes of the largest file taken, and of all of one sender's under way together."""

FILES_LIMIT = 10_000
"""Files one sender may have under way."""

LANES = 8
"""Senders whose chunks are in memory at a time. Of more receivers each has smaller ones."""

NODES_BYTES = 16 * 1024 * 1024
"""What one chunk of every node has together. gRPC keeps room for two of each connection's, read or not."""

LEAST_CHUNK = 64 * 1024
"""Smaller ones cost more time than they spare memory."""

STALE_SECONDS = 3600.0
"""What has come and nobody spoke of since is dropped: its task was cancelled."""


_LARGE = 64 * 1024


def chunk_bytes(nodes: int) -> int:
    """The most bytes of a chunk of one of so many nodes, any of which may send: whole pages."""
    return min(MOST_CHUNK, max(LEAST_CHUNK, NODES_BYTES // max(nodes, 1) & -4096))


class Progress(NamedTuple):
    """What of one sender's files under way has come, in chunks, and when the last did (`time.monotonic`)."""

    done: int
    total: int
    last: float


class Readable(Protocol):
    """Bytes that are somewhere, and read piece by piece."""

    @property
    def nbytes(self) -> int: ...

    def read(self, start: int, size: int) -> bytes:
        """These bytes; all of them are there. May block for as long as a disk does."""


@dataclass(frozen=True)
class _Part:
    """Bytes [offset, offset + size) of a file."""

    path: Path
    offset: int
    size: int


class Bulk:
    """Files by SHA-256: lent for the length of an exchange, kept in the state, or under way upwards."""

    def __init__(self, state: State) -> None:
        self._state = state
        # Of equal bytes in several files each is known while any is lent: one may be removed meanwhile.
        self._lent: dict[str, list[bytes | _Part | Readable]] = {}
        self._loans: Counter[str] = Counter()
        self._library = {library.digest(name): library.load(name) for name in library.names()}
        self._spool = Spool(state.directory / "spool")
        self._lanes = Lanes(LANES)
        self._downloads = 0
        self._uploads: dict[str, dict[str, SpoolFile]] = {}
        # Two tasks may return the same bytes: each fetches them once.
        self._wanted: Counter[tuple[str, str]] = Counter()

    # Down

    def lend(self, data: bytes) -> str:
        """Offer `data` for download until `take_back` of the digest returned."""
        digest = hashlib.sha256(data).hexdigest()
        self._offer(digest, data)
        return digest

    def lend_file(self, digest: str, path: Path, offset: int, size: int) -> None:
        """Offer these bytes of a file, whose digest this is, until `take_back`. The file stays as it is."""
        self._offer(digest, _Part(path, offset, size))

    def lend_source(self, digest: str, source: Readable) -> None:
        """Offer what `source` reads, whose digest this is, until `take_back`: no more of it is in memory than
        a chunk."""
        self._offer(digest, source)

    def _offer(self, digest: str, source: bytes | _Part | Readable) -> None:
        sources = self._lent.setdefault(digest, [])
        if source not in sources:
            sources.append(source)
        self._loans[digest] += 1

    def take_back(self, digest: str) -> None:
        """End one loan of the file; after the last it is not offered any more. Call it once for each loan."""
        self._loans[digest] -= 1
        if self._loans[digest] <= 0:
            self._lent.pop(digest, None)
            del self._loans[digest]

    async def lend_rows(
        self, tensors: Mapping[str, Rows], limit: int = INLINE_LIMIT
    ) -> tuple[dict[str, Array], tuple[BulkTensor, ...]]:
        """Split `tensors` into those that a message has, `limit` bytes together, and those that are lent.

        Beside the event loop: large ones are hashed in a thread, what is on the disk stays there. Whoever
        called takes back what was lent; where this raises, nothing is.
        """
        inline: dict[str, Array] = {}
        lent: list[BulkTensor] = []
        size = 0
        try:
            for name, rows in tensors.items():
                if size + rows.nbytes <= limit:
                    size += rows.nbytes
                    inline[name] = await asyncio.to_thread(rows.array) if isinstance(rows, OnDisk) else rows
                elif isinstance(rows, OnDisk):
                    digest = await asyncio.to_thread(rows.digest)
                    self.lend_file(digest, rows.path, rows.offset, rows.nbytes)
                    data_type = DataType.FLOAT32
                    lent.append(BulkTensor(name, data_type, rows.shape, Encoding.RAW, digest, rows.nbytes))
                else:
                    data_type = DataType.of(rows.dtype, name)
                    data, digest = await asyncio.to_thread(_hashed, rows)
                    self._offer(digest, data)
                    lent.append(BulkTensor(name, data_type, rows.shape, Encoding.RAW, digest, len(data)))
        except BaseException:
            for tensor in lent:
                self.take_back(tensor.digest)
            raise
        return inline, tuple(lent)

    def has(self, digest: str) -> bool:
        """Whether there is such a file; its bytes are not looked at."""
        return digest in self._library or digest in self._lent or self._state.has_blob(digest)

    def find(self, digest: str) -> bytes:
        """The file with this digest, in memory, verified. Blocks for as long as that takes.

        Raises:
            NotFound: nobody has offered it.
        """
        data = self._library.get(digest)
        if data is not None:
            return data
        for source in self._lent.get(digest, ()):
            if isinstance(source, bytes):
                return source
            with _Reader(source) as reader:
                return reader.read(0, reader.size)
        try:
            return self._state.get_blob(digest)
        except InvalidArgument:
            raise _unknown(digest) from None

    async def download(
        self, request: DownloadRequest, counted: Callable[[int], None] | None = None
    ) -> AsyncIterator[Chunk]:
        """The file in chunks, from `request.offset` on. `counted` is told the bytes of each.

        Raises:
            NotFound: nobody has offered it.
            InvalidArgument: the offset lies past its end.
        """
        with await self._open(request.digest) as reader:
            if request.offset > reader.size:
                raise InvalidArgument(f"offset {request.offset} lies past the file's {reader.size} bytes")
            self._downloads += 1
            try:
                start = request.offset
                while start < max(reader.size, 1):
                    size = min(CHUNK if self._downloads <= LANES else CHUNK // 4, reader.size - start)
                    if counted is not None:
                        counted(size)
                    start += size
                    yield Chunk(start - size, reader.size, reader.read(start - size, size))
                    if not size:
                        return
            finally:
                self._downloads -= 1

    async def _open(self, digest: str) -> _Reader:
        sources = list(self._lent.get(digest, ()))
        if digest in self._library:
            sources.append(self._library[digest])
        for source in sources:
            try:
                return _Reader(source)
            except FileNotFoundError:
                continue  # its version was removed; another that is lent has the same bytes
        try:
            path = await asyncio.to_thread(self._state.blob_path, digest)
            return _Reader(_Part(path, 0, path.stat().st_size))
        except InvalidArgument:
            raise _unknown(digest) from None

    # Up

    @property
    def folder(self) -> Path:
        """The spool, for what comes up in another way."""
        return self._spool.folder

    async def upload(
        self, sender: str, chunks: AsyncIterator[UploadChunk], keep: bool, room: Lease | None = None
    ) -> Uploaded:
        """Take a file's chunks; what came before a broken call is still there at the next.

        A call that begins past what is there is told how much that is: the task before, which returned the
        same bytes, may be done with the file that this call was to go on with.

        `keep`: put the finished file into the state (clients' graphs); otherwise it waits for `received`.
        `room` grows with the sizes of the files that begin.

        Raises:
            DataLoss: the whole file does not have the digest.
            ResourceExhausted: it is larger than UPLOAD_LIMIT.
            DiskFull: the disk is, but for what commits need.
            InvalidArgument: a chunk goes past the file's end, or names a file by what is no digest.
        """
        files = self._uploads.setdefault(sender, {})
        received, claimed, whole = 0, "", False
        try:
            async with aclosing(self._lanes.each(chunks)) as each:
                async for chunk in each:
                    if keep and self._state.has_blob(chunk.digest):
                        return Uploaded(chunk.size)
                    if chunk.digest not in files:
                        require_digest(chunk.digest)
                    if not claimed:
                        claimed = chunk.digest
                        self._wanted[sender, claimed] += 1
                    if room is not None and chunk.digest not in files:
                        self._require_room(chunk, room)
                    received = await self._take(sender, files, chunk)
                    if received < chunk.offset:
                        break
                    whole = received == chunk.size
                    if keep and whole:
                        file = files.pop(chunk.digest)
                        try:
                            await asyncio.to_thread(self._state.adopt_blob, file.path, file.digest)
                        finally:
                            file.release()
                    del chunk  # not kept while the next is waited for
        finally:
            if claimed and (keep or not whole):
                self._done(sender, claimed)
        return Uploaded(received)

    def _require_room(self, chunk: UploadChunk, room: Lease) -> None:
        """Have `room` grow by a client's file, of which nothing is there yet. Raises as `Lease.grow`."""
        if chunk.size <= UPLOAD_LIMIT:  # else refused below, for that
            room.grow(chunk.size)

    async def _take(self, sender: str, files: dict[str, SpoolFile], chunk: UploadChunk) -> int:
        """Put the chunk into its file; the bytes there then."""
        file = files.get(chunk.digest)
        if file is None or file.size != chunk.size:
            self._make_room(sender, files, chunk)
            require_space(self._spool.folder, chunk.size)
            if chunk.digest in files:
                self._drop(files, chunk.digest)
            file = files[chunk.digest] = self._spool.file(chunk.digest, chunk.size)
        file.spoken_of = time.monotonic()
        if chunk.offset > file.received:
            return file.received
        if chunk.data:
            # Others write, too: there was room for each of them when it began.
            require_space(self._spool.folder, len(chunk.data))
        try:
            if len(chunk.data) >= _LARGE:
                # To hash and write it takes a millisecond: queries do not wait for that.
                await asyncio.to_thread(file.append, chunk.data, chunk.offset)
            elif chunk.data or not chunk.size:
                file.append(chunk.data, chunk.offset)
        except DataLoss:
            if files.get(chunk.digest) is file:
                self._drop(files, chunk.digest)
            raise
        return file.received

    def _make_room(self, sender: str, files: dict[str, SpoolFile], chunk: UploadChunk) -> None:
        """Before a file that is new: drop what nobody asks for any more.

        Raises:
            ResourceExhausted: there is still too much under way.
        """

        def full() -> bool:
            others = sum(file.size for digest, file in files.items() if digest != chunk.digest)
            return len(files) >= FILES_LIMIT or chunk.size + others > UPLOAD_LIMIT

        old = time.monotonic() - STALE_SECONDS
        for digest in [digest for digest, file in files.items() if file.spoken_of < old]:
            self._drop(files, digest)
            del self._wanted[sender, digest]
        if full():
            # What was broken off and never taken up again.
            for digest in [digest for digest in files if not self._wanted[sender, digest]]:
                self._drop(files, digest)
        if full():
            raise ResourceExhausted(
                f"a file of {chunk.size:,} bytes does not fit: {UPLOAD_LIMIT:,} bytes may be under way, "
                f"in {FILES_LIMIT:,} files"
            )

    def received(self, sender: str, tensors: Sequence[BulkTensor]) -> dict[str, SpooledTensor]:
        """One contribution's tensors whose bytes `sender` has uploaded. The caller closes them.

        Tensors of equal bytes, as gradients of zeros, are one file.

        Raises:
            NotFound: they have not come, or not all.
            InvalidTensor: they do not fit the shape.
        """
        files = self._uploads.get(sender, {})
        found: dict[str, SpooledTensor] = {}
        for tensor in tensors:
            file = files.get(tensor.digest)
            if (
                file is None
                or not file.whole
                or file.size != tensor.size
                or not self._wanted[sender, tensor.digest]
            ):
                raise NotFound(f"tensor {tensor.name[:80]!r} was announced, but its bytes were not uploaded")
            if tensor.name in found:
                raise InvalidArgument(f"tensor {tensor.name[:80]!r} is announced twice")
            found[tensor.name] = SpooledTensor(file, tensor)
        for tensor in tensors:
            files[tensor.digest].hold()
        for digest in {tensor.digest for tensor in tensors}:
            if not self._done(sender, digest):
                self._drop(files, digest)
        return found

    def progress(self, sender: str, since: float = 0.0) -> Progress | None:
        """How far `sender` is with what it sends up; None if nothing is under way.

        `since` (`time.monotonic`): only of files of which something came after that.
        """
        files = [file for file in self._uploads.get(sender, {}).values() if file.last >= since]
        if not files:
            return None
        done = sum(-(-file.received // CHUNK) for file in files)
        total = sum(-(-file.size // CHUNK) for file in files)
        return Progress(done, total, max(file.last for file in files))

    def _drop(self, files: dict[str, SpoolFile], digest: str) -> None:
        files.pop(digest).release()

    def _done(self, sender: str, digest: str) -> int:
        """A call that had wanted the file has it. Returns how many calls still want it."""
        self._wanted[sender, digest] -= 1
        if (left := self._wanted[sender, digest]) <= 0:
            del self._wanted[sender, digest]
        return max(left, 0)

    def forget(self, sender: str) -> None:
        """Drop what `sender` has under way."""
        files = self._uploads.pop(sender, {})
        for digest in list(files):
            self._drop(files, digest)
            del self._wanted[sender, digest]


class _Reader:
    """Bytes lent, or a part of a file, open."""

    def __init__(self, source: bytes | _Part | Readable) -> None:
        self._view: memoryview | None = None
        self._source: Readable | None = None
        self._descriptor = -1
        self._offset = 0
        if isinstance(source, bytes):
            self._view = memoryview(source)
            self.size = len(source)
            return
        if not isinstance(source, _Part):
            self._source = source
            self.size = source.nbytes
            return
        self._offset = source.offset
        self.size = source.size
        self._path = source.path
        self._descriptor = os.open(source.path, os.O_RDONLY)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on."""
        size = min(size, self.size - start)
        if self._view is not None:
            return bytes(self._view[start : start + size])
        if self._source is not None:
            return self._source.read(start, size)
        data = os.pread(self._descriptor, size, self._offset + start)
        if len(data) != size:
            raise DataLoss(f"{self._path} has lost its end; restore the state folder from a copy")
        return data


def _hashed(array: Array) -> tuple[bytes, str]:
    data = array.tobytes()
    return data, hashlib.sha256(data).hexdigest()


def _unknown(digest: str) -> NotFound:
    return NotFound(f"{digest[:80]!r} is not the SHA-256 of a file here")
