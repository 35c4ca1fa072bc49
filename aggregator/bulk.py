"""What is too large for a message: graphs and tensors by digest, in chunks, from any offset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np

from aggregator.state import State
from edge_attention.core.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.program import BulkTensor
from edge_attention.core.session import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.core.tensors import Array, DataType, Encoding
from edge_attention.graphs import library
from edge_attention.wire.tensors import check_size

CHUNK = 1024 * 1024
INLINE_LIMIT = 1024 * 1024
"""Tensors of a program beyond this many bytes travel by Download."""

UPLOAD_LIMIT = 512 * 1024 * 1024
"""Bytes of the largest file taken, and of all of one sender's under way together."""


class Bulk:
    """Files by SHA-256: lent for the length of an exchange, kept in the state, or under way upwards."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lent: dict[str, bytes] = {}
        self._loans: Counter[str] = Counter()
        self._library = {library.digest(name): library.load(name) for name in library.names()}
        self._uploads: dict[str, dict[str, bytearray]] = {}
        # Two tasks may return the same bytes: each fetches them once.
        self._wanted: Counter[tuple[str, str]] = Counter()

    # Down

    def lend(self, data: bytes) -> str:
        """Offer `data` for download until `take_back` of the digest returned."""
        digest = hashlib.sha256(data).hexdigest()
        self._lent[digest] = data
        self._loans[digest] += 1
        return digest

    def take_back(self, digest: str) -> None:
        self._loans[digest] -= 1
        if self._loans[digest] <= 0:
            self._lent.pop(digest, None)
            del self._loans[digest]

    def lend_tensors(self, tensors: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[BulkTensor, ...]]:
        """Split `tensors` into those that fit a message together and those that are lent."""
        inline: dict[str, Array] = {}
        lent: list[BulkTensor] = []
        size = 0
        for name, array in tensors.items():
            size += array.nbytes
            if size <= INLINE_LIMIT:
                inline[name] = array
                continue
            size -= array.nbytes
            data = array.tobytes()
            data_type = DataType.of(array.dtype, name)
            lent.append(BulkTensor(name, data_type, array.shape, Encoding.RAW, self.lend(data), len(data)))
        return inline, tuple(lent)

    def find(self, digest: str) -> bytes:
        """The file with this digest.

        Raises:
            NotFound: nobody has offered it.
        """
        data = self._lent.get(digest) or self._library.get(digest)
        if data is None:
            try:
                data = self._state.get_blob(digest)
            except InvalidArgument:
                raise NotFound(f"{digest[:80]!r} is not the SHA-256 of a file here") from None
        return data

    async def download(self, request: DownloadRequest) -> AsyncIterator[Chunk]:
        """The file in chunks, from `request.offset` on."""
        data = self.find(request.digest)
        if request.offset > len(data):
            raise InvalidArgument(f"offset {request.offset} lies past the file's {len(data)} bytes")
        view = memoryview(data)
        for start in range(request.offset, max(len(data), 1), CHUNK):
            yield Chunk(start, len(data), bytes(view[start : start + CHUNK]))

    # Up

    async def upload(self, sender: str, chunks: AsyncIterator[UploadChunk], keep: bool) -> Uploaded:
        """Take a file's chunks; what came before a broken call is still there at the next.

        `keep`: put the finished file into the state (clients' graphs); otherwise it waits for `received`.

        Raises:
            DataLoss: the whole file does not have the digest.
            ResourceExhausted: it is larger than UPLOAD_LIMIT.
            InvalidArgument: the chunks do not follow each other.
        """
        files = self._uploads.setdefault(sender, {})
        received, size, claimed = 0, 1, ""
        try:
            async for chunk in chunks:
                size = chunk.size
                if keep and self._state.has_blob(chunk.digest):
                    return Uploaded(chunk.size)
                if not claimed:
                    claimed = chunk.digest
                    self._wanted[sender, claimed] += 1
                received = self._take(sender, files, chunk)
                if keep and received == size:
                    self._state.put_blob(bytes(files.pop(chunk.digest)))
        finally:
            if claimed and (keep or received < size):
                self._done(sender, claimed)
        return Uploaded(received)

    def _take(self, sender: str, files: dict[str, bytearray], chunk: UploadChunk) -> int:
        """Put the chunk into its file; the bytes there then."""
        others = {digest: len(data) for digest, data in files.items() if digest != chunk.digest}
        if chunk.size + sum(others.values()) > UPLOAD_LIMIT:
            # What was broken off and never taken up again makes room first.
            for digest in [digest for digest in others if not self._wanted[sender, digest]]:
                del files[digest], others[digest]
        if chunk.size + sum(others.values()) > UPLOAD_LIMIT:
            raise ResourceExhausted(
                f"a file of {chunk.size:,} bytes does not fit: {UPLOAD_LIMIT:,} bytes may be under way"
            )
        data = files.setdefault(chunk.digest, bytearray())
        if chunk.data:
            end = chunk.offset + len(chunk.data)
            if chunk.offset > len(data) or end > chunk.size:
                raise InvalidArgument(
                    f"chunk at {chunk.offset} of {chunk.size} bytes does not follow {len(data)} received"
                )
            if end > len(data):
                # Another call may be sending the same file.
                data += chunk.data[len(data) - chunk.offset :]
                whole = end == chunk.size
                if whole and hashlib.sha256(data).hexdigest() != chunk.digest:
                    del files[chunk.digest]
                    raise DataLoss(f"the file received does not have the digest {chunk.digest[:80]}")
        return len(data)

    def received(self, sender: str, tensors: Sequence[BulkTensor]) -> dict[str, Array]:
        """One contribution's tensors whose bytes `sender` has uploaded; they are forgotten here.

        Tensors of equal bytes, as gradients of zeros, are one file.

        Raises:
            NotFound: they have not come, or not all.
            InvalidTensor: they do not fit the shape.
        """
        files = self._uploads.get(sender, {})
        found: dict[str, Array] = {}
        for tensor in tensors:
            data = files.get(tensor.digest)
            if data is None or len(data) != tensor.size or not self._wanted[sender, tensor.digest]:
                raise NotFound(f"tensor {tensor.name[:80]!r} was announced, but its bytes were not uploaded")
            dtype = np.dtype(np.float16 if tensor.encoding is Encoding.FLOAT16 else tensor.data_type.value)
            check_size(tensor.name[:80], tensor.shape, dtype.itemsize, len(data))
            array = np.frombuffer(data, dtype).reshape(tensor.shape)
            found[tensor.name] = array.astype(tensor.data_type.value, copy=False)
        for digest in {tensor.digest for tensor in tensors}:
            if not self._done(sender, digest):
                del files[digest]
        return found

    def _done(self, sender: str, digest: str) -> int:
        """One call fewer wants the file; how many still do."""
        self._wanted[sender, digest] -= 1
        if (left := self._wanted[sender, digest]) <= 0:
            del self._wanted[sender, digest]
        return max(left, 0)

    def forget(self, sender: str) -> None:
        """Drop what `sender` has under way."""
        for digest in self._uploads.pop(sender, ()):
            del self._wanted[sender, digest]
