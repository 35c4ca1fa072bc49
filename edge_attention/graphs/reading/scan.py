"""How much an ONNX file holds, told before any of it is parsed: parts, nesting, fields that nobody knows.

A parsed message takes up to 200 bytes for a part of two, so a file is counted first. Nothing else rests on
this reading of the bytes: what is checked and used is the message that protobuf makes of them.
"""

from __future__ import annotations

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import MAX_MESSAGES, MAX_NESTING, MAX_PACKED, MAX_PARTS
from edge_attention.graphs.reading.fields import FIELDS

__all__ = ["scan"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRE = {"int32": _VARINT, "int64": _VARINT, "uint64": _VARINT, "double": _FIXED64, "float": _FIXED32}
_SIZE = {_FIXED64: 8, _FIXED32: 4}
_LARGE = {"Attribute", "Function", "Graph", "Node", "Tensor"}
_WEIGHT = {message: 4 if message in _LARGE else 1 for message in FIELDS}

_Table = dict[int, tuple["str", bool]]
"""Tag (number and wire type) to the message that it holds ("": none) and whether numbers are packed in it."""


def _tables() -> dict[str, _Table]:
    tables: dict[str, _Table] = {}
    for message, fields in FIELDS.items():
        tables[message] = {}
        for number, field in fields.items():
            wire = _WIRE.get(field.kind, _BYTES)
            tables[message][number << 3 | wire] = (field.kind if field.is_message else "", False)
            if field.repeated and wire != _BYTES:
                tables[message][number << 3 | _BYTES] = ("", wire == _VARINT)
    return tables


_TABLES = _tables()


def scan(data: bytes, where: str) -> None:
    """Read through the file once, in linear time, and keep nothing.

    Raises:
        InvalidGraph: it is no message of ONNX's form, has a field that is not known, or too many.
    """
    pos, end, message = 0, len(data), "Model"
    table = _TABLES[message]
    outer: list[tuple[int, str]] = []
    left, messages, packed = MAX_PARTS, MAX_MESSAGES, 0
    try:
        while True:
            while pos >= end:
                if pos > end:
                    raise _broken(where, pos)
                if not outer:
                    return
                end, message = outer.pop()
                table = _TABLES[message]
            left -= 1
            if left < 0:
                raise InvalidGraph(
                    f"{where}: more than {MAX_PARTS:,} fields (MAX_PARTS); keep lists of numbers as "
                    "constants with raw data"
                )
            tag = data[pos]
            pos += 1
            if tag > 127:
                tag, pos = _varint(data, pos - 1, where)
            known = table.get(tag)
            if known is None:
                raise _unknown(where, message, tag, pos)
            wire = tag & 7
            if wire == _BYTES:
                size = data[pos]
                pos += 1
                if size > 127:
                    size, pos = _varint(data, pos - 1, where)
                inner, numbers = known
                if numbers:
                    packed += size
                    if packed > MAX_PACKED:
                        raise InvalidGraph(
                            f"{where}: more than {MAX_PACKED:,} bytes of whole numbers that are not raw data "
                            "(MAX_PACKED); save its constants as raw data"
                        )
                if not inner:
                    pos += size
                    continue
                if pos + size > end:
                    raise _broken(where, pos)
                messages -= _WEIGHT[inner]
                if messages < 0:
                    raise InvalidGraph(
                        f"{where}: more than {MAX_MESSAGES:,} messages, large ones counted four "
                        "times (MAX_MESSAGES); leave out value_info and what exporters note, or bring less"
                    )
                outer.append((end, message))
                if len(outer) > MAX_NESTING:
                    raise InvalidGraph(f"{where}: nested more than {MAX_NESTING} deep (MAX_NESTING)")
                end, message = pos + size, inner
                table = _TABLES[message]
            elif wire == _VARINT:
                if data[pos] > 127:
                    _, pos = _varint(data, pos, where)
                else:
                    pos += 1
            else:
                pos += _SIZE[wire]
    except IndexError:
        raise _broken(where, pos) from None


def _varint(data: bytes, pos: int, where: str) -> tuple[int, int]:
    """The number at `pos`, of any length that protobuf allows, and where it ends."""
    value = 0
    for at in range(10):
        byte = data[pos + at]
        value |= (byte & 127) << 7 * at
        if byte < 128:
            return value, pos + at + 1
    raise _broken(where, pos)


def _broken(where: str, pos: int) -> InvalidGraph:
    return InvalidGraph(
        f"{where}: not an ONNX file (it breaks off or is damaged at byte {pos:,}); export it again"
    )


def _unknown(where: str, message: str, tag: int, pos: int) -> InvalidGraph:
    number, wire = tag >> 3, tag & 7
    known = FIELDS[message].get(number)
    if number == 0 or wire in (6, 7):
        return _broken(where, pos)
    what = f"field {number}" if known is None else f"field {number} ({known.name}) in another form"
    if wire in (3, 4):
        what = f"a group, field {number}"
    place = f"{what} in a {message} at byte {pos:,}"
    return InvalidGraph(f"{where}: not an ONNX file as it is known here ({place}); export it again")
