"""Changes a message, knowing what it is made of; or its bytes, knowing how protobuf writes them.

Checksums are made anew after a change, most of the time: a message that is refused for its checksum says
nothing about what reads it.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message import DecodeError, Message

from tests.fuzz.corpus import Corpus, is_repeated, nested

CHECKSUM = "checksum"
TAG = b"\xfd\x7f"
"""Of the field that every message of a call ends with; edge_attention/wire says how."""

INTEGERS = (
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    1023,
    65535,
    65536,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
    -1,
    -2,
    -128,
    -(2**31),
    -(2**63),
)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-320,
    1e-38,
    3.5e38,
    1e308,
    -1e308,
    float("inf"),
    -float("inf"),
    float("nan"),
    2.0**53,
)
TEXTS = (
    "",
    " ",
    "a",
    ".",
    "..",
    "/",
    "../../../etc/passwd",
    "/etc/passwd",
    "task/",
    "task/x",
    "job/x/y",
    "context/",
    "dataset/",
    "context/../x",
    "task//x",
    "\x00",
    "a\x00b",
    "\x1b[2J\x1b[1;31m",
    "a\r\nb: c",
    "%s%n%x",
    "{0.__class__}",
    "'; drop table runs;--",
    "\u202e",
    "\ufeff",
    "\U0001f4a5",
    "e\u0301",
    "NaN",
    "None",
    "null",
    "-1",
    "0" * 64,
    "f" * 64,
    "F" * 64,
    "x" * 256,
    "x" * 4096,
    "x" * 70_000,
    "InvalidArgument",
    "Internal",
    "Revoked",
    "PermissionDenied",
    "EdgeAttentionError",
    "Exception",
    "Unauthenticated",
)

_BITS = {
    F.TYPE_INT32: 32,
    F.TYPE_SINT32: 32,
    F.TYPE_SFIXED32: 32,
    F.TYPE_INT64: 64,
    F.TYPE_SINT64: 64,
    F.TYPE_SFIXED64: 64,
}
_UNSIGNED = {F.TYPE_UINT32: 32, F.TYPE_FIXED32: 32, F.TYPE_UINT64: 64, F.TYPE_FIXED64: 64}


def seal(data: bytes) -> bytes:
    """`data`, without a checksum, with it: CRC-32 of all bytes before its own four."""
    body = data + TAG
    return body + zlib.crc32(body).to_bytes(4, "little")


def unsealed(data: bytes) -> bytes:
    return data[:-6] if data[-6:-4] == TAG else data


class Mutator:
    def __init__(self, rng: random.Random, corpus: Corpus) -> None:
        self.rng, self.corpus = rng, corpus
        self._wire: list[Callable[[bytes], bytes]] = [
            self._flip,
            self._flip,
            self._truncate,
            self._double,
            self._swap,
            self._length,
            self._wire_type,
            self._varint,
            self._unknown,
            self._insert,
            self._group,
            self._splice_bytes,
        ]

    def mutate(self, cls: type[Message], data: bytes) -> bytes:
        """One to four changes of a message of `cls`."""
        sealed = CHECKSUM in cls.DESCRIPTOR.fields_by_name
        body = unsealed(data) if sealed else data
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 4))):
            body = self._fields(cls, body) if self.rng.random() < 0.65 else self.rng.choice(self._wire)(body)
        if not sealed or self.rng.random() < 0.03:
            return body
        return seal(body)

    # By fields

    def _fields(self, cls: type[Message], data: bytes) -> bytes:
        try:
            message = cls.FromString(data)
        except DecodeError:
            return self.rng.choice(self._wire)(data)
        part = self.rng.choice(list(nested(message)))
        f = self.rng.choice(part.DESCRIPTOR.fields) if part.DESCRIPTOR.fields else None
        if f is not None:
            try:
                self._change(part, f)
            except (ValueError, TypeError):
                return self.rng.choice(self._wire)(data)
        if self.rng.random() < 0.85:
            for tensor in nested(message):
                if tensor.DESCRIPTOR.name == "Tensor" and tensor.HasField("crc32"):
                    tensor.crc32 = zlib.crc32(tensor.data)
        if CHECKSUM in message.DESCRIPTOR.fields_by_name:
            message.ClearField(CHECKSUM)
        return message.SerializeToString()

    def _change(self, part: Any, f: Any) -> None:
        rng = self.rng
        if rng.random() < 0.1:
            part.ClearField(f.name)
            return
        if f.type == F.TYPE_MESSAGE and f.message_type.GetOptions().map_entry:
            self._change_map(getattr(part, f.name), f.message_type)
        elif is_repeated(f):
            self._change_repeated(getattr(part, f.name), f)
        elif f.type == F.TYPE_MESSAGE:
            pool = self.corpus.parts.get(f.message_type.full_name)
            if pool:
                getattr(part, f.name).CopyFrom(rng.choice(pool))
            else:
                getattr(part, f.name).SetInParent()
        else:
            setattr(part, f.name, self._scalar(f, getattr(part, f.name)))

    def _change_repeated(self, items: Any, f: Any) -> None:
        rng, what = self.rng, self.rng.random()
        if f.type == F.TYPE_MESSAGE:
            pool = self.corpus.parts.get(f.message_type.full_name) or []
            if what < 0.4 and pool:
                items.add().CopyFrom(rng.choice(pool))
            elif what < 0.6 and items:
                copy = type(items[0])()
                copy.CopyFrom(rng.choice(items))
                for _ in range(rng.choice((1, 1, 2, 30, 300))):
                    items.add().CopyFrom(copy)
            elif what < 0.8 and len(items) > 1:
                copies = [type(item).FromString(item.SerializeToString()) for item in items]
                rng.shuffle(copies)
                del items[:]
                items.extend(copies)
            elif items:
                del items[rng.randrange(len(items))]
            return
        if what < 0.5 and items:
            items[rng.randrange(len(items))] = self._scalar(f, items[0])
        elif what < 0.9:
            items.extend(
                [self._scalar(f, items[0] if items else f.default_value)] * rng.choice((1, 1, 1, 8, 1000))
            )
        elif items:
            del items[rng.randrange(len(items))]

    def _change_map(self, items: Any, entry: Any) -> None:
        rng = self.rng
        keys = list(items)
        value = entry.fields_by_name["value"]
        key = rng.choice(keys) if keys and rng.random() < 0.6 else self._text()
        if value.type == F.TYPE_MESSAGE:
            if rng.random() < 0.3 and keys:
                del items[rng.choice(keys)]
                return
            pool = self.corpus.parts.get(value.message_type.full_name)
            if pool:
                items[key].CopyFrom(rng.choice(pool))
        else:
            items[key] = self._scalar(value, items.get(key, value.default_value))

    def _scalar(self, f: Any, now: Any) -> Any:
        rng = self.rng
        if f.type in _BITS or f.type in _UNSIGNED:
            low, high = (
                (0, 2 ** _UNSIGNED[f.type])
                if f.type in _UNSIGNED
                else (-(2 ** (_BITS[f.type] - 1)), 2 ** (_BITS[f.type] - 1))
            )
            value = now + rng.choice((-1, 1, 7)) if rng.random() < 0.3 else rng.choice(INTEGERS)
            return value if low <= value < high else (value - low) % (high - low) + low
        if f.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
            return rng.choice(FLOATS) if rng.random() < 0.8 else now * rng.choice((-1.0, 0.5, 2.0, 1e6))
        if f.type == F.TYPE_BOOL:
            return not now
        if f.type == F.TYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 4, 5, 9, 99, -1, 2**31 - 1))
        if f.type == F.TYPE_STRING:
            return self._text()
        return self._bytes(now)

    def _text(self) -> str:
        rng = self.rng
        return (
            rng.choice(self.corpus.texts) if rng.random() < 0.5 and self.corpus.texts else rng.choice(TEXTS)
        )

    def _bytes(self, now: bytes) -> bytes:
        rng, what = self.rng, self.rng.random()
        if what < 0.15:
            return b""
        if what < 0.35:
            return now[: rng.randrange(len(now) + 1)]
        if what < 0.45:
            return now * 2 + b"\0"
        if what < 0.55:
            return bytes(rng.choice((1, 3, 1000, 200_000)))
        if what < 0.8 and len(now) >= 4:
            at = rng.randrange(len(now) // 4) * 4
            return (
                now[:at]
                + struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-42)))
                + now[at + 4 :]
            )
        return self._flip(now) if now else rng.randbytes(16)

    # By bytes

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return b"\xff"
        changed = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            # The beginning has names and tags, the rest mostly numbers.
            end = min(len(changed), 256) if self.rng.random() < 0.7 else len(changed)
            changed[self.rng.randrange(end)] ^= 1 << self.rng.randrange(8)
        return bytes(changed)

    def _truncate(self, data: bytes) -> bytes:
        return data[: self.rng.randrange(len(data) + 1)]

    def _fields_at(self, data: bytes) -> list[tuple[int, int, int]]:
        """(begin, where its tag ends, end) of the top-level fields, as far as they can be read."""
        found, at = [], 0
        while at < len(data):
            tag = read_varint(data, at)
            if tag is None:
                break
            number, after = tag
            kind, end = number & 7, after
            if kind == 0:
                value = read_varint(data, after)
                if value is None:
                    break
                end = value[1]
            elif kind == 2:
                size = read_varint(data, after)
                if size is None:
                    break
                end = size[1] + size[0]
            elif kind in (1, 5):
                end = after + (8 if kind == 1 else 4)
            else:
                break
            if end > len(data):
                break
            found.append((at, after, end))
            at = end
        return found

    def _double(self, data: bytes) -> bytes:
        """A field is there twice, or very often: for a scalar the last holds, messages are merged."""
        if not (fields := self._fields_at(data)):
            return data + data
        begin, _, end = self.rng.choice(fields)
        times = self.rng.choice((1, 1, 2, 50))
        return data + data[begin:end] * (times if (end - begin) * times < 1 << 20 else 1)

    def _swap(self, data: bytes) -> bytes:
        """The fields come in another order."""
        parts = [data[begin:end] for begin, _, end in self._fields_at(data)]
        self.rng.shuffle(parts)
        return b"".join(parts)

    def _length(self, data: bytes) -> bytes:
        """A length that is too large, too small, or written with more bytes than it needs."""
        fields = [(b, a, e) for b, a, e in self._fields_at(data) if data[a - 1] & 7 == 2 and a - b == 1]
        if not fields:
            return self._varint(data)
        after = self.rng.choice(fields)[1]
        size = read_varint(data, after)
        assert size is not None
        what = self.rng.random()
        if what < 0.4:
            new = varint(
                self.rng.choice((size[0] + 1, 2 * size[0] + 1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1))
            )
        elif what < 0.7:
            new = varint(max(0, size[0] - self.rng.choice((1, 2, 7))))
        else:
            new = overlong(size[0], self.rng.choice((5, 9, 10, 11)))
        return data[:after] + new + data[size[1] :]

    def _wire_type(self, data: bytes) -> bytes:
        """A field says it is written in another way."""
        if not (fields := self._fields_at(data)):
            return self._flip(data)
        begin, _, _ = self.rng.choice(fields)
        return data[:begin] + bytes([data[begin] & 0xF8 | self.rng.randrange(8)]) + data[begin + 1 :]

    def _varint(self, data: bytes) -> bytes:
        """A tag written with more bytes than it needs."""
        if not (fields := self._fields_at(data)):
            return self._flip(data)
        begin, after, _ = self.rng.choice(fields)
        tag = read_varint(data, begin)
        assert tag is not None
        return data[:begin] + overlong(tag[0], self.rng.choice((2, 3, 5, 10))) + data[after:]

    def _unknown(self, data: bytes) -> bytes:
        number = self.rng.choice((9, 16, 100, 2046, 2047, 18999, 19000, 2**29 - 1))
        kind = self.rng.choice((0, 1, 2, 5))
        content = {
            0: varint(self.rng.choice((0, 2**64 - 1))),
            1: bytes(8),
            5: bytes(4),
            2: varint(5) + b"hello",
        }[kind]
        return data + varint(number << 3 | kind) + content

    def _insert(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data) + 1)
        return data[:at] + self.rng.randbytes(self.rng.choice((1, 2, 5, 64))) + data[at:]

    def _group(self, data: bytes) -> bytes:
        """Groups, which proto3 does not have, and messages in messages, deeper than anybody needs."""
        depth = self.rng.choice((1, 10, 101, 5000))
        if self.rng.random() < 0.5:
            return data + b"\x0b" * depth + (b"\x0c" * depth if self.rng.random() < 0.5 else b"")
        inner = b""
        for _ in range(min(depth, 2000)):
            # Program.instructions, Instruction.repeat, Repeat.body: any number between them will do.
            inner = b"\x22" + varint(len(inner) + 2) + b"\x08\x02" + inner
        return data + b"\x42" + varint(len(inner)) + inner

    def _splice_bytes(self, data: bytes) -> bytes:
        calls = self.corpus.calls[self.rng.choice(sorted(self.corpus.calls))]
        call = self.rng.choice(calls)
        other = self.rng.choice(call.requests or call.responses or [b"\x0a"])
        return (
            data[: self.rng.randrange(len(data) + 1)] + other[self.rng.randrange(len(other) + 1) :][:100_000]
        )


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def overlong(value: int, size: int) -> bytes:
    """`value` in `size` bytes, or in as many as it needs."""
    out = bytearray(varint(value))
    while len(out) < size:
        out[-1] |= 128
        out.append(0)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int] | None:
    """(its value, where it ends), or None if it does not."""
    value = 0
    for count in range(10):
        if at + count >= len(data):
            return None
        value |= (data[at + count] & 127) << 7 * count
        if data[at + count] < 128:
            return value, at + count + 1
    return None
