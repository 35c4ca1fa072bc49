"""Messages on the wire by hand: taken apart by their description, changed, and written in other ways."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from onnx import ModelProto

__all__ = ["Part", "encode", "field", "parse", "varint"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass
class Part:
    """A field: its number and wire type, and its value: a number, bytes, or the parts of a message."""

    number: int
    wire: int
    value: Any


def varint(number: int, size: int = 0) -> bytes:
    """A number, in at least `size` bytes."""
    out = b""
    while number > 127 or len(out) + 1 < size:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, data: bytes, tag_size: int = 0, length_size: int = 0) -> bytes:
    """A field of bytes, with its tag and length in at least that many bytes."""
    return varint(number << 3 | BYTES, tag_size) + varint(len(data), length_size) + data


def parse(data: bytes, kind: Any = ModelProto.DESCRIPTOR) -> list[Part]:
    """The parts of a well-formed message."""
    parts, pos = [], 0
    while pos < len(data):
        tag, pos = _number(data, pos)
        number, wire = tag >> 3, tag & 7
        inner = kind.fields_by_number.get(number)
        if wire == VARINT:
            value, pos = _number(data, pos)
            parts.append(Part(number, wire, value))
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if size is None:
            size, pos = _number(data, pos)
        value, pos = data[pos : pos + size], pos + size
        message = inner is not None and inner.message_type is not None
        parts.append(Part(number, wire, parse(value, inner.message_type) if message else value))
    return parts


def encode(parts: list[Part], rng: Random | None = None, overlong: float = 0.0) -> bytes:
    """The bytes of these parts; that share of the tags, lengths and numbers takes more bytes than needed."""

    def size(longest: int = 5) -> int:
        return rng.choice((2, 3, 4, longest)) if rng is not None and rng.random() < overlong else 0

    out = b""
    for part in parts:
        out += varint(part.number << 3 | part.wire, size())
        if part.wire == VARINT:
            out += varint(part.value, size(10))
        elif part.wire in (FIXED32, FIXED64):
            out += part.value
        else:
            value = encode(part.value, rng, overlong) if isinstance(part.value, list) else part.value
            out += varint(len(value), size()) + value
    return out


def _number(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, pos
