"""Programs, calls and contributions as nearly all of them are, framed by hand: the same bytes as protobuf's.

A trip is a few kilobytes that arrive after milliseconds of something else, when the processor's caches have
forgotten the code that reads them: then less code is what is fast. Whatever is out of the ordinary (large
tensors, errors, unknown fields, anything that may be wrong) is left to protobuf, which reads it or says what
is wrong with it: what is read here is read there the same.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.halves import from_wire, to_wire
from edge_attention.core.messages.program import Call, Contribution, Instruction, Program
from edge_attention.core.tensors import MAX_RANK, Array, Encoded, Encoding
from edge_attention.wire import checksum
from edge_attention.wire.codec import MESSAGE_LIMIT, Codec
from edge_attention.wire.frames import read_varint, varint
from edge_attention.wire.tensors import CODES, ENCODING_CODES, ENCODINGS, TYPES, VIEWED, elements

__all__ = ["ContributionCodec", "ProgramCodec"]

_KIND, _CALL = b"\x1a", b"\x32"
"""Of the `oneof` that it is in, a Program is field 3, and so is a Contribution; a Call is field 6."""

_HEADERS = 256
"""Beginnings of tensors, and of programs' ends, that are kept."""
_TENSORS = 64
"""Tensors of a message that is read here."""
_HEADER_BYTES, _END_BYTES = 512, 8192
"""A longer one is not kept."""
_SHARED_BYTES = 64 * 1024
"""Of a program's tensors that are kept for the next program."""
_DOUBLE = struct.Struct("<d")
_NO_SECONDS = bytes(8)
_BOOL = CODES[np.dtype(np.bool_)]

_headers: dict[tuple[str, Any, tuple[int, ...], int], bytes] = {}
_places: dict[tuple[str, int, int, int], bytes] = {}
"""A shard, its coverage and a version, as they are written; a trip asks of the same ones again."""
_Header = tuple[str, np.dtype[Any], tuple[int, ...], Encoding, int]
_read_headers: dict[bytes, _Header] = {}
_read_places: dict[bytes, tuple[str, range, int]] = {}
"""The same, by how they came."""


class ProgramCodec(Codec[Any]):
    """The codec of what goes to a node. `block`: the bytes of a program's instructions."""

    def __init__(self, *args: Any, block: Callable[[tuple[Instruction, ...]], bytes], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block = block
        self._ends: dict[bytes, tuple[tuple[Instruction, ...], str]] = {}
        """A program's end as it came: its instructions, and its caller."""
        self._shared: tuple[Mapping[str, Array], bytes] | None = None
        """Tensors of the program written last, and their bytes."""

    def encode(self, value: Any) -> bytes:
        data = None
        if type(value) is Call:
            data = _written_call(value, False)
        elif type(value) is Program and not value.bulk_tensors and not value.releases:
            data = self._written(value)
        return super().encode(value) if data is None else data

    def encode_call(self, call: Call, known: bool) -> bytes:
        """The bytes of `call`; without its program where that is `known`. Raises as `encode`."""
        data = _written_call(call, known)
        return super().encode(replace(call, prepared=b"") if known else call) if data is None else data

    def _written(self, p: Program) -> bytes | None:
        try:
            parts = _first(p)
            if p.deadline_seconds is not None:
                parts += (b"\x29", _DOUBLE.pack(p.deadline_seconds))
            parts.append(self._tensors(p.tensors))
            parts.append(self._block(p.instructions))
            if p.caller:
                _put_text(parts, b"\x52", p.caller)
        except (TypeError, ValueError, AttributeError, KeyError, struct.error, EdgeAttentionError):
            return None
        return _sealed(parts)

    def _tensors(self, tensors: Mapping[str, Array]) -> bytes:
        """Their bytes. The programs of a trip share their tensors, as an attend its queries: once for all.

        They are known by being the same mapping, which nobody changes once it is in a program.
        """
        shared = self._shared
        if shared is not None and shared[0] is tensors:
            return shared[1]
        parts: list[Any] = []
        _put_tensors(parts, tensors)
        data = b"".join(parts)
        if len(data) <= _SHARED_BYTES:
            self._shared = (tensors, data)
        return data

    def decode(self, data: bytes, sealed: bool | None = None) -> Any:
        kind = data[:1]
        if kind not in (_KIND, _CALL) or len(data) > MESSAGE_LIMIT or not checksum.intact(data):
            return super().decode(data, sealed)
        end = len(data) - checksum.TRAILER
        if kind == _CALL:
            try:
                return _read_call(data, end)
            except (LookupError, ValueError, struct.error):
                return super().decode(data, sealed)
        deadline = None
        try:
            task_id, shard, coverage, version, at = _read_first(data, end)
            if data[at] == 0x29:
                (deadline,) = _DOUBLE.unpack_from(data, at + 1)
                at += 9
            tensors, at = _read_tensors(data, at, end)
        except (LookupError, ValueError, struct.error):
            return super().decode(data, sealed)
        rest = data[at:end]
        found = self._ends.get(rest)
        if found is not None and at <= end:
            return Program(task_id, shard, coverage, found[0], version, deadline, tensors, (), found[1])
        program = super().decode(data, sealed)
        if len(rest) <= _END_BYTES and at <= end and _of_instructions(rest):
            _keep(self._ends, rest, (program.instructions, program.caller))
        return program


class ContributionCodec(Codec[Any]):
    """The codec of what a node sends."""

    def encode(self, value: Any) -> bytes:
        data = None
        if type(value) is Contribution and value.error is None and not value.bulk_tensors:
            data = _written(value)
        return super().encode(value) if data is None else data

    def decode(self, data: bytes, sealed: bool | None = None) -> Any:
        if data[:1] == b"\x1a" and len(data) <= MESSAGE_LIMIT and checksum.intact(data):
            try:
                return _read_contribution(data, len(data) - checksum.TRAILER)
            except (LookupError, ValueError, struct.error):
                pass
        return super().decode(data, sealed)


def _written_call(c: Call, known: bool) -> bytes | None:
    if c.bulk_tensors:
        return None
    try:
        parts = _first(c)
        if c.deadline_seconds is not None:
            parts += (b"\x29", _DOUBLE.pack(c.deadline_seconds))
        if c.program:
            parts += (b"\x32", varint(len(c.program)), c.program)
        if c.slots:
            pieces = c.slots if isinstance(c.slots, tuple) else (c.slots,)
            parts += (b"\x3a", varint(sum(map(len, pieces))), *pieces)
        if c.caller:
            _put_text(parts, b"\x52", c.caller)
        if c.prepared and not known:
            parts += (b"\x7a", varint(len(c.prepared)), c.prepared)
        return _sealed(parts, _CALL)
    except (TypeError, ValueError, AttributeError, struct.error):
        return None


def _read_call(data: bytes, end: int) -> Call:
    """Raises LookupError, ValueError or struct.error for what is not as `_written_call` writes it."""
    task_id, shard, coverage, version, at = _read_first(data, end)
    deadline, found = None, [b"", b"", b"", b""]
    if data[at] == 0x29:
        (deadline,) = _DOUBLE.unpack_from(data, at + 1)
        at += 9
    for number, tag in enumerate((0x32, 0x3A, 0x52, 0x7A)):
        if at < end and data[at] == tag:
            size, at = read_varint(data, at + 1)
            viewed = tag == 0x3A and size >= VIEWED
            whole = cast(bytes, memoryview(data)) if viewed else data
            found[number] = whole[at : at + size]
            at += size
    if at != end:
        raise LookupError
    program, slots, caller, prepared = found
    return Call(task_id, shard, coverage, version, deadline, program, slots, caller.decode(), prepared)


def _written(c: Contribution) -> bytes | None:
    try:
        parts = _first(c)
        if c.number:
            if c.number >> 32:
                return None
            parts += (b"\x28", varint(c.number))
        _put_tensors(parts, c.tensors)
        if c.final:
            parts.append(b"\x40\x01")
        for tag, seconds in ((b"\x51", c.run_seconds), (b"\x59", c.task_seconds)):
            if (data := _DOUBLE.pack(seconds)) != _NO_SECONDS:
                parts += (tag, data)
    except (TypeError, ValueError, AttributeError, KeyError, struct.error, EdgeAttentionError):
        return None
    return _sealed(parts)


def _read_contribution(data: bytes, end: int) -> Contribution:
    """Raises LookupError, ValueError or struct.error for what is not as `_written` writes it."""
    task_id, shard, coverage, version, at = _read_first(data, end)
    number, final, run, task = 0, False, 0.0, 0.0
    if data[at] == 0x28:
        number, at = read_varint(data, at + 1)
        if number >> 32:
            raise LookupError
    tensors, at = _read_tensors(data, at, end, lying=True)
    if data[at] == 0x40:
        if data[at + 1] != 1:
            raise LookupError
        final = True
        at += 2
    if data[at] == 0x51:
        (run,) = _DOUBLE.unpack_from(data, at + 1)
        at += 9
    if data[at] == 0x59:
        (task,) = _DOUBLE.unpack_from(data, at + 1)
        at += 9
    if at != end:
        raise LookupError
    return Contribution(task_id, shard, coverage, version, number, tensors, (), final, None, run, task)


def _first(message: Program | Call | Contribution) -> list[Any]:
    """What all begin with: the task, the shard, its coverage and the version."""
    parts: list[Any] = []
    if message.task_id:
        _put_text(parts, b"\x0a", message.task_id)
    covered = message.coverage
    key = message.shard, covered.start, covered.stop, message.version  # all empty ranges are equal
    place = _places.get(key)
    if place is None:
        place = _place(*key)
        if len(place) <= _HEADER_BYTES:
            _keep(_places, key, place)
    parts.append(place)
    return parts


def _place(shard: str, start: int, stop: int, version: int) -> bytes:
    parts: list[Any] = []
    if shard:
        _put_text(parts, b"\x12", shard)
    if start >> 63 or stop >> 63:
        raise ValueError("is written as a negative number")
    coverage = b""
    if start:
        coverage = b"\x08" + varint(start)
    if stop:
        coverage += b"\x10" + varint(stop)
    parts += (b"\x1a", varint(len(coverage)), coverage)
    if version:
        parts += (b"\x20", varint(version))
    return b"".join(parts)


def _read_first(data: bytes, end: int) -> tuple[str, str, range, int, int]:
    """The task, the shard, its coverage, the version, and where the next field begins."""
    size, at = read_varint(data, 1)
    if at + size != end:
        raise LookupError
    task_id = ""
    if data[at] == 0x0A:
        size, at = read_varint(data, at + 1)
        task_id = data[at : at + size].decode()
        at += size
    # Up to what comes next without looking into it: where all lengths are of a byte, as they nearly are.
    last = at
    if data[last] == 0x12:
        last += 2 + data[last + 1]
    if data[last] == 0x1A:
        last += 2 + data[last + 1]
    if data[last] == 0x20:
        last += 2
        while data[last - 1] > 0x7F:
            last += 1
    place = data[at:last]
    known = _read_places.get(place)
    if known is not None and last < end:
        return task_id, *known, last
    shard, coverage, version, last = _read_place(data, at, end)
    place = data[at:last]
    if len(place) <= _HEADER_BYTES:
        _keep(_read_places, place, (shard, coverage, version))
    return task_id, shard, coverage, version, last


def _read_place(data: bytes, at: int, end: int) -> tuple[str, range, int, int]:
    shard = ""
    start = stop = version = 0
    if data[at] == 0x12:
        size, at = read_varint(data, at + 1)
        shard = data[at : at + size].decode()
        at += size
    if data[at] == 0x1A:
        size, at = read_varint(data, at + 1)
        inner = at + size
        if at < inner and data[at] == 0x08:
            start, at = read_varint(data, at + 1)
        if at < inner and data[at] == 0x10:
            stop, at = read_varint(data, at + 1)
        if at != inner or stop < start or stop >> 63:
            raise LookupError
    if data[at] == 0x20:
        version, at = read_varint(data, at + 1)
    if at > end:
        raise LookupError
    return shard, range(start, stop), version, at


def _put_text(parts: list[Any], tag: bytes, text: str) -> None:
    data = text.encode()
    parts += (tag, varint(len(data)), data)


def _put_tensors(parts: list[Any], tensors: Mapping[str, Array | Encoded]) -> None:
    for name, given in tensors.items():
        value, encoding = (
            (given.array, given.encoding) if isinstance(given, Encoded) else (given, Encoding.RAW)
        )
        # By the encoding's id: there is one object of each, and Python computes its hash step by step.
        key = (name, value.dtype, value.shape, id(encoding))
        header = _headers.get(key)
        if header is None:
            header = _header(name, value.dtype, value.shape, encoding)
            if len(header) <= _HEADER_BYTES:
                _keep(_headers, key, header)
        if encoding is not Encoding.RAW:
            value = to_wire(value, encoding)
        parts += (header, elements(value))


def _header(name: str, dtype: Any, shape: tuple[int, ...], encoding: Encoding) -> bytes:
    """A tensor up to its elements, with the tag and the length of the whole. ValueError: it is none."""
    size = math.prod(shape) * (2 if encoding is not Encoding.RAW else dtype.itemsize)
    if not size or (encoding is not Encoding.RAW and dtype != np.float32):
        raise ValueError("nothing in it, or it does not travel so")
    parts: list[Any] = []
    if name:
        _put_text(parts, b"\x0a", name)
    parts += (b"\x10", varint(CODES[dtype]))
    if shape:
        dimensions = b"".join(map(varint, shape))
        parts += (b"\x1a", varint(len(dimensions)), dimensions)
    parts += (b"\x20", varint(ENCODING_CODES[encoding]), b"\x7a", varint(size))
    inner = b"".join(parts)
    return b"\x32" + varint(len(inner) + size) + inner


def _read_tensors(data: bytes, at: int, end: int, lying: bool = False) -> tuple[dict[str, Array], int]:
    """The tensors, and where the next field begins; `lying`: large ones as they lie in the message."""
    tensors: dict[str, Array] = {}
    while data[at] == 0x32 and at < end:
        if len(tensors) == _TENSORS:
            raise LookupError
        first, at = at, _after_header(data, at)
        header = _read_headers.get(data[first:at])
        if header is None:
            header, at = _read_header(data, first)
            if at - first <= _HEADER_BYTES:
                _keep(_read_headers, data[first:at], header)
        name, dtype, shape, how, size = header
        last = at + size
        if last > end or name in tensors:
            raise LookupError
        # A copy, at an address that is aligned; ONNX Runtime computes on it as it is.
        whole = memoryview(data) if lying and size >= VIEWED else data
        array = np.frombuffer(whole[at:last], dtype).reshape(shape)
        tensors[name] = array if how is Encoding.RAW else from_wire(array, how)
        at = last
    return tensors, at


def _after_header(data: bytes, at: int) -> int:
    """Where the elements of a tensor begin, whose name and dimensions take less than 128 bytes each.

    Nothing is looked into: of any other bytes it is some place.
    """
    at += 1
    while data[at] > 0x7F:
        at += 1
    at += 1
    if data[at] == 0x0A:
        at += 2 + data[at + 1]
    if data[at] == 0x10:
        at += 2
    if data[at] == 0x1A:
        at += 2 + data[at + 1]
    if data[at] == 0x20:
        at += 2
    at += 1
    while data[at] > 0x7F:
        at += 1
    return at + 1


def _read_header(data: bytes, at: int) -> tuple[_Header, int]:
    """A tensor up to its elements, as `_header` writes it, and where they begin."""
    size, at = read_varint(data, at + 1)
    last = at + size
    name, code, shape, encoding = "", 0, [], 0
    if data[at] == 0x0A:
        size, at = read_varint(data, at + 1)
        name = data[at : at + size].decode()
        at += size
    if data[at] == 0x10:
        code, at = read_varint(data, at + 1)
    if data[at] == 0x1A:
        size, at = read_varint(data, at + 1)
        inner = at + size
        while at < inner:
            size, at = read_varint(data, at)
            shape.append(size)
            if len(shape) > MAX_RANK:
                raise LookupError
        if at != inner:
            raise LookupError
    if data[at] == 0x20:
        encoding, at = read_varint(data, at + 1)
    if data[at] != 0x7A or code == _BOOL:
        raise LookupError
    size, at = read_varint(data, at + 1)
    dtype, how = TYPES[code], ENCODINGS[encoding]
    if how is not Encoding.RAW:
        if dtype != np.float32:
            raise LookupError
        dtype = _BITS[how]
    if not size or at + size != last or math.prod(shape) * dtype.itemsize != size:
        raise LookupError
    return (name, dtype, tuple(shape), how, size), at


_BITS: dict[Encoding, np.dtype[Any]] = {
    Encoding.FLOAT16: np.dtype(np.float16),
    Encoding.BFLOAT16: np.dtype(np.uint16),
}


def _sealed(parts: list[Any], kind: bytes = _KIND) -> bytes | None:
    size = sum(map(len, parts))
    parts = [kind, varint(size), *parts]
    if size < VIEWED:
        return checksum.seal(b"".join(parts))
    if size > MESSAGE_LIMIT - checksum.TRAILER - sum(map(len, parts[:2])):
        return None
    return b"".join([*parts, checksum.trailer(parts)])  # a large one is copied once


def _of_instructions(rest: bytes) -> bool:
    """Whether nothing but instructions and the caller are in the end of a program."""
    at = 0
    try:
        while at < len(rest):
            if rest[at] not in (0x42, 0x52):
                return False
            size, at = read_varint(rest, at + 1)
            at += size
    except LookupError:
        return False
    return at == len(rest)


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    if len(kept) >= _HEADERS:
        kept.clear()  # in one step: nodes write contributions in several threads
    kept[key] = value
