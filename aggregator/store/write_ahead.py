"""SQLite's write-ahead log, checked before SQLite reads it.

SQLite ends at the first frame that is not as it was written and forgets what was committed after it, without
a word. A commit is synced before the next one is written: so of the commits behind a bad frame all but the
last were durable. One may be what a power cut left of a commit nobody was told of, two are damage. A frame's
sum goes on from the one before it, which tells those written behind the bad one from what lay there earlier.
The header is smaller than what a disk writes at once: it is never half there.
"""

from __future__ import annotations

import struct
from pathlib import Path

from edge_attention.core.errors import DataLoss

_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""The order of bytes in which sums are made."""
_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")


def require_whole(log: Path) -> None:
    """Refuse a log in which something that was committed cannot be read. It stays as it is.

    Raises:
        DataLoss: it is damaged.
    """
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return
    if len(data) <= _HEADER.size + _FRAME.size:
        return  # SQLite was about to begin it
    magic, _, page, _, *salts, first, second = _HEADER.unpack_from(data)
    order = _MAGIC.get(magic)
    sums = (0, 0) if order is None else _sums(order, data[:24], (0, 0))
    if order is None or sums != (first, second):
        raise _damaged(log, 0)
    bad, lost, doubtful, others = -1, 0, False, sums
    for at in range(_HEADER.size, len(data) - _FRAME.size - page + 1, _FRAME.size + page):
        _, commit, *of, first, second = _FRAME.unpack_from(data, at)
        found = _frame(order, data, at, page, sums)
        follows = of == salts and (first, second) == found
        if bad >= 0 and of == salts and not follows:  # of the one before its sum may be what changed
            follows = (first, second) == _frame(order, data, at, page, others)
        if follows and bad >= 0:
            lost += bool(commit) + doubtful
            doubtful = False
            if lost > 1:
                raise _damaged(log, bad)
        elif not follows:
            bad = at if bad < 0 else bad
            doubtful = bool(commit)
        sums, others = (first, second), found


def _frame(order: str, data: bytes, at: int, page: int, sums: tuple[int, int]) -> tuple[int, int]:
    sums = _sums(order, data[at : at + 8], sums)
    return _sums(order, data[at + _FRAME.size : at + _FRAME.size + page], sums)


def _sums(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    a, b = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        a = (a + one + b) & 0xFFFFFFFF
        b = (b + other + a) & 0xFFFFFFFF
    return a, b


def _damaged(log: Path, at: int) -> DataLoss:
    return DataLoss(
        f"{log} is damaged at byte {at:,}, and what was committed after it cannot be read; restore the state "
        "folder from a copy, or remove this file to go on without what it has"
    )
