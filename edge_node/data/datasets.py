"""Datasets of this node. Their rows leave only as results."""

from __future__ import annotations

import hmac
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import InvalidArgument, ResourceExhausted
from edge_attention.core.messages import link as session
from edge_attention.core.printable import shown
from edge_attention.core.tensors import MAX_RANK, Array, DataType, require_name
from edge_node.shared_memory import shared

if TYPE_CHECKING:
    from edge_attention.tables.column import TableColumn
    from edge_attention.tables.ids import Ids
    from edge_attention.tables.table import Table
    from edge_node.data.views import TableViews

__all__ = ["LocalDataset", "read"]

log = logging.getLogger(__name__)

_ASIDE = 2_000
"""Characters of what is set aside, in the one warning about it."""


class LocalDataset:
    """A table as `read_table` gives it, whose columns have one length; else InvalidArgument.

    Attributes:
        rows: how many it has.
        described: what the aggregator may know of it.
    """

    def __init__(self, name: str, table: Table) -> None:
        from edge_node.data.conversion import exact_in_float32, exact_in_int64  # which a node without spares

        self.name = require_name(name, "the dataset")
        self._table = table
        self._ids = table.ids
        lengths = {column: len(held) for column, held in table.columns.items()}
        if not lengths or len({*lengths.values(), *([len(self._ids)] if self._ids is not None else [])}) != 1:
            raise InvalidArgument(f"columns of one length are needed; there are {lengths or 'none'}")
        self.rows = next(iter(lengths.values()))
        self._columns: dict[str, TableColumn] = {}
        self._kinds: dict[str, DataType] = {}
        described: list[session.Column] = []
        for column, held in table.columns.items():
            array = held.values
            if array.dtype != np.int16:  # which tables have, and graphs do not take
                DataType.of(array.dtype, f"column {column!r}")
            if array.ndim > MAX_RANK:
                raise InvalidArgument(f"column {column!r} has over {MAX_RANK} dimensions")
            self._columns[column] = replace(held, values=shared(array))
            # What a text file holds is described alike whatever rows it has: whole numbers are int64.
            narrow = (table.lines is not None and array.dtype.kind == "i") or array.dtype == np.int16
            kind = DataType.INT64 if narrow else DataType.of(array.dtype)
            self._kinds[column] = kind
            words = held.words is not None
            described.append(
                session.Column(
                    column,
                    kind,
                    array.shape[1:],
                    not words and exact_in_float32(array),
                    not words and exact_in_int64(array),
                    words,
                    held.missing is not None and bool(held.missing.any()),
                )
            )
        self.described = session.Dataset(self.name, self.rows, tuple(described), self._ids is not None)
        self._views: TableViews | None = None

    def describe(self) -> session.Dataset:
        """What the aggregator may know of it."""
        return self.described

    def tell_changes(self, key: bytes) -> None:
        """Have the description say when anything of it is another. `key`: this node's alone."""
        from edge_node.data.digests import data_digest  # which a node without datasets spares

        self.described = replace(self.described, digest=data_digest(self._table, key))

    def column(self, name: str) -> Array:
        """The column [rows, ...] as it is. Raises InvalidArgument if there is none, or it is not whole."""
        held = self.held(name)
        if held.words is not None:
            raise InvalidArgument(
                f"column {name!r} of dataset {self.name!r} holds words; they are read as categories"
            )
        if held.missing is not None and held.missing.any():
            raise InvalidArgument(
                f"column {name!r} of dataset {self.name!r} lacks values; say what is read instead"
            )
        # Of a file that says no types whole numbers are int64, however they are kept here.
        narrow = held.values.dtype.kind == "i" and self._kinds[name] is DataType.INT64
        return held.values.astype(np.int64, copy=False) if narrow else held.values

    def held(self, name: str) -> TableColumn:
        """The column, with what is missing in it. Raises InvalidArgument if there is none."""
        if name not in self._columns:
            known = ", ".join(self._columns)[:500]
            raise InvalidArgument(f"dataset {self.name!r} has no column {name[:80]!r}; it has {known}")
        return self._columns[name]

    def place(self, row: int) -> str:
        """Where a row is in its file, for this node's own log."""
        return self._table.place(row)

    @property
    def ids(self) -> Ids | None:
        """The rows' ids; they leave as keyed hashes alone."""
        return self._ids

    @property
    def views(self) -> TableViews:
        """Tensors of its rows as programs read them."""
        if self._views is None:
            from edge_node.data.views import TableViews  # which a node that is never asked spares

            self._views = TableViews(self)
        return self._views

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
