"""The checksum that every message of a call ends with: CRC-32 over all of it.

On the wire it is a field like any other, `optional fixed32 checksum = 2047`, written last. It is of every
byte before its own four, its tag included, so that the CRC-32 of a whole message that arrived as it was sent
is always the same number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    from isal.isal_zlib import crc32  # some 15 times as fast
except ImportError:  # no wheel for this machine
    from zlib import crc32

__all__ = ["FIELD", "TRAILER", "intact", "lacking", "seal", "trailer"]

FIELD = "checksum"
"""What the field is called in every message that has one."""

TAG = b"\xfd\x7f"
"""Field 2047, four bytes."""

TRAILER = len(TAG) + 4
"""Bytes a checksum adds to a message."""

_WHOLE = 0x2144DF1C
"""CRC-32 of any bytes followed by their own CRC-32, little-endian."""


def seal(data: bytes) -> bytes:
    """`data`, the bytes of a message without a checksum, with it."""
    return data + trailer([data])


def trailer(parts: Iterable[Any]) -> bytes:
    """What to write after a message whose bytes are `parts`, buffers in order."""
    crc = 0
    for part in parts:
        crc = crc32(part, crc)
    return TAG + crc32(TAG, crc).to_bytes(4, "little")


def lacking(data: bytes) -> bool:
    """Whether `data` does not end with a checksum, or with one whose tag was damaged."""
    return data[-TRAILER:-4] != TAG


def intact(data: bytes) -> bool:
    """Whether `data` ends with a checksum, and it is right."""
    return data[-TRAILER:-4] == TAG and crc32(data) == _WHOLE
