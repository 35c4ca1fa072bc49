"""A column as it grows: pieces of numbers, or codes of words, kept small and put together once at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.numbers import narrow
from edge_attention.tables.spellings import MISSING

__all__ = ["MAX_WORD", "MAX_WORDS", "NotFiniteRow", "NumberPieces", "TooManyWords", "WordPieces"]

MAX_WORDS = 1_000
"""Distinct values of a column of text that can still be categories; with more it is set aside."""
MAX_WORD = 256
"""Characters of such a value."""

_LARGEST = float(np.finfo(np.float32).max)
_EXACT = float(1 << 53)


class NotFiniteRow(Exception):
    """`row` of the piece holds a number that is infinite, or too large for float32."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class TooManyWords(Exception):
    """The message says of what there is too much."""


class _Pieces:
    __slots__ = ("_gaps", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[Array] = []
        self._gaps: list[Array | int] = []
        """A mask a piece, or how many rows of it are all there."""

    def _keep(self, values: Array, missing: Array | None) -> None:
        self._pieces.append(values)
        self._gaps.append(len(values) if missing is None or not missing.any() else missing)

    def _joined(self) -> tuple[Array, Array | None]:
        gaps = None
        if any(not isinstance(one, int) for one in self._gaps):
            gaps = np.concatenate(
                [np.zeros(one, bool) if isinstance(one, int) else one for one in self._gaps]
            )
        self._gaps.clear()
        dtype = np.result_type(*{piece.dtype for piece in self._pieces})
        if dtype.kind == "f":
            dtype = np.dtype(np.float32)  # NumPy would have whole numbers of 32 bits widen it
        values = np.empty((sum(map(len, self._pieces)), *self._pieces[0].shape[1:]), dtype)
        at = 0
        self._pieces.reverse()
        while self._pieces:  # each is let go once it is copied
            piece = self._pieces.pop()
            values[at : at + len(piece)] = piece
            at += len(piece)
        return values, gaps


class NumberPieces(_Pieces):
    """Numbers [rows, ...]: whole ones in narrow integers; float32 as soon as one is not whole."""

    __slots__ = ()

    def add(self, values: Array, missing: Array | None) -> None:
        """int64 or float64; what is `missing` is 0 there.

        Raises:
            NotFiniteRow: float32 cannot hold a number.
        """
        if values.dtype.kind == "f":
            if (large := ~(np.abs(values) <= _LARGEST)).any():
                raise NotFiniteRow(int(np.argwhere(large)[0][0]))
            whole = (np.abs(values) < _EXACT).all() and (values == np.rint(values)).all()
            values = narrow(values.astype(np.int64)) if whole else values.astype(np.float32)
        else:
            values = narrow(values)
        self._keep(values, missing)

    def finish(self) -> TableColumn:
        """Of one piece at least. Nothing may be added after it."""
        return TableColumn(*self._joined())


class WordPieces(_Pieces):
    """Words as codes. `words`: those so far, each with its code."""

    __slots__ = ("words",)

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, int] = {}

    def add(self, cells: Sequence[str]) -> None:
        """Texts as files have them; spaces around a word are no part of it.

        Raises:
            TooManyWords: they are no categories.
        """
        words = self.words
        codes = np.empty(len(cells), np.int16)
        for row, cell in enumerate(cells):
            code = words.get(cell)
            codes[row] = self._code(cell.strip()) if code is None else code
        self._keep(codes, codes < 0)

    def add_codes(self, texts: Sequence[str], indices: Array, missing: Array) -> None:
        """Rows that have `texts[index]`, where not `missing`.

        Raises:
            TooManyWords: they are no categories.
        """
        used = np.zeros(len(texts), bool)
        used[indices[~missing]] = True
        codes = np.full(len(texts) + 1, -1, np.int16)
        # In order of first appearance, as in a file of text.
        order, first = np.unique(indices[~missing], return_index=True)
        for index in order[np.argsort(first)].tolist():
            codes[index] = self._code(texts[index].strip())
        found = codes[np.where(missing, len(texts), indices)]
        self._keep(found, found < 0)

    def _code(self, word: str) -> int:
        if word in MISSING:
            return -1
        if (code := self.words.get(word)) is not None:
            return code
        if len(word) > MAX_WORD:
            raise TooManyWords(f"a value of over {MAX_WORD} characters")
        if len(self.words) == MAX_WORDS:
            raise TooManyWords(f"over {MAX_WORDS:,} distinct values")
        return self.words.setdefault(word, len(self.words))

    def finish(self) -> TableColumn:
        """Of one piece at least. Nothing may be added after it."""
        return TableColumn(*self._joined(), tuple(self.words))
