"""Messages that are mostly one piece of bytes, framed by hand: the same bytes on the wire as protobuf's.

protobuf copies `bytes` when they are set, serialized, parsed and read; by hand a payload is copied once on
its way out and once on its way in. Everyone else may speak protobuf: what is written here is what protobuf
writes, and what does not look like that is left to protobuf to read.
"""

from __future__ import annotations

import typing
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edge_attention.core.errors import InvalidArgument
from edge_attention.wire import checksum
from edge_attention.wire.codec import MESSAGE_LIMIT, Codec

T = TypeVar("T")

_KINDS: dict[int, tuple[int, Any]] = {
    FieldDescriptor.TYPE_UINT64: (0, 0),
    FieldDescriptor.TYPE_STRING: (2, ""),
    FieldDescriptor.TYPE_BYTES: (2, b""),
}
"""Of the kinds of fields known here: the wire type, and what is not sent."""


class FrameCodec(Codec[T]):
    """The codec of a flat dataclass of `int`, `str` and, with the highest number, one `bytes`.

    That one may be given as any buffer. After it comes the checksum.
    """

    def __init__(self, cls: type[T], message: type[Message], *, sealed: bool = False) -> None:
        """Raises TypeError for a message of another form."""
        super().__init__(cls, message, sealed=sealed)
        hints = typing.get_type_hints(cls)
        fields: list[Any] = sorted(message.DESCRIPTOR.fields, key=lambda field: field.number)
        if not fields or fields.pop().name != checksum.FIELD:
            raise TypeError(f"{message.DESCRIPTOR.full_name} does not end with a checksum")
        payloads = [field for field in fields if field.type == FieldDescriptor.TYPE_BYTES]
        plain = all(
            f.type in _KINDS and f.number < 16 and not f.has_presence and hints[f.name] in (int, str, bytes)
            for f in fields
        )
        if not plain or payloads != fields[-1:]:
            raise TypeError(f"{message.DESCRIPTOR.full_name} is not of scalars and, last, one field of bytes")
        self._fields = [
            (f.name, bytes([f.number << 3 | _KINDS[f.type][0]]), _KINDS[f.type][1]) for f in fields
        ]
        self._by_tag = {tag[0]: (name, none) for name, tag, none in self._fields}
        self._none = {name: none for name, _, none in self._fields}

    def encode(self, value: T) -> bytes:
        parts: list[Any] = []
        try:
            for name, tag, none in self._fields:
                field = getattr(value, name)
                if none == 0:
                    if field:
                        parts += (tag, varint(field))
                    continue
                if none == "":
                    field = field.encode()
                if len(field):
                    parts += (tag, varint(len(field)), field)
            data = b"".join((*parts, checksum.trailer(parts)))
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"the {self._what} cannot be sent: {error}") from error
        if len(data) > MESSAGE_LIMIT:
            raise self._too_large(len(data))
        return data

    def decode(self, data: bytes, sealed: bool | None = None) -> T:
        values = None
        if len(data) <= MESSAGE_LIMIT and checksum.intact(data):
            values = self._parse(data, len(data) - checksum.TRAILER)
        return super().decode(data, sealed) if values is None else typing.cast(T, self.cls(**values))

    def _parse(self, data: bytes, end: int) -> dict[str, Any] | None:
        """The fields of a message as `encode` writes it, up to byte `end`; None for any other."""
        values = dict(self._none)
        at, last = 0, 0
        try:
            while at < end:
                tag = data[at]
                if tag <= last:
                    return None
                last = tag
                name, none = self._by_tag[tag]
                number, at = read_varint(data, at + 1)
                if at > end:
                    return None
                if none == 0:
                    values[name] = number
                    continue
                start, at = at, at + number
                if at > end:
                    return None
                if none == "":
                    values[name] = data[start:at].decode()
                else:
                    values[name] = data[start:at]
        except (LookupError, UnicodeDecodeError):
            return None
        return values


_ONE = [bytes((value,)) for value in range(0x80)]


def varint(value: int) -> bytes:
    """`value` as protobuf writes it, 7 bits a byte, the lowest first. ValueError if it is past 64 bits."""
    if 0 <= value < 0x80:
        return _ONE[value]
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} is not a number of 64 bits without a sign")
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, of at most 64 bits, and where it ends; LookupError if there is none."""
    byte = data[at]
    at += 1
    if byte < 0x80:  # as most are
        return byte, at
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise LookupError
            return value, at
        shift += 7
        if shift > 63:
            raise LookupError
