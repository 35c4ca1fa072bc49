"""The fold: combines contributions as they arrive, in an order that does not depend on the arrival.

Leaves are the plan's shards, in shard order, under a fixed binary tree. Two siblings combine as soon as
both are complete, so the same plan gives the same bits whatever arrives first, and memory stays at the
unmerged subtrees: one value where contributions come in order, log2(n) typically.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import numpy as np

from edge_attention.core.errors import DuplicateContribution, InvalidArgument, InvalidTensor, NotFound
from edge_attention.core.tensors import Array

T = TypeVar("T")


class Leaves:
    """The plan of folds: shard -> what it covers, in shard order. Folds that are alike share one.

    Raises:
        InvalidArgument: two shards cover the same part.
    """

    def __init__(self, shards: Mapping[str, range]) -> None:
        _require_apart(shards.values())
        self.ranges = dict(shards)
        self.index = {shard: index for index, shard in enumerate(shards)}


class Fold(Generic[T]):
    """Folds one contribution a shard, each exactly once.

    Args:
        shards: the plan, shard -> what it covers, in shard order; ranges that overlap are refused.
        combine: an associative operation on two contributions, the earlier shard's first.

    Raises:
        InvalidArgument: two shards cover the same part.
    """

    def __init__(self, shards: Mapping[str, range] | Leaves, combine: Callable[[T, T], T]) -> None:
        leaves = shards if isinstance(shards, Leaves) else Leaves(shards)
        self._leaf = leaves.index
        self._ranges = leaves.ranges
        self._combine = combine
        self._nodes: dict[tuple[int, int], T] = {}
        self._arrived: set[str] = set()

    def add(self, shard: str, coverage: range, value: T) -> None:
        """Fold `value` in.

        Raises:
            NotFound: the plan has no such shard.
            InvalidArgument: the contribution covers something else than the plan says.
            DuplicateContribution: the shard is folded in already.
            Whatever `combine` raises; the fold is then as it was.
        """
        if shard not in self._leaf:
            raise NotFound(f"shard {shard!r} is not part of this plan")
        if coverage != self._ranges[shard]:
            raise InvalidArgument(f"shard {shard!r} covers {self._ranges[shard]}, not {coverage}")
        if shard in self._arrived:
            raise DuplicateContribution(f"shard {shard!r} was folded in already; each counts once")
        level, index = 0, self._leaf[shard]
        merged: list[tuple[int, int]] = []
        width = len(self._leaf)
        while width > 1:
            sibling = (level, index ^ 1)
            if index ^ 1 < width:
                if sibling not in self._nodes:
                    break
                merged.append(sibling)
                other = self._nodes[sibling]
                value = self._combine(value, other) if index % 2 == 0 else self._combine(other, value)
            level, index, width = level + 1, index // 2, (width + 1) // 2
        for node in merged:
            del self._nodes[node]
        self._nodes[level, index] = value
        self._arrived.add(shard)

    def result(self) -> T | None:
        """What has arrived, combined; None if nothing has. The fold can go on after it."""
        level, width = 0, len(self._leaf)
        nodes = dict(self._nodes)
        while width > 1:
            for index in range(0, width, 2):
                left, right = nodes.get((level, index)), nodes.get((level, index + 1))
                both = self._combine(left, right) if left is not None and right is not None else None
                value = both if both is not None else (left if left is not None else right)
                if value is not None:
                    nodes[level + 1, index // 2] = value
            level, width = level + 1, (width + 1) // 2
        return nodes.get((level, 0))

    @property
    def arrived(self) -> frozenset[str]:
        return frozenset(self._arrived)

    @property
    def missing(self) -> tuple[str, ...]:
        """Shards not folded in yet, in shard order."""
        return tuple(shard for shard in self._leaf if shard not in self._arrived)

    @property
    def coverage(self) -> tuple[range, ...]:
        """What the result stands on, adjacent ranges joined."""
        return join(self._ranges[shard] for shard in self._arrived)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        under = [leaf for level, at in self._nodes for leaf in range(at << level, (at + 1) << level)]
        assert len(set(under)) == len(under), "a leaf is in two values"
        arrived = {self._leaf[shard] for shard in self._arrived}
        assert {leaf for leaf in under if leaf < len(self._leaf)} == arrived, "not what has arrived"

    @property
    def held(self) -> int:
        """How many values are kept now."""
        return len(self._nodes)


def _require_apart(ranges: Iterable[range]) -> None:
    ordered = sorted((r for r in ranges if len(r)), key=lambda r: r.start)
    for before, after in itertools.pairwise(ordered):
        if after.start < before.stop:
            raise InvalidArgument(f"shards overlap: {before} and {after} both hold {after.start}")


def join(ranges: Iterable[range]) -> tuple[range, ...]:
    """Ranges in order, adjacent and overlapping ones joined, empty ones left out."""
    joined: list[range] = []
    for part in sorted((r for r in ranges if len(r)), key=lambda r: r.start):
        if joined and part.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(part.stop, joined[-1].stop))
        else:
            joined.append(part)
    return tuple(joined)


Tensors = Mapping[str, Array]


def add_tensors(a: Tensors, b: Tensors) -> Tensors:
    """Sum by name: gradients fold so.

    Raises:
        InvalidTensor: names or shapes differ.
    """
    if a.keys() != b.keys():
        raise InvalidTensor(f"contributions name different tensors: {sorted(a)} and {sorted(b)}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise InvalidTensor(
                f"{name} has shape {a[name].shape} in one contribution, {b[name].shape} in another"
            )
    return {name: np.add(a[name], b[name]) for name in a}
