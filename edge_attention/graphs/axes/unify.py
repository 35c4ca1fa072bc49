"""Axes that turn out to be one axis, or a product of several: union and find, with axes that split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

__all__ = ["AxisPart", "parts_of", "tie"]


class AxisPart:
    """An axis, or a factor of one. It may turn out to be the same as another, or a product of others."""

    __slots__ = ("inner", "same", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.same: AxisPart | None = None
        self.inner: tuple[AxisPart, AxisPart] | None = None

    def found(self) -> AxisPart:
        """What stands for all that are the same as this one."""
        part = self
        while part.same is not None:
            if part.same.same is not None:
                part.same = part.same.same
            part = part.same
        return part


def parts_of(parts: Iterable[AxisPart]) -> list[AxisPart]:
    """What they are made of in the end, outer to inner."""
    waiting = list(parts)[::-1]
    done: list[AxisPart] = []
    while waiting:
        part = waiting.pop().found()
        if part.inner is not None:
            waiting += part.inner[::-1]
        else:
            done.append(part)
    return done


def tie(left: Sequence[AxisPart], right: Sequence[AxisPart]) -> bool:
    """Say that two products of axes are the same one; whether they can be.

    12 x 32 is no product of what 8 x 48 is a product of: then nothing is tied.
    """
    a, b = parts_of(left)[::-1], parts_of(right)[::-1]
    if not _nested([part.size for part in a[::-1]], [part.size for part in b[::-1]]):
        return False
    while a and b:
        x, y = a.pop().found(), b.pop().found()
        if x.inner is not None or y.inner is not None:  # split in the meantime: it is in both, or twice
            a += parts_of([x])[::-1]
            b += parts_of([y])[::-1]
        elif x is y:
            continue
        elif x.size == y.size:
            y.same = x
        else:
            large, small = (x, y) if x.size > y.size else (y, x)
            if large.size % small.size:
                return False
            large.inner = (AxisPart(small.size), AxisPart(large.size // small.size))
            a.append(x)
            b.append(y)
    return True


def _nested(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether every boundary of one is one of the other, or lies between two that it divides."""
    if prod(left) != prod(right):
        return False
    places = set()
    for sizes in (left, right):
        outer = 1
        for size in sizes:
            outer *= size
            places.add(outer)
    chain = sorted(places)
    return all(after % before == 0 for before, after in pairwise(chain))
