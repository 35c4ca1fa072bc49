"""Extents: which elements of a tensor a part has, axis by axis; taken out of an array, and placed in it.

An axis may hold several axes of the model, outer to inner, as the hidden axis of packed queries, keys and
values holds `[3, heads, dim]`. A span is a range of one of them: one of `heads` is in three places then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """The elements of `array` in `extent`: a view where each span is one range of its axis, else a copy."""
    for span in extent:
        array = _within(array, span).reshape(extent_shape(array.shape, (span,)))
    return array


def place(array: Array, extent: Extent, piece: Array) -> None:
    """Write `piece` where `extent` is in `array`.

    Raises:
        ValueError: `piece` has another shape than the extent.
    """
    if piece.shape != extent_shape(array.shape, extent):
        raise ValueError(f"an extent of {extent_shape(array.shape, extent)} is given {piece.shape}")
    if not extent:
        array[...] = piece
        return
    # All spans at once, so that it is a view of `array`: each of the spans' axes becomes three.
    shape: list[int] = []
    index: list[slice] = []
    spans = {span.axis: span for span in extent}
    for axis, size in enumerate(array.shape):
        span = spans.get(axis)
        shape += [size] if span is None else [span.outer, span.size, span.inner]
        whole = slice(None)
        index += [whole] if span is None else [whole, slice(span.start, span.stop), whole]
    view = array.view()
    view.shape = tuple(shape)  # raises where it would copy
    part = view[tuple(index)]
    part[...] = piece.reshape(part.shape)


def _within(array: Array, span: AxisSpan) -> Array:
    shape = array.shape
    if shape[span.axis] != math.prod((span.outer, span.size, span.inner)):
        raise ValueError(f"{span} is of another axis than {shape[span.axis]} elements")
    before, after = shape[: span.axis], shape[span.axis + 1 :]
    parts = array.reshape(*before, span.outer, span.size, span.inner, *after)
    index = (slice(None),) * (span.axis + 1)
    return parts[(*index, slice(span.start, span.stop))]
