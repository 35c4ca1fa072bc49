"""Weights that an ONNX file keeps in other files, put into it by the client, which has the path.

The nodes and the aggregator refuse a file that points outside itself; whoever brings one from a disk may read
what lies beside it. The bytes of the file are gone through, nothing is parsed: what comes out is judged by
who receives it, as any file is.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import MAX_BYTES

__all__ = ["external_files", "with_external_data"]

_PIECE = 1 << 20
_MAX_TENSORS = 1 << 20

# Of onnx.proto: message to field number to the message that it holds, along which tensors lie.
_INNER: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}
_MAX_DEPTH = 56
_NAME, _RAW, _EXTERNAL, _LOCATION = 8, 9, 13, 14


@dataclass
class _Message:
    """A message as it will be written: bytes, slices of files, and messages with their tags between them."""

    size: int = 0
    parts: list[bytes | memoryview | _Slice | _Message] = field(default_factory=list)

    def add(self, part: bytes | memoryview | _Slice | _Message) -> None:
        self.size += part.size if isinstance(part, _Slice | _Message) else len(part)
        self.parts.append(part)


@dataclass(frozen=True)
class _Slice:
    """`size` bytes of a file, from `offset` on."""

    path: Path
    offset: int
    size: int


def with_external_data(data: bytes, what: str, folder: Path | None) -> bytes:
    """`data`, an ONNX file, with what it keeps in other files in it; `data` itself if that is nothing.

    `what` is the model's name for messages. `folder`: where the file lies; None: it came without a path.
    The other files have to lie in that folder. They are read piece by piece, into what is returned.

    Raises InvalidGraph for data elsewhere without a folder or outside it, for a file that is missing or too
    short, and for more than MAX_BYTES in all.
    """
    # Most files keep all in themselves, which is soon told: whoever points elsewhere says a location.
    if b"location" not in data:
        return data
    try:
        reader = _WeightsReader(what, folder)
        whole = reader.message(memoryview(data), "Model", 0)
    except IndexError:
        return data  # it is damaged, which is said by who reads it
    if not reader.found:
        return data
    if whole.size > MAX_BYTES:
        raise InvalidGraph(
            f"{what}: {whole.size:,} bytes with the weights that are in other files, more than the limit "
            f"of {MAX_BYTES:,} (MAX_BYTES); bring a smaller one"
        )
    out = io.BytesIO()
    files: dict[Path, BinaryIO] = {}
    try:
        for part in _flat(whole):
            if isinstance(part, _Slice):
                _copy(part, files, out, what)
            else:
                out.write(part)
    finally:
        for file in files.values():
            file.close()
    return out.getvalue()


def external_files(data: bytes | mmap.mmap, what: str, folder: Path | None) -> dict[str, Path]:
    """The other files in which `data`, an ONNX file, keeps weights: as it names them, and where they lie.

    Raises InvalidGraph as `with_external_data`, but for their size.
    """
    if data.find(b"location") < 0:
        return {}
    reader = _WeightsReader(what, folder)
    with contextlib.suppress(IndexError):
        reader.message(memoryview(data), "Model", 0)
    return reader.files


class _WeightsReader:
    def __init__(self, what: str, folder: Path | None) -> None:
        self._what = what
        self._folder = folder
        self.found = 0
        self.files: dict[str, Path] = {}

    def message(self, data: memoryview, kind: str, depth: int) -> _Message:
        """The message with its external tensors replaced. Raises IndexError where it breaks off."""
        if kind == "Tensor":
            return self._tensor(data)
        if depth > _MAX_DEPTH:
            raise IndexError
        inner, made, start = _INNER[kind], _Message(), 0
        for number, at, begin, end in _fields(data):
            if number not in inner or begin < 0:
                continue
            found = self.message(data[begin:end], inner[number], depth + 1)
            if found.size == end - begin and len(found.parts) == 1:
                continue  # as it was
            made.add(data[start:at])
            made.add(_varint(number << 3 | 2) + _varint(found.size))
            made.add(found)
            start = end
        made.add(data[start:])
        return made

    def _tensor(self, data: memoryview) -> _Message:
        entries: dict[str, str] = {}
        kept, name, external, start = _Message(), "", False, 0
        for number, at, begin, end in _fields(data):
            if number == _NAME and begin >= 0:
                name = bytes(data[begin:end]).decode("utf-8", "replace")
            elif number == _EXTERNAL and begin >= 0:
                entries |= _entry(data[begin:end])
            elif number == _LOCATION:
                external |= data[end - 1] == 1
            if number in (_EXTERNAL, _LOCATION):
                kept.add(data[start:at])
                start = end
        whole = _Message()
        if not external and not entries:
            whole.add(data)
            return whole
        kept.add(data[start:])
        self.found += 1
        if self.found > _MAX_TENSORS:
            raise InvalidGraph(f"{self._what}: more than {_MAX_TENSORS:,} tensors in other files")
        found = self._slice(entries, name)
        kept.add(_varint(_RAW << 3 | 2) + _varint(found.size))
        kept.add(found)
        return kept

    def _slice(self, entries: dict[str, str], name: str) -> _Slice:
        tensor = f"{self._what}: tensor {name[:80]!a}"
        location = entries.get("location", "")
        if self._folder is None:
            raise InvalidGraph(
                f"{self._what} keeps its weights in other files ({location[:80]!a}); give the path of the "
                ".onnx file, so that they can be read from beside it"
            )
        parts = Path(location).parts
        if not location or "\0" in location or Path(location).is_absolute() or ".." in parts:
            raise InvalidGraph(
                f"{tensor} lies in {location[:80]!a}; a file of weights has to be in the folder of the "
                ".onnx file"
            )
        folder = self._folder.resolve()
        path = (folder / location).resolve()
        if not path.is_relative_to(folder):
            raise InvalidGraph(f"{tensor} lies in {location[:80]!a}, which leads out of {folder}")
        try:
            info = path.stat()
        except OSError as error:
            raise InvalidGraph(
                f"{tensor} lies in {location[:80]!a}, which cannot be read: {error.strerror}; put it beside "
                "the .onnx file"
            ) from None
        if not stat.S_ISREG(info.st_mode):
            raise InvalidGraph(f"{tensor} lies in {location[:80]!a}, which is no regular file")
        offset = _number(entries.get("offset", "0"), f"{tensor}, offset")
        size = _number(entries.get("length", str(max(info.st_size - offset, 0))), f"{tensor}, length")
        if offset + size > info.st_size:
            raise InvalidGraph(
                f"{tensor} is at bytes {offset:,} to {offset + size:,} of {location[:80]!a}, which has "
                f"{info.st_size:,}: the file is damaged, or of another model"
            )
        self.files[location] = path
        return _Slice(path, offset, size)


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidGraph(f"{what} is {text[:40]!a}; it must be a whole number")
    return int(text)


def _entry(data: memoryview) -> dict[str, str]:
    """One of a tensor's external_data: its key and its value."""
    found = {1: "", 2: ""}
    for number, _, begin, end in _fields(data):
        if number in found and begin >= 0:
            found[number] = bytes(data[begin:end]).decode("utf-8", "replace")
    return {found[1]: found[2]}


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Number, where the field begins, where its bytes begin (-1: a number) and where it ends."""
    pos, size = 0, len(data)
    while pos < size:
        at = pos
        tag, pos = _read(data, pos)
        wire, begin = tag & 7, -1
        if wire == 0:
            _, pos = _read(data, pos)
        elif wire == 1:
            pos += 8
        elif wire == 5:
            pos += 4
        elif wire == 2:
            length, begin = _read(data, pos)
            pos = begin + length
        else:
            raise IndexError
        if pos > size:
            raise IndexError
        yield tag >> 3, at, begin, pos


def _read(data: memoryview, pos: int) -> tuple[int, int]:
    value = 0
    for at in range(10):
        byte = data[pos + at]
        value |= (byte & 127) << 7 * at
        if byte < 128:
            return value, pos + at + 1
    raise IndexError


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _flat(message: _Message) -> Iterator[bytes | memoryview | _Slice]:
    for part in message.parts:
        if isinstance(part, _Message):
            yield from _flat(part)
        else:
            yield part


def _copy(part: _Slice, files: dict[Path, BinaryIO], out: io.BytesIO, what: str) -> None:
    if part.path not in files:
        descriptor = os.open(part.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        files[part.path] = os.fdopen(descriptor, "rb")
    file, left = files[part.path], part.size
    file.seek(part.offset)
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise InvalidGraph(f"{what}: {part.path.name!a} became shorter while it was read")
        out.write(piece)
        left -= len(piece)
