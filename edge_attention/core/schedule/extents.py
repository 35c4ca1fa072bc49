"""Extents: which elements of a tensor a part has, axis by axis; taken out of an array, and placed in it.

An axis may hold several axes of the model, outer to inner, as the hidden axis of packed queries, keys and
values holds `[3, heads, dim]`. A span is a range of one of them: one of `heads` is in three places then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from edge_attention.core.tensors import Array

__all__ = ["WHOLE", "AxisSpan", "Extent", "extent_shape", "place", "take"]


@dataclass(frozen=True)
class AxisSpan:
    """A range of one axis of the model within an axis of a tensor.

    Attributes:
        axis: of the tensor.
        start, stop: the range, of `size` elements.
        size: of the model's axis.
        outer, inner: sizes, multiplied, of what the tensor's axis holds outside and inside of it; the
            tensor's axis has `outer * size * inner` elements.
    """

    axis: int
    start: int
    stop: int
    size: int
    outer: int = 1
    inner: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.stop <= self.size and self.axis >= 0):
            raise ValueError(f"{self} is no range")

    @property
    def elements(self) -> int:
        """How long the tensor's axis is within the span."""
        return self.outer * (self.stop - self.start) * self.inner


Extent = tuple[AxisSpan, ...]
"""A span an axis, of as many axes as are not taken whole; no axis twice."""

WHOLE: Extent = ()


def extent_shape(shape: Sequence[int], extent: Extent) -> tuple[int, ...]:
    """The shape of what `extent` takes of a tensor of `shape`."""
    found = list(shape)
    for span in extent:
        found[span.axis] = span.elements
    return tuple(found)


def take(array: Array, extent: Extent) -> Array:
    """The elements of `array` in `extent`: a view where each span is one range of its axis, else a copy.

    Raises:
        ValueError: a span is of an axis of another size.
    """
    if not extent:
        return array
    where = _where(array.shape, extent)
    return array.reshape(where.apart)[where.chosen].reshape(where.shape)


def place(array: Array, extent: Extent, piece: Array) -> None:
    """Write `piece` where `extent` is in `array`.

    Raises:
        ValueError: `piece` has another shape than the extent, or a span is of an axis of another size.
    """
    if not extent:
        if piece.shape != array.shape:
            raise ValueError(f"an extent of {array.shape} is given {piece.shape}")
        array[...] = piece
        return
    where = _where(array.shape, extent)
    if piece.shape != where.shape:
        raise ValueError(f"an extent of {where.shape} is given {piece.shape}")
    view = array.view()
    view.shape = where.apart  # raises where it would copy
    part = view[where.chosen]
    part[...] = piece.reshape(part.shape)


class _Where(NamedTuple):
    """An extent in arrays of one shape: each of the spans' axes becomes three, so that all spans at once are
    one index."""

    shape: tuple[int, ...]
    apart: tuple[int, ...]
    chosen: tuple[slice, ...]


@lru_cache(4096)
def _where(shape: tuple[int, ...], extent: Extent) -> _Where:
    spans = {span.axis: span for span in extent}
    apart: list[int] = []
    index: list[slice] = []
    whole = slice(None)
    for axis, size in enumerate(shape):
        span = spans.pop(axis, None)
        if span is None:
            apart.append(size)
            index.append(whole)
            continue
        if size != math.prod((span.outer, span.size, span.inner)):
            raise ValueError(f"{span} is of another axis than {size} elements")
        apart += [span.outer, span.size, span.inner]
        index += [whole, slice(span.start, span.stop), whole]
    if spans:
        raise ValueError(f"{extent} is of more axes than {shape} has")
    return _Where(extent_shape(shape, extent), tuple(apart), tuple(index))
