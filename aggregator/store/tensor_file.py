"""safetensors files, written and read piece by piece: a model is never whole in memory.

The format (github.com/huggingface/safetensors): eight bytes of the header's length, little-endian; a JSON
header, name -> dtype, shape and the place of its bytes, padded with spaces; then the bytes, without gaps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import secrets
import struct
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store.folder import TEMPORARY, unwritable
from edge_attention.core.errors import DataLoss, Internal, InvalidTensor
from edge_attention.core.tensors import Array

__all__ = ["Spec", "TensorFile", "TensorFileWriter", "Written", "header"]

Spec = tuple[np.dtype[Any], tuple[int, ...]]
"""A tensor's dtype and shape."""

PIECE = 1024 * 1024
_HEADER_LIMIT = 100_000_000  # the library's own

_CODES = {
    np.dtype(name): code
    for name, code in {
        "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16",
        "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    }.items()
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True)
class _Place:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Where its first byte is, counted from the end of the header."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """What a finished file's bytes are: SHA-256 of the file, and of each tensor's."""

    digest: str
    digests: Mapping[str, str]


def header(
    places: Mapping[str, tuple[np.dtype[Any], tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """The bytes before the data: its length, and name -> (dtype, shape, offset in the data) as JSON.

    Raises:
        InvalidTensor: a dtype that cannot be in such a file, or a tensor called `__metadata__`.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape, offset) in places.items():
        if name == "__metadata__":
            raise InvalidTensor("a tensor called __metadata__ cannot be in a safetensors file; rename it")
        code = _CODES.get(dtype.newbyteorder("="))
        if code is None:
            raise InvalidTensor(f"tensor {name!r} is {dtype}, which cannot be stored; convert it to float32")
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TensorFileWriter:
    """Writes a file at `path` that is whole or not there: nothing bears the name before `finish`.

    Tensors lie in the order of `specs`, larger elements before smaller ones, so that each is aligned. Tensors
    may be written by turns; the pieces of one follow each other. Call `abort` after any error.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        """Raises what `header` does, and `ResourceExhausted` for a full disk."""
        self.path = path
        ordered = sorted(specs.items(), key=lambda item: -item[1][0].itemsize)
        self._places: dict[str, _Place] = {}
        offset = 0
        for name, (dtype, shape) in ordered:
            self._places[name] = place = _Place(dtype.newbyteorder("="), tuple(shape), offset)
            offset += place.nbytes
        head = header({n: (p.dtype, p.shape, p.offset) for n, p in self._places.items()}, metadata)
        self._start = len(head)
        self._end = len(head) + offset
        self._written = dict.fromkeys(self._places, 0)
        self._hashes = {name: hashlib.sha256() for name in self._places}
        # Of the whole file, as far as it came in order; `finish` reads the rest again.
        self._hash = hashlib.sha256(head)
        self._hashed = len(head)
        self._names = iter(list(self._places))
        self._current: str | None = None
        # A name of its own: a second writer of the path writes another file, and the last to finish stays.
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            self._descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            self._put(head, 0)
        except BaseException:
            self.abort()  # nobody else has it yet
            raise

    @property
    def specs(self) -> dict[str, Spec]:
        """Every tensor, in the order in which `write` takes them."""
        return {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def write(self, piece: Array) -> None:
        """The next elements, tensor after tensor; a piece is of one tensor."""
        while self._current is None or self._written[self._current] == self._places[self._current].size:
            self._current = next(self._names, None)
            if self._current is None:
                raise Internal(f"{piece.size} elements more than {self.path} is to have")
        self.write_at(self._current, self._written[self._current], piece)

    def write_at(self, name: str, start: int, piece: Array) -> None:
        """Elements from `start` on of one tensor, flat; `start` is where its last piece ended."""
        place = self._places[name]
        if piece.dtype != place.dtype or start != self._written[name] or start + piece.size > place.size:
            raise Internal(
                f"{piece.size} elements of {piece.dtype} at {start} do not follow {self._written[name]} of "
                f"{place.size} of {place.dtype} in tensor {name!r}"
            )
        flat = np.ascontiguousarray(piece.reshape(-1), dtype=place.dtype)
        data = memoryview(flat.view(np.uint8).data) if flat.size else memoryview(b"")
        at = self._start + place.offset + start * place.dtype.itemsize
        self._put(data, at)
        self._hashes[name].update(data)
        if at == self._hashed:
            self._hash.update(data)
            self._hashed += len(data)
        self._written[name] += piece.size

    def finish(self, durable: bool = True) -> Written:
        """Give the file its name: it is whole.

        `durable`: its bytes are on the disk; its name is after a `sync`.

        Raises:
            Internal: a tensor is not whole.
            ResourceExhausted: the disk is full.
        """
        short = [name for name, place in self._places.items() if self._written[name] != place.size]
        if short:
            raise Internal(f"{self.path} is not whole: {', '.join(short[:5])} end early")
        while self._hashed < self._end:
            data = os.pread(self._descriptor, min(PIECE, self._end - self._hashed), self._hashed)
            if not data:
                raise DataLoss(f"{self._temporary} has lost its end")
            self._hash.update(data)
            self._hashed += len(data)
        try:
            if durable:
                os.fsync(self._descriptor)
            self._close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return Written(self._hash.hexdigest(), {name: h.hexdigest() for name, h in self._hashes.items()})

    def abort(self) -> None:
        """Remove what was written. Calling it again does nothing, nor does calling it after `finish`."""
        if self._descriptor >= 0:
            self._close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def _put(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._descriptor, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise unwritable(self.path, error) from error


class TensorFile:
    """A file, read piece by piece from any thread. It stays readable when its name is removed.

    `digests`: SHA-256 of tensors' bytes, as far as they are known; others are found by reading.
    """

    def __init__(self, path: Path, digests: Mapping[str, str] | None = None) -> None:
        """Raises `DataLoss` if it cannot be read, and `InvalidTensor` if it is no such file."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self._close = weakref.finalize(self, os.close, self._descriptor)
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise DataLoss(f"{path} cannot be read: {error.strerror}") from error
        self.metadata: dict[str, str] = {}
        try:
            self._places = self._parse()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
            self.close()
            raise InvalidTensor(f"{path} is not a safetensors file: {error}") from None
        except BaseException:
            self.close()
            raise
        self._digests = dict(digests or {})
        self._kept: dict[str, Array] = {}

    def close(self) -> None:
        """Close the file: nothing can be read from it any more. Closing it again does nothing."""
        self._close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def specs(self) -> dict[str, Spec]:
        """Every tensor, in the file's order."""
        return {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements [start, stop) of the flat tensor: a new array."""
        place = self._places[name]
        stop = place.size if stop is None else stop
        if not 0 <= start <= stop <= place.size:
            raise Internal(
                f"tensor {name!r} of {self.path} has no elements [{start}, {stop}) of {place.size}"
            )
        array = np.empty(stop - start, place.dtype)
        if array.size:
            offset = self._start + place.offset + start * array.itemsize
            view = memoryview(array.view(np.uint8).data)
            while view:
                count = os.preadv(self._descriptor, [view], offset)
                if not count:
                    raise self._damaged()
                view, offset = view[count:], offset + count
        return array

    def kept(self, name: str) -> Array:
        """The tensor, read once and kept as long as this is: for a small one that many ask for. Read-only."""
        if (array := self._kept.get(name)) is None:
            array = self.read(name).reshape(self._places[name].shape)
            array.flags.writeable = False
            self._kept[name] = array
        return array

    def location(self, name: str) -> tuple[Path, int, int]:
        """(the file, where the tensor's bytes begin in it, how many they are)."""
        place = self._places[name]
        return self.path, self._start + place.offset, place.nbytes

    def digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes."""
        if name not in self._digests:
            _, offset, nbytes = self.location(name)
            found = hashlib.sha256()
            for data in self._pieces(offset, offset + nbytes):
                found.update(data)
            self._digests[name] = found.hexdigest()
        return self._digests[name]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor's bytes."""
        return {name: self.digest(name) for name in self._places}

    def verify(self, digest: str) -> None:
        """Read it all once: whether its SHA-256 is `digest`; those of the tensors are found on the way.

        Raises:
            DataLoss: its bytes are others.
        """
        whole, found = hashlib.sha256(), dict[str, str]()
        for data in self._pieces(0, self._start):
            whole.update(data)
        for name in self._places:
            _, offset, nbytes = self.location(name)
            own = hashlib.sha256()
            for data in self._pieces(offset, offset + nbytes):
                whole.update(data)
                own.update(data)
            found[name] = own.hexdigest()
        if whole.hexdigest() != digest:
            raise self._damaged()
        self._digests = found

    def renamed(self, names: Mapping[str, str], metadata: Mapping[str, str]) -> tuple[int, Iterator[bytes]]:
        """A file of the same tensors under other names (`names`: here -> there): its size, and its pieces."""
        places = {names[n]: (p.dtype, p.shape, p.offset) for n, p in self._places.items()}
        if len(places) != len(self._places):
            raise InvalidTensor(f"two tensors of {self.path} would have one name")
        head = header(places, metadata)
        pieces = itertools.chain([head], self._pieces(self._start, self._end))
        return len(head) + self._end - self._start, pieces

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            data = os.pread(self._descriptor, min(PIECE, stop - start), start)
            if not data:
                raise self._damaged()
            yield data
            start += len(data)

    def _parse(self) -> dict[str, _Place]:
        (length,) = struct.unpack("<Q", os.pread(self._descriptor, 8, 0))
        self._start = 8 + length
        if length > min(_HEADER_LIMIT, self._end):
            raise ValueError(f"its header is said to have {length:,} bytes")
        entries = json.loads(b"".join(self._pieces(8, self._start)))
        self.metadata = entries.pop("__metadata__", {})
        places: dict[str, _Place] = {}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"tensor {name!r} is {entry['dtype']}; convert it to F32")
            shape = tuple(entry["shape"])
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"tensor {name!r} has shape {entry['shape']}")
            place = places[name] = _Place(_DTYPES[entry["dtype"]], shape, end)
            if list(entry["data_offsets"]) != [end, end := end + place.nbytes]:
                raise ValueError(f"the bytes of tensor {name!r} are not where they must be")
        if self._start + end != self._end:
            raise ValueError(f"its tensors have {end:,} bytes, and it {self._end - self._start:,}")
        return places

    def _damaged(self) -> DataLoss:
        return DataLoss(
            f"{self.path} is damaged: its bytes are not those committed; restore it from a copy of the state "
            "folder, or use another version"
        )
