"""A column of texts, typed as its pieces come: numbers as long as each value is one, else words."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np

from edge_attention.tables.column import NO_VALUES, TableColumn
from edge_attention.tables.numbers import NotNumbers, numbers
from edge_attention.tables.pieces import NotFiniteRow, NumberPieces, TooManyWords, WordPieces
from edge_attention.tables.spellings import DATE, NUMBER_LIKE

__all__ = ["ColumnBuilder", "ColumnKind"]


class ColumnKind(Enum):
    EMPTY = auto()  # nothing but gaps so far
    NUMBERS = auto()
    TRUTH = auto()  # True and False
    WORDS = auto()
    AGAIN = auto()  # words, but the rows before were taken for numbers: to be read once more
    ASIDE = auto()  # neither: `reason` says why


class ColumnBuilder:
    """One column. `add` each piece in order, then `finish`.

    Attributes:
        kind: what it is so far.
        reason: why it is set aside, in words.
        odd: the first row that is no number, or that `reason` is about; -1: none.
        of_odd: `reason` is about that row.
        comma: the first row with a decimal comma, or -1; `point` likewise.
    """

    __slots__ = (
        "_decimal",
        "_numbers",
        "_rows",
        "_sure",
        "_words",
        "comma",
        "kind",
        "odd",
        "of_odd",
        "point",
        "reason",
    )

    def __init__(self, decimal: str = "", *, words: bool = False) -> None:
        """`decimal`: the only decimal sign there may be, if said. `words`: no value is taken for a number."""
        self.kind = ColumnKind.WORDS if words else ColumnKind.EMPTY
        self.reason = ""
        self.odd = -1
        self.of_odd = False
        self.comma = self.point = -1
        self._decimal = decimal
        self._sure = False
        self._rows = 0
        # Of a file of 20,000 columns what each takes counts.
        self._numbers: NumberPieces | None = None
        self._words: WordPieces | None = None

    def add(self, cells: Sequence[str]) -> None:
        """The next piece."""
        if self.kind is ColumnKind.WORDS:
            self._add_words(cells)
        elif self.kind not in (ColumnKind.AGAIN, ColumnKind.ASIDE):
            self._add_numbers(cells)
        self._rows += len(cells)

    def _add_numbers(self, cells: Sequence[str]) -> None:
        try:
            found = numbers(cells, self._decimal)
            if found.missing is None or not found.missing.all():
                kind = ColumnKind.TRUTH if found.truth else ColumnKind.NUMBERS
                if self.kind not in (ColumnKind.EMPTY, kind):
                    raise NotNumbers(0 if found.missing is None else int(np.argmin(found.missing)))
                self.kind = kind
            if self._numbers is None:
                self._numbers = NumberPieces()
            self._numbers.add(found.values, found.missing)
        except NotNumbers as error:
            self.odd = self._rows + error.row
            if self._rows:
                self._forget(ColumnKind.AGAIN)
            else:
                self.kind = ColumnKind.WORDS
                self._add_words(cells)
            return
        except NotFiniteRow as error:
            self.odd = self._rows + error.row
            self._forget(ColumnKind.ASIDE, "has a number that is infinite, or too large for float32")
            self.of_odd = True
            return
        if self.comma < 0 <= found.comma:
            self.comma = self._rows + found.comma
        if self.point < 0 <= found.point:
            self.point = self._rows + found.point
        self._sure = self._sure or found.sure

    def _add_words(self, cells: Sequence[str]) -> None:
        if self._words is None:
            self._words = WordPieces()
        words = self._words.words
        try:
            self._words.add(cells)
        except TooManyWords as error:
            dates = sum(DATE.fullmatch(word) is not None for word in words)
            what = "dates" if dates > len(words) // 2 else "text"
            self._forget(ColumnKind.ASIDE, f"{what} with {error}")

    def _forget(self, kind: ColumnKind, reason: str = "") -> None:
        self.kind = kind
        self.reason = reason
        self._numbers = self._words = None

    def finish(self) -> TableColumn | None:
        """The column; None: it is set aside, `reason` says why. Nothing may be added after it."""
        words = () if self._words is None else self._words.words
        if self.kind is ColumnKind.EMPTY or (self.kind is ColumnKind.WORDS and not words):
            self._forget(ColumnKind.ASIDE, NO_VALUES)
        elif self.kind is ColumnKind.WORDS and all(map(_like_a_number, words)):
            self._forget(ColumnKind.ASIDE, "is like numbers, but not written as numbers are here")
            self.of_odd = True
        elif self.comma >= 0 and not self._sure and not self._decimal:
            reason = "has commas before three digits: thousands, or decimals? ?decimal=comma says the latter"
            self._forget(ColumnKind.ASIDE, reason)
        made = self._words or self._numbers
        return None if made is None else made.finish()


def _like_a_number(word: str) -> bool:
    return NUMBER_LIKE.fullmatch(word) is not None and DATE.fullmatch(word) is None
