"""Numbers of one type as another, where that is exact: a property of all of a column."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_attention.core.tensors import Array

__all__ = ["exact_in_float32", "exact_in_int64", "first_inexact"]

_PIECE = 1 << 16
"""Elements looked at in one go, 20 bytes each: a column may be most of the memory there is."""


def exact_in_float32(values: Array) -> bool:
    """Whether each value is a float32; fractions may be rounded, what is whole and 2^24 or beyond may not."""
    return first_inexact(values, np.dtype(np.float32)) is None


def exact_in_int64(values: Array) -> bool:
    """Whether each value is whole, and an int64."""
    return first_inexact(values, np.dtype(np.int64)) is None


def first_inexact(values: Array, dtype: np.dtype[Any]) -> int | None:
    """The first row of `values` [rows, ...] that is not exactly what it is in `dtype`; None: each is."""
    if values.dtype == dtype:
        return None
    if values.dtype.kind not in "biuf":
        return 0
    width = int(np.prod(values.shape[1:]))
    step = max(1, _PIECE // max(1, width))
    for start in range(0, len(values), step):
        piece = values[start : start + step]
        wrong = _inexact(piece.reshape(len(piece), width), dtype).any(axis=1)
        if wrong.any():
            return start + int(wrong.argmax())
    return None


def _inexact(piece: Array, dtype: np.dtype[Any]) -> Array:
    """bool, of the shape of `piece`."""
    if dtype.kind == "f":
        return _inexact_float(piece, dtype)
    if dtype.kind == "b":
        return np.asarray((piece != 0) & (piece != 1))
    bounds = np.iinfo(dtype)
    if piece.dtype.kind == "f":
        # The upper bound itself is no float: the next one is.
        inside = (piece >= float(bounds.min)) & (piece < float(int(bounds.max) + 1))
        whole = np.where(inside, piece, 0)
        return np.asarray(~inside | (whole != np.trunc(whole)))
    if piece.dtype.kind == "b":
        return np.zeros(piece.shape, bool)
    # A bound beyond those of the piece's own type excludes nothing, and would not be comparable.
    own = np.iinfo(piece.dtype)
    wrong = np.zeros(piece.shape, bool)
    if own.min < bounds.min:
        wrong |= piece < bounds.min
    if own.max > bounds.max:
        wrong |= piece > bounds.max
    return wrong


def _inexact_float(piece: Array, dtype: np.dtype[Any]) -> Array:
    if piece.dtype.kind == "f":
        if piece.dtype.itemsize <= dtype.itemsize:
            return np.zeros(piece.shape, bool)
        with np.errstate(over="ignore"):
            rounded = piece.astype(dtype).astype(piece.dtype)
        most = 2.0 ** (np.finfo(dtype).nmant + 1)
        return np.asarray(~np.isfinite(rounded) | ((np.abs(piece) >= most) & (rounded != piece)))
    if piece.dtype.kind == "b":
        return np.zeros(piece.shape, bool)
    # As whole numbers again: in a comparison of the two types the whole one would be rounded.
    with np.errstate(over="ignore"):
        back = piece.astype(dtype)
    bounds = np.iinfo(piece.dtype)
    inside = (back >= float(bounds.min)) & (back < float(int(bounds.max) + 1))
    return np.asarray(~inside | (np.where(inside, back, 0).astype(piece.dtype) != piece))
