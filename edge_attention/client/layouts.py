"""Batches, and PyTorch's order of dimensions, for what the fleet has as [tokens, heads, dim].

    layout     queries, out                        keys, values            lse, mass            weights
    tokens     [queries, heads, dim]               [tokens, heads, dim]    [queries, heads]     [..., tokens]
               [batch, queries, heads, dim]                                [batch, queries, heads]
    torch      [heads, queries, dim]               [heads, tokens, dim]    [heads, queries]
               [batch, heads, queries, dim]        [1, heads, tokens, dim] [batch, heads, queries]

A batch attends to one context: its rows are more queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edge_attention.client.results import Answer
from edge_attention.core.arrays import as_float32, as_int64
from edge_attention.core.errors import InvalidTensor
from edge_attention.core.messages.attention import Bound
from edge_attention.core.tensors import Array, Float32, Int64

__all__ = ["Layout", "QueryForm", "arranged_queries", "arranged_tokens"]

Layout = Literal["tokens", "torch"]
HeadsAndDim = tuple[int, int]
"""Heads, and dimension, that a context has."""
_IN: Mapping[Layout, str] = {"tokens": "", "torch": "in PyTorch's layout "}


@dataclass(frozen=True)
class QueryForm:
    """How queries were given, to give answers so: `batch` rows of `count` queries; None: no batch."""

    layout: Layout
    batch: int | None
    count: int

    @property
    def plain(self) -> bool:
        return self.batch is None and self.layout == "tokens"

    def positions(self, given: ArrayLike) -> Int64:
        """The queries' positions, int64 [queries] for all rows alike, or [batch, queries], as one row.

        Raises:
            InvalidTensor: another shape.
        """
        found = as_int64(given, "positions")
        if self.batch is None:
            return found
        if found.shape == (self.batch, self.count):
            return found.ravel()
        if found.shape != (self.count,):
            raise InvalidTensor(
                f"positions has shape {list(found.shape)}; give [{self.count}] for all {self.batch} rows "
                f"of the batch, or [{self.batch}, {self.count}]"
            )
        return self.repeated(found)

    def repeated(self, positions: Int64) -> Int64:
        """The same positions for each row of the batch."""
        return np.tile(positions, self.batch or 1)

    def answer(self, flat: Answer) -> Answer:
        """`flat`, of all rows' queries one after another, as the queries were given."""
        if self.plain:
            return flat
        mass = {node: self._back(array) for node, array in flat.mass.items()}
        bound = None if flat.bound is None else Bound(self._back(flat.bound.error), flat.bound.tight)
        return replace(
            flat,
            out=self._back(flat.out),
            lse=self._back(flat.lse),
            mass=mass,
            shards=tuple(replace(shard, mass=self._back(shard.mass)) for shard in flat.shards),
            weights=None if flat.weights is None else self._back(flat.weights),
            bound=bound,
        )

    def _back(self, array: Array) -> Array:
        """[batch x queries, heads, ...] as the queries were given."""
        found = array.reshape(self.batch or 1, self.count, *array.shape[1:])
        if self.layout == "torch":
            found = np.ascontiguousarray(found.swapaxes(1, 2))
        return found[0] if self.batch is None else found


def arranged_queries(
    queries: ArrayLike, layout: Layout, sizes: HeadsAndDim | None = None
) -> tuple[Float32, QueryForm]:
    """Queries as [queries, heads, dim], those of a batch's rows one after another, and how they were given.

    Raises:
        InvalidTensor: no numbers, or not three or four dimensions in PyTorch's layout; or, of what is to be
            turned, other `sizes`: of the shape that was given, as nobody knows another.
    """
    found = as_float32(queries, "queries")
    if layout == "torch" and found.ndim not in (3, 4):
        raise InvalidTensor(
            f"queries has shape {list(found.shape)}; in PyTorch's layout it is [heads, queries, dim] or "
            "[batch, heads, queries, dim]"
        )
    if sizes is not None and (layout == "torch" or found.ndim == 4):
        axis = found.shape[-3 if layout == "torch" else -2]
        if (axis, found.shape[-1]) != sizes:
            one = f"{sizes[0]}, queries, " if layout == "torch" else f"queries, {sizes[0]}, "
            raise InvalidTensor(
                f"queries has shape {list(found.shape)}; {_IN[layout]}it must be [{one}{sizes[1]}] or "
                f"[batch, {one}{sizes[1]}]"
            )
    if found.ndim != 4:
        if layout == "torch":
            found = np.ascontiguousarray(found.swapaxes(0, 1))
        return found, QueryForm(layout, None, len(found) if found.ndim else 0)
    if layout == "torch":
        found = found.swapaxes(1, 2)
    batch, count = found.shape[:2]
    return np.ascontiguousarray(found).reshape(batch * count, *found.shape[2:]), QueryForm(
        layout, batch, count
    )


def arranged_tokens(array: ArrayLike, what: str, layout: Layout, sizes: HeadsAndDim | None = None) -> Float32:
    """Keys or values as [tokens, heads, dim].

    Raises:
        InvalidTensor: no numbers, or not what PyTorch's layout is, with these `sizes`.
    """
    found = as_float32(array, what)
    if layout == "tokens":
        return found
    if found.ndim == 4 and len(found) == 1:
        found = found[0]
    if found.ndim != 3:
        raise InvalidTensor(
            f"{what} has shape {list(found.shape)}; in PyTorch's layout it is [heads, tokens, dim] or "
            "[1, heads, tokens, dim]: a context holds one sequence, so make one a sequence"
        )
    if sizes is not None and (found.shape[0], found.shape[2]) != sizes:
        raise InvalidTensor(
            f"{what} has shape {list(found.shape)}; {_IN[layout]}it must be [{sizes[0]}, tokens, {sizes[1]}]"
        )
    return np.ascontiguousarray(found.swapaxes(0, 1))
