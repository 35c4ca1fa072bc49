"""Datasets of this node. Their rows leave only as results."""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import InvalidArgument, ResourceExhausted
from edge_attention.core.messages import link as session
from edge_attention.core.printable import shown
from edge_attention.core.tensors import MAX_RANK, Array, DataType, require_name
from edge_node.shared_memory import empty, shared

if TYPE_CHECKING:
    from edge_attention.tables.table import Table

__all__ = ["ALL", "LocalDataset", "read"]

log = logging.getLogger(__name__)

_ASIDE = 2_000
"""Characters of what is set aside, in the one warning about it."""

ALL = "*"
"""All columns side by side: [rows, n] float32, in the file's order, if each is of single numbers."""


class LocalDataset:
    """A table as `read_table` gives it, whose columns have one length; else InvalidArgument."""

    def __init__(self, name: str, table: Table) -> None:
        self.name = require_name(name, "the dataset")
        # Until jobs say what to do with gaps and words: columns of numbers that are all there.
        self._columns = {
            name: _as_it_travels(column.values)
            for name, column in table.columns.items()
            if column.words is None and column.missing is None
        }
        self._ids = table.ids
        lengths = {column: len(array) for column, array in self._columns.items()}
        if not lengths or len({*lengths.values(), *([len(self._ids)] if self._ids is not None else [])}) != 1:
            raise InvalidArgument(f"columns of one length are needed; there are {lengths or 'none'}")
        self.rows = next(iter(lengths.values()))
        for column, array in self._columns.items():
            DataType.of(array.dtype, f"column {column!r}")
            if array.ndim > MAX_RANK:
                raise InvalidArgument(f"column {column!r} has over {MAX_RANK} dimensions")
            self._columns[column] = shared(array)
        single = ALL not in self._columns and all(a.ndim == 1 for a in self._columns.values())
        self._beside = list(self._columns) if single else []
        self._all: Array | None = None

    def describe(self) -> session.Dataset:
        """What the aggregator may know of it."""
        columns = [session.Column(c, DataType.of(a.dtype), a.shape[1:]) for c, a in self._columns.items()]
        if self._beside:
            columns.append(session.Column(ALL, DataType.FLOAT32, (len(self._beside),)))
        return session.Dataset(self.name, self.rows, tuple(columns), self._ids is not None)

    def column(self, name: str) -> Array:
        """The column [rows, ...]. Raises InvalidArgument if there is none."""
        if name == ALL and self._beside:
            if self._all is None:
                self._all = empty((self.rows, len(self._beside)), np.float32)
                for at, column in enumerate(self._beside):
                    self._all[:, at] = self._columns[column]
            return self._all
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


def _as_it_travels(values: Array) -> Array:
    narrow = values.dtype in (np.int8, np.int16, np.int32) and values.ndim == 1
    return values.astype(np.int64) if narrow else values


def read(spec: str) -> LocalDataset:
    """The dataset `NAME=FILE`, or `NAME=FILE?id=COLUMN&separator=tab`: see `edge_attention.tables.options`.

    Raises:
        InvalidArgument: it cannot be read; says where and why.
        ResourceExhausted: the file holds more than this machine has room for.
    """
    from edge_attention.tables.options import split_file  # which a node without datasets spares
    from edge_attention.tables.reading import read_table

    name, equals, rest = spec.partition("=")
    if not equals or not rest:
        raise InvalidArgument(f"--data {spec!r} is not NAME=FILE, as clinic=/data/patients.csv")
    try:
        table = read_table(*split_file(rest))
        dataset = LocalDataset(name, table)
    except (InvalidArgument, ResourceExhausted) as error:
        raise type(error)(f"--data {name}: {error.message}") from None
    decided = "; ".join(f"{topic}: {words}" for topic, words in table.decided.items())
    log.info(
        "%s: %d rows, %d columns%s",
        name,
        dataset.rows,
        len(table.columns),
        f" ({decided})" if decided else "",
    )
    if table.set_aside:
        aside = "; ".join(f"{column!r} ({reason})" for column, reason in table.set_aside.items())
        log.warning("%s: set aside are %s", name, shown(aside, _ASIDE))
    return dataset
