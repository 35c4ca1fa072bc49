"""Texts of one column to numbers, a piece at a time: fast where all are plain, value by value where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.core.tensors import Array
from edge_attention.tables.spellings import (
    GROUPED,
    MISSING,
    MISSING_AMONG_NUMBERS,
    NUMBER,
    TRUTH,
    WITH_COMMA,
)

__all__ = ["NotNumbers", "ParsedNumbers", "narrow", "numbers"]


_GAPS = MISSING | MISSING_AMONG_NUMBERS


class NotNumbers(Exception):
    """`row`: the first of the piece that is none."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


@dataclass(frozen=True, eq=False)
class ParsedNumbers:
    """A piece of a column.

    Attributes:
        values: int64 if all are written as whole numbers, else float64; 0 where missing.
        missing: bool [rows], or None.
        truth: these were written True and False.
        comma: the first row with a decimal comma, or -1.
        sure: a value with a comma cannot be a number whose digits are grouped by threes.
        point: the first row with a decimal point, or -1.
    """

    values: Array
    missing: Array | None = None
    truth: bool = False
    comma: int = -1
    sure: bool = False
    point: int = -1


def numbers(cells: Sequence[str], decimal: str = "") -> ParsedNumbers:
    """The numbers of `cells`; `decimal`: the only decimal sign there may be.

    Raises:
        NotNumbers: one is none.
    """
    joined = "\n".join(cells)
    plain = joined.isascii() and "_" not in joined
    if plain and (found := _plain(cells, decimal)) is not None:
        return found
    return _each(cells, decimal, plain)


def _plain(cells: Sequence[str], decimal: str) -> ParsedNumbers | None:
    """By Python's own reading of numbers; None: one is not finite, or is none."""
    try:
        return ParsedNumbers(np.array(list(map(int, cells)), np.int64))
    except (ValueError, OverflowError):
        pass
    if decimal == ",":
        return None
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return None
    return ParsedNumbers(values, point=_first(cells, ".")) if np.isfinite(values).all() else None


def _each(cells: Sequence[str], decimal: str, plain: bool) -> ParsedNumbers:
    """`plain`: Python's own reading of numbers finds none that is not written as one here."""
    stripped = [cell.strip() for cell in cells]
    missing = np.fromiter((cell in _GAPS for cell in stripped), bool, len(stripped))
    gaps = missing if missing.any() else None
    left = stripped if gaps is None else [cell for cell in stripped if cell not in _GAPS]
    where = np.flatnonzero(~missing)
    if left and left[0] in TRUTH and all(cell in TRUTH for cell in left):
        found = np.zeros(len(cells), np.int64)
        found[where] = [TRUTH[cell] for cell in left]
        return ParsedNumbers(found, gaps, truth=True)
    if plain and gaps is not None and (quick := _plain(left, decimal)) is not None:
        values = np.zeros(len(cells), quick.values.dtype)
        values[where] = quick.values
        return ParsedNumbers(values, gaps, point=int(where[quick.point]) if quick.point >= 0 else -1)
    comma = point = -1
    sure = False
    texts: list[str] = []
    for row, cell in zip(where.tolist(), left, strict=True):
        if NUMBER.fullmatch(cell) and not (decimal == "," and "." in cell):
            if point < 0 and "." in cell:
                point = row
            texts.append(cell)
        elif decimal != "." and WITH_COMMA.fullmatch(cell):
            if comma < 0:
                comma = row
            sure = sure or not GROUPED.fullmatch(cell)
            texts.append(cell.replace(",", "."))
        elif cell.lower().lstrip("+-") in ("inf", "infinity"):
            texts.append(cell)
        else:
            raise NotNumbers(row)
    try:
        exact = np.array(list(map(int, texts)), np.int64)
    except (ValueError, OverflowError):
        exact = np.array(list(map(float, texts)))
    if gaps is None:
        values = exact
    else:
        values = np.zeros(len(cells), exact.dtype)
        values[where] = exact
    return ParsedNumbers(values, gaps, comma=comma, sure=sure, point=point)


def _first(cells: Sequence[str], sign: str) -> int:
    return next((row for row, cell in enumerate(cells) if sign in cell), -1)


def narrow(values: Array) -> Array:
    """Whole numbers in the narrowest signed integers that hold them all; a copy."""
    if not len(values):
        return values.astype(np.int8)
    low, high = values.min(), values.max()
    for dtype in (np.int8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return values.astype(dtype)
    return values.astype(np.int64)
