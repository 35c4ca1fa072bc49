"""The ids of a table's rows: one canonical text each, in one piece of memory for all.

An object a row would be ten times as large. The text is what two nodes compare, hashed, so that it has to be
one however a file writes it: the bytes `P1` and the text `P1` are one id, so are 1 and 1.0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from edge_attention.core.tensors import Array
from edge_attention.tables.spellings import MISSING

__all__ = ["MAX_ID", "Ids", "IdsBuilder", "MissingId", "canonical"]

MAX_ID = 1_000
"""Characters of an id."""

_NONE = MISSING | {"None", "none", "NONE"}
_BYTES = re.compile(r"b(['\"])([^\\]*)\1")
_WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
_PLAIN_KINDS = {"b": "truth", "c": "complex numbers"}


class MissingId(ValueError):
    """`row`: the first of the piece whose id is missing, or is none; the message says which of it."""

    def __init__(self, row: int, words: str = "the id is missing") -> None:
        super().__init__(words)
        self.row = row


def canonical(text: str) -> str:
    """The one text of an id: without spaces around it, `1.0` as `1`, `b'P1'` as `P1`, composed (NFC)."""
    text = text.strip()
    if (found := _BYTES.fullmatch(text)) is not None:
        text = found[2].strip()
    if (found := _WHOLE.fullmatch(text)) is not None:
        text = found[1]
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class Ids:
    """Texts by row, as UTF-8. Made by `of` or an IdsBuilder."""

    def __init__(self, text: bytes, ends: Array) -> None:
        """`ends` [rows]: where in `text` the id of each row ends."""
        self._text = text
        self._ends = ends

    @classmethod
    def of(cls, ids: Iterable[str]) -> Ids:
        """Raises:
        MissingId: one is missing.
        """
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
        for begin in range(0, len(self), 4096):
            for end in self._ends[begin : begin + 4096].tolist():
                yield self._text[at:end]
                at = end

    def _hashes(self) -> Array:
        return np.fromiter((hash(identity) for identity in self), np.int64, len(self))

    def twice(self) -> tuple[int, int] | None:
        """The first row whose id an earlier row has, after that earlier row; None: each is there once."""
        # By hash, in 8 bytes a row; few have one hash by chance, and those are compared.
        ordered = self._hashes()
        ordered.sort()
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(same):
            return None
        again = np.unique(ordered[same])
        del ordered, same
        seen: dict[bytes, int] = {}
        for row in np.flatnonzero(np.isin(self._hashes(), again)).tolist():
            if (first := seen.setdefault(self[row], row)) != row:
                return first, row
        return None


class IdsBuilder:
    """Ids as they come, piece by piece."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends: list[Array] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def extend(self, ids: Sequence[str]) -> None:
        """Texts as files have them.

        Raises:
            MissingId: one is missing, or no id can be so long; nothing of the piece was taken.
        """
        if not ids:
            return
        joined = "\n".join(ids)
        if joined.isascii() and "." not in joined and "b'" not in joined and 'b"' not in joined:
            found = [text.strip() for text in ids]
        else:
            found = [canonical(text) for text in ids]
        if not _NONE.isdisjoint(found):
            raise MissingId(next(row for row, text in enumerate(found) if text in _NONE))
        encoded = [text.encode() for text in found]
        lengths = [len(one) for one in encoded]
        if max(lengths) > MAX_ID:
            row = next(row for row, length in enumerate(lengths) if length > MAX_ID)
            raise MissingId(row, f"an id of over {MAX_ID:,} bytes")
        ends = np.cumsum(lengths, dtype=np.int64) + len(self._text)
        self._text += b"".join(encoded)
        self._ends.append(ends.astype(np.uint32) if len(self._text) < 1 << 32 else ends)
        self._rows += len(found)

    def extend_array(self, ids: Array) -> None:
        """Ids of an array [rows] of NumPy's: text, bytes, numbers.

        Raises:
            MissingId: one is missing, cannot be an id, or has lost digits as a number of that kind.
        """
        if ids.ndim != 1:
            raise MissingId(0, "an id is one value a row")
        kind = ids.dtype.kind
        if kind == "f":
            if len(bad := np.flatnonzero(np.isnan(ids))):
                raise MissingId(int(bad[0]))
            if len(bad := np.flatnonzero(~np.isfinite(ids))):
                raise MissingId(int(bad[0]), "an infinite number is no id")
            most = 2 ** (np.finfo(ids.dtype).nmant + 1)
            if len(bad := np.flatnonzero(np.abs(ids) > most)):
                raise MissingId(
                    int(bad[0]), f"an id over {most:,} as {ids.dtype} has lost digits: save ids as text"
                )
            self.extend([str(int(one)) if one == int(one) else repr(one) for one in ids.tolist()])
        elif kind in "iu":
            self.extend(list(map(str, ids.tolist())))
        elif kind == "S":
            texts = []
            for row, one in enumerate(ids.tolist()):
                try:
                    texts.append(one.decode())
                except UnicodeDecodeError:
                    raise MissingId(row, "an id of bytes that are no UTF-8: save ids as text") from None
            self.extend(texts)
        elif kind in "UM":
            self.extend([str(one) for one in ids])
        else:
            raise MissingId(0, f"{_PLAIN_KINDS.get(kind, ids.dtype)} are no ids")

    def finish(self) -> Ids:
        """What came; nothing may come after it."""
        ends = np.concatenate(self._ends) if self._ends else np.zeros(0, np.uint32)
        return Ids(bytes(self._text), ends)
