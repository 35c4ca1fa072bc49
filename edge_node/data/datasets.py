"""Datasets of this node. Their rows leave only as results."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages import link as session
from edge_attention.core.tensors import MAX_RANK, Array, DataType, require_name
from edge_node.shared_memory import shared

if TYPE_CHECKING:
    from edge_node.data.tables import Table


class LocalDataset:
    """A table as `read_table` gives it, whose columns have one length; else InvalidArgument."""

    def __init__(self, name: str, table: Table) -> None:
        self.name = require_name(name, "the dataset")
        self._columns = dict(table.columns)
        self._ids = None if table.ids is None else [i.encode() for i in table.ids]
        lengths = {column: len(array) for column, array in table.columns.items()}
        if not lengths or len({*lengths.values(), *([len(self._ids)] if self._ids is not None else [])}) != 1:
            raise InvalidArgument(f"columns of one length are needed; there are {lengths or 'none'}")
        self.rows = next(iter(lengths.values()))
        for column, array in table.columns.items():
            DataType.of(array.dtype, f"column {column!r}")
            if array.ndim > MAX_RANK:
                raise InvalidArgument(f"column {column!r} has over {MAX_RANK} dimensions")
            self._columns[column] = shared(array)

    def describe(self) -> session.Dataset:
        """What the aggregator may know of it."""
        columns = [session.Column(c, DataType.of(a.dtype), a.shape[1:]) for c, a in self._columns.items()]
        return session.Dataset(self.name, self.rows, tuple(columns), self._ids is not None)

    def column(self, name: str) -> Array:
        """The column [rows, ...]. Raises InvalidArgument if there is none."""
        if name not in self._columns:
            known = ", ".join(self._columns)[:500]
            raise InvalidArgument(f"dataset {self.name!r} has no column {name[:80]!r}; it has {known}")
        return self._columns[name]

    def require_ids(self) -> None:
        """Raises InvalidArgument if rows have no ids."""
        if self._ids is None:
            raise InvalidArgument(f"dataset {self.name!r} has no ids: its file needs a column of them")

    def hashes(self, rows: Array | None, key: bytes) -> Array:
        """uint8 [rows, 16]: the first 16 bytes of HMAC-SHA-256(key, id as UTF-8) of each row."""
        self.require_ids()
        assert self._ids is not None
        chosen = range(self.rows) if rows is None else rows.tolist()
        data = b"".join(hmac.digest(key, self._ids[row], "sha256")[:16] for row in chosen)
        return np.frombuffer(data, np.uint8).reshape(-1, 16)


def read(spec: str) -> LocalDataset:
    """The dataset `NAME=FILE`, or `NAME=FILE?id=COLUMN`. Raises InvalidArgument, saying where and why."""
    from edge_node.data.tables import read_table  # which a node without datasets spares

    name, equals, file = spec.partition("=")
    file, _, id_column = file.partition("?id=")
    if not equals or not file:
        raise InvalidArgument(f"--data {spec!r} is not NAME=FILE, as clinic=/data/patients.csv")
    try:
        return LocalDataset(name, read_table(Path(file), id_column))
    except InvalidArgument as error:
        raise InvalidArgument(f"--data {name}: {error.message}") from None
