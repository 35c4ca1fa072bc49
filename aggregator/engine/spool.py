"""What nodes and clients send up, on the disk while it comes: the aggregator's memory never holds it whole.

A `SpoolFile` takes the bytes in order and hashes them on the way. Once whole it is read through
`SpooledTensor`s; when the last of its users lets go, it is gone. Nothing here outlives the process: the
folder is emptied when it is opened.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store.folder import unwritable
from edge_attention.core.errors import DataLoss, Internal, InvalidArgument, InvalidTensor, NotFound
from edge_attention.core.halves import from_wire, stored_dtype
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import Array
from edge_attention.wire.tensors import check_size


class Spool:
    """A folder of files under way. `folder` is made if need be, and emptied."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self.folder = folder

    def file(self, digest: str, size: int) -> SpoolFile:
        """A file of `size` bytes with SHA-256 `digest`, of which nothing has come yet."""
        return SpoolFile(self.folder / secrets.token_hex(8), digest, size)


class SpoolFile:
    """One file. It has one user, who made it; others `hold` it; the last `release` removes it.

    Between calls no descriptor is open: a model of hundreds of tensors from dozens of nodes is thousands of
    files.
    """

    def __init__(self, path: Path, digest: str, size: int) -> None:
        self.path = path
        self.digest = digest
        self.size = size
        self.received = 0
        self.last = self.spoken_of = time.monotonic()
        """When bytes last came, and when somebody last sent or asked for some."""
        self._hash = hashlib.sha256()
        self._users = 1
        self._mutex = threading.Lock()
        # Whatever happens to its users, a file nobody knows is not left behind.
        self._remove = weakref.finalize(self, path.unlink, missing_ok=True)

    @property
    def whole(self) -> bool:
        """Whether all bytes are there; they have the digest."""
        return self.received == self.size

    def append(self, data: bytes, offset: int) -> None:
        """Write what of `data`, the bytes from `offset` on, has not come yet. It blocks, in any thread.

        Raises:
            InvalidArgument: it begins past what is there, or goes past the end.
            DataLoss: the file is whole and does not have the digest; it has to come again, from its start.
            ResourceExhausted: the disk is full.
            NotFound: its last user has let go of it.
        """
        with self._mutex:
            if not self._users:
                raise NotFound(f"file {self.digest[:12]} was given up while it came; send it again")
            end = offset + len(data)
            if offset > self.received or end > self.size:
                raise InvalidArgument(
                    f"chunk at {offset} of {self.size} bytes does not follow {self.received} received"
                )
            if end <= self.received and self.size:
                return  # another call has sent it
            new = memoryview(data)[self.received - offset :]
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    view = new
                    while view:
                        view = view[os.pwrite(descriptor, view, end - len(view)) :]
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._hash.update(new)
            self.received = end
            self.last = time.monotonic()
            if self.whole and self._hash.hexdigest() != self.digest:
                self.received = 0
                self._hash = hashlib.sha256()
                raise DataLoss(f"the file received does not have the digest {self.digest[:80]}")

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                while view:
                    count = os.preadv(descriptor, [view], offset)
                    if not count:
                        raise DataLoss(f"spool file {self.path} has lost its end; send it again")
                    view, offset = view[count:], offset + count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataLoss(f"spool file {self.path} cannot be read: {error.strerror}") from error

    def hold(self) -> None:
        """Count one user more, who is to call `release`."""
        with self._mutex:
            self._users += 1

    def release(self) -> None:
        """Count one user fewer: the last one's call removes the file."""
        with self._mutex:
            self._users -= 1
            if not self._users:
                self._remove()


class SpooledTensor:
    """A tensor in a whole spool file, read piece by piece; `close` it when it is not needed any more.

    `dtype`, `shape` and `nbytes` are those of the array it stands for; `encoding` is how it lies in the file,
    in `file_bytes` bytes.
    """

    def __init__(self, file: SpoolFile, tensor: BulkTensor) -> None:
        """Takes no hold of `file`: the caller gives its own, or `hold`s it.

        Raises:
            InvalidTensor: the file's bytes do not fit the shape, or the encoding the dtype.
        """
        self.name = tensor.name
        self.shape = tuple(tensor.shape)
        self.encoding = tensor.encoding
        self.dtype: np.dtype[Any] = np.dtype(tensor.data_type.value)
        self._stored = stored_dtype(tensor.encoding, self.dtype, tensor.name[:80])
        check_size(tensor.name[:80], self.shape, self._stored.itemsize, file.size)
        self._file: SpoolFile | None = file

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        return self.size * self._stored.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Elements [start, stop) of the flat tensor, decoded to `dtype`: a new array.

        Raises:
            InvalidTensor: a byte of a BOOL tensor is neither 0 nor 1.
        """
        if self._file is None:
            raise Internal(f"tensor {self.name!r} is read after it was closed")
        stop = self.size if stop is None else stop
        if not 0 <= start <= stop <= self.size:
            raise Internal(f"tensor {self.name!r} has no elements [{start}, {stop}) of {self.size}")
        raw = np.empty(stop - start, self._stored)
        if raw.nbytes:
            self._file.read_into(memoryview(raw.view(np.uint8).data), start * raw.itemsize)
        if raw.dtype == np.bool_ and raw.size and raw.view(np.uint8).max() > 1:
            raise InvalidTensor(f"{self.name[:80]}: a BOOL element is one byte, 0 or 1; there are others")
        return from_wire(raw, self.encoding)

    def array(self) -> Array:
        """The whole tensor, in memory."""
        return self.read().reshape(self.shape)

    def close(self) -> None:
        """Let go of the bytes. Closing it again does nothing."""
        if self._file is not None:
            self._file.release()
            self._file = None
