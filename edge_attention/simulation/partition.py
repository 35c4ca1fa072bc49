"""Which rows of a table each simulated node has: evenly, by a Dirichlet law over labels, or by a column.

    rows_of = partition(table, RowSharing("dirichlet", "label", alpha=0.3), nodes=100, seed=1)
    rows_of[7]      # int64, ascending: the rows of the eighth node

Every row belongs to one node, and every node has some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array, Int64
from edge_attention.tables.table import Table

__all__ = ["LEAST_ROWS", "RowSharing", "partition"]

LEAST_ROWS = 2
"""Of a node: one to learn from and one to hold out."""
SHOWN = 5


@dataclass(frozen=True)
class RowSharing:
    """How rows are shared out.

    Attributes:
        kind: `iid`: by lot, as many each. `dirichlet`: each value of the column's rows by shares drawn from a
            Dirichlet law (Hsu, Qi and Brown, 2019, arXiv:1909.06335). `column`: a node a value.
        column: of labels, whole numbers or words; empty for `iid`.
        alpha: of the Dirichlet law, above 0: 100 is close to even, 0.1 leaves most nodes one or two values.
    """

    kind: Literal["iid", "dirichlet", "column"] = "iid"
    column: str = ""
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a column is missing, or alpha is not positive.
        """
        if self.kind != "iid" and not self.column:
            raise InvalidArgument(
                f"rows shared by {self.kind} need a column: --by COLUMN, the one that they go by"
            )
        if not (0 < self.alpha < np.inf):
            raise InvalidArgument(f"alpha is {self.alpha:g}; it must be above 0")


def partition(table: Table, sharing: RowSharing, nodes: int, seed: int) -> list[Int64]:
    """The rows of each node, int64, ascending.

    Raises:
        InvalidArgument: there are too few rows or values for so many nodes, or no such column.
    """
    rows = len(next(iter(table.columns.values()))) if table.columns else 0
    if rows < nodes * LEAST_ROWS:
        raise InvalidArgument(
            f"{rows:,} rows are too few for {nodes:,} nodes, which need {LEAST_ROWS} each: simulate at most "
            f"{rows // LEAST_ROWS:,}"
        )
    random = np.random.default_rng(seed)
    if sharing.kind == "iid":
        shares = np.array_split(random.permutation(rows), nodes)
        return [np.sort(share) for share in shares]
    values = _values(table, sharing.column)
    if sharing.kind == "column":
        return _by_value(values, nodes, sharing.column)
    owners = np.empty(rows, np.int64)
    for value in np.unique(values):
        of = random.permutation(np.flatnonzero(values == value))
        ends = np.round(np.cumsum(random.dirichlet(np.full(nodes, sharing.alpha))) * len(of)).astype(np.int64)
        owners[of] = np.searchsorted(ends[:-1], np.arange(len(of)), side="right")
    return _some_each(owners, nodes, random)


def _values(table: Table, name: str) -> Array:
    """The column's values as whole numbers; rows that lack one have -1 or what is there instead."""
    held = table.columns.get(name)
    if held is None:
        raise InvalidArgument(f"the file has no column {name!r}; it has {', '.join(table.columns)[:500]}")
    if held.values.ndim != 1 or held.values.dtype.kind not in "iub":
        raise InvalidArgument(
            f"column {name!r} is {held.values.dtype} {list(held.values.shape[1:])} a row; rows are shared by "
            "a column of labels: whole numbers or words"
        )
    return held.values


def _by_value(values: Array, nodes: int, column: str) -> list[Int64]:
    known, at = np.unique(values, return_inverse=True)
    if len(known) < nodes:
        raise InvalidArgument(
            f"column {column!r} has {len(known):,} values, and there are {nodes:,} nodes: simulate at most "
            f"{len(known):,}"
        )
    found = [np.flatnonzero(at % nodes == node) for node in range(nodes)]
    few = [node for node, rows in enumerate(found) if len(rows) < LEAST_ROWS]
    if few:
        raise InvalidArgument(
            f"of column {column!r} {len(few):,} nodes would have fewer than {LEAST_ROWS} rows, as for "
            f"{', '.join(str(known[node]) for node in few[:SHOWN])}: take fewer nodes, or another column"
        )
    return found


def _some_each(owners: Int64, nodes: int, random: np.random.Generator) -> list[Int64]:
    """Rows by owner; who has too few gets some of whoever has most."""
    found = [np.flatnonzero(owners == node) for node in range(nodes)]
    for node in range(nodes):
        while len(found[node]) < LEAST_ROWS:
            rich = max(range(nodes), key=lambda other: len(found[other]))
            given = int(random.integers(len(found[rich])))
            found[node] = np.append(found[node], found[rich][given])
            found[rich] = np.delete(found[rich], given)
    return [np.sort(rows) for rows in found]
