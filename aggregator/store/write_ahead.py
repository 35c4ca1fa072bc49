"""SQLite's write-ahead log, read and checked before SQLite does.

SQLite ends at the first frame that is not as it was written and forgets what was committed after it, without
a word. A commit is synced before the next one is written: so of the commits behind a bad frame all but the
last were durable. One may be what a power cut left of a commit nobody was told of, two are damage. A frame's
sum goes on from the one before it, which tells those written behind the bad one from what lay there earlier.
The header is smaller than what a disk writes at once: it is never half there.

A sum goes over pairs of words x, y: a' = a + x + b, b' = b + y + a', all modulo 2^32. That is linear: with
M = [[1, 1], [1, 2]] and n pairs, (a, b) = M^n (a0, b0) + sum_k M^(n-1-k) (x_k, x_k + y_k), so NumPy sums a
frame as two products with the powers of M, which are the same for all frames.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edge_attention.core.errors import DataLoss

_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""The order of bytes in which sums are made."""
_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_PIECE = 1024 * 1024
"""Bytes of a log that are read at a time."""
_PAGES = (512, 65536)
"""Sizes of a page that SQLite knows, from and to."""

Sums = tuple[int, int]
Words = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True)
class Log:
    """The committed part of a write-ahead log; empty where there is no log, or nothing in it."""

    page: int = 0
    """Bytes of a page; 0: nothing was committed."""
    images: dict[int, int] = field(default_factory=dict)
    """Number of a page, from 1 -> `page_sum` of what it will be in the database."""
    pages: int = 0
    """Pages that the database has after the last commit; 0: nothing was committed."""


def page_sum(number: int, data: bytes) -> int:
    """The sum of the page `number`, from 1. One that lies in another one's place has another."""
    return zlib.crc32(data, number)


def require_whole(log: Path) -> Log:
    """What is committed in a log. One in which a part of it cannot be read is refused, and stays as it is.

    Raises:
        DataLoss: it is damaged.
    """
    try:
        with log.open("rb", buffering=0) as file:
            return _read(log, file)
    except FileNotFoundError:
        return Log()


def _read(log: Path, file: BinaryIO) -> Log:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return Log()  # SQLite was about to begin it
    magic, _, page, _, *salts, first, second = _HEADER.unpack(head)
    order = _MAGIC.get(magic)
    begun = (0, 0) if order is None else _sums(order, head[:24], (0, 0))
    sized = _PAGES[0] <= page <= _PAGES[1] and page % 8 == 0
    if order is None or not sized or begun != (first, second):
        if len(file.read(_FRAME.size + 1)) <= _FRAME.size:
            return Log()  # it has not a page yet
        raise _damaged(log, 0)
    images: dict[int, int] = {}
    waiting: dict[int, int] = {}  # of a commit whose end is not yet seen
    pages, bad, lost, doubtful = 0, -1, 0, False
    sums = others = begun
    for at, header, data, own in _frames(file, order, page):
        number, commit, *of, first, second = header
        found = own.after(sums)
        follows = number > 0 and of == salts and (first, second) == found
        if bad >= 0 and of == salts and not follows:  # of the one before its sum may be what changed
            follows = (first, second) == own.after(others)
        if follows and bad >= 0:
            lost += bool(commit) + doubtful
            doubtful = False
            if lost > 1:
                raise _damaged(log, bad)
        elif not follows:
            bad = at if bad < 0 else bad
            doubtful = bool(commit)
        else:
            waiting[number] = page_sum(number, data)
            if commit:
                pages = commit
                images |= waiting
                waiting.clear()
        sums, others = (first, second), found
    return Log(page, images, pages)


@dataclass(frozen=True)
class _Own:
    """What a frame adds to the sums before it, whatever these are. `power`: M^n, by rows."""

    power: tuple[int, int, int, int]
    a: int
    b: int

    def after(self, sums: Sums) -> Sums:
        p, q, r, s = self.power
        a, b = sums
        return (p * a + q * b + self.a) & 0xFFFFFFFF, (r * a + s * b + self.b) & 0xFFFFFFFF


def _frames(file: BinaryIO, order: str, page: int) -> Iterator[tuple[int, tuple[int, ...], bytes, _Own]]:
    """(where it begins, its header, its page, what it adds) of each whole frame, in bounded memory."""
    size, at = _FRAME.size + page, _HEADER.size
    many = max(1, _PIECE // size)
    power, for_a, for_b = _weights(2 + page // 4)
    while len(data := _whole(file, many * size)) >= size:
        frames = np.frombuffer(data[: len(data) // size * size], np.uint8).reshape(-1, size)
        # The first 8 bytes of its header and the page are what is summed.
        summed = np.concatenate([frames[:, :8], frames[:, _FRAME.size :]], axis=1)
        words = summed.view(f"{order}u4").astype(np.uint32)
        a, b = words @ for_a, words @ for_b
        for index in range(len(frames)):
            begin = index * size
            header = _FRAME.unpack_from(data, begin)
            own = _Own(power, int(a[index]), int(b[index]))
            yield at + begin, header, data[begin + _FRAME.size : begin + size], own
        at += len(frames) * size


def _whole(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, or what there is until the end."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@lru_cache(4)
def _weights(words: int) -> tuple[tuple[int, int, int, int], Words, Words]:
    """(M^n, weights of the words in a, in b) for n = words / 2 pairs, modulo 2^32."""
    for_a, for_b = np.zeros(words, np.uint32), np.zeros(words, np.uint32)
    p, q, r, s = 1, 0, 0, 1  # M^j
    for at in range(words - 2, -1, -2):  # x counts for both, y for b alone
        for_a[at], for_a[at + 1] = (p + q) & 0xFFFFFFFF, q
        for_b[at], for_b[at + 1] = (r + s) & 0xFFFFFFFF, s
        p, q, r, s = (
            (p + q) & 0xFFFFFFFF,
            (p + 2 * q) & 0xFFFFFFFF,
            (r + s) & 0xFFFFFFFF,
            (r + 2 * s) & 0xFFFFFFFF,
        )
    return (p, q, r, s), for_a, for_b


def _sums(order: str, data: bytes, sums: Sums) -> Sums:
    power, for_a, for_b = _weights(len(data) // 4)
    words = np.frombuffer(data, f"{order}u4").astype(np.uint32)
    return _Own(power, int(words @ for_a), int(words @ for_b)).after(sums)


def _damaged(log: Path, at: int) -> DataLoss:
    return DataLoss(
        f"{log} is damaged at byte {at:,}, and what was committed after it cannot be read; restore the state "
        "folder from a copy, or remove this file to go on without what it has"
    )
