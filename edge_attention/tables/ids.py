"""The ids of a table's rows, in one piece of memory: an object a row would be ten times as large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from edge_attention.core.tensors import Array

__all__ = ["Ids", "IdsBuilder"]


class Ids:
    """Texts by row, as UTF-8. Made by `of` or an IdsBuilder."""

    def __init__(self, text: bytes, ends: Array) -> None:
        """`ends` [rows]: where in `text` the id of each row ends."""
        self._text = text
        self._ends = ends

    @classmethod
    def of(cls, ids: Iterable[str]) -> Ids:
        builder = IdsBuilder()
        builder.extend(list(ids))
        return builder.finish()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> bytes:
        """The id of a row that is there, as UTF-8."""
        return self._text[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])]

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        for end in self._ends.tolist():
            yield self._text[at:end]
            at = end

    def twice(self) -> tuple[int, int] | None:
        """The first row whose id an earlier row has, after that earlier row; None: each is there once."""
        # By hash, in 8 bytes a row; few have one hash by chance, and those are compared.
        hashes = np.fromiter((hash(identity) for identity in self), np.int64, len(self))
        ordered = np.sort(hashes)
        again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(again):
            return None
        seen: dict[bytes, int] = {}
        for row in np.flatnonzero(np.isin(hashes, again)).tolist():
            if (first := seen.setdefault(self[row], row)) != row:
                return first, row
        return None


class IdsBuilder:
    """Ids as they come, piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ends: list[Array] = []
        self._size = 0

    def extend(self, ids: list[str]) -> None:
        encoded = [identity.encode() for identity in ids]
        ends = np.cumsum([len(piece) for piece in encoded], dtype=np.int64) + self._size
        if not encoded:
            return
        self._size = int(ends[-1])
        self._ends.append(ends.astype(np.uint32) if self._size < 1 << 32 else ends)
        self._pieces.append(b"".join(encoded))

    def finish(self) -> Ids:
        """What came; nothing may come after it."""
        ends = np.concatenate(self._ends) if self._ends else np.zeros(0, np.uint32)
        return Ids(b"".join(self._pieces), ends)
