"""Tensors of a dataset's rows as programs read them: converted, side by side, as categories, gaps filled.

What may be wrong with a view is of two kinds. What follows from what is registered of a column (there is none
of that name, it is not exactly a float32, it lacks values) is said as it is. Whether a value is one of a
program's categories, or another dataset has a row's id, would tell of values: that is looked at once, over
all rows, and is a failure on private data (discretion) that names no value but in this node's own log.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from edge_attention.core.categories import number_of, same_for_all
from edge_attention.core.errors import InvalidArgument, InvalidProgram
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.printable import shown
from edge_attention.core.release import table_source
from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.ids import Ids
from edge_node.data.conversion import first_inexact
from edge_node.shared_memory import empty, gather

__all__ = ["TableViews", "View"]

log = logging.getLogger(__name__)

MAX_COLUMNS = 4_096
"""Columns of a tensor; and categories of a column."""
KEPT = 64
"""Views of a dataset that are remembered; those used longest ago go, and are checked again when asked."""
MANY = 8
"""Columns side by side from which they are laid together once: to gather each at every batch takes longer."""
KEPT_BYTES = 256 * 1024 * 1024
"""What the one view of a dataset that is laid together takes at most; a larger one is gathered by columns."""


class TableRows(Protocol):
    """What a view needs of a dataset."""

    name: str
    rows: int

    @property
    def ids(self) -> Ids | None: ...

    def held(self, name: str) -> TableColumn: ...

    def place(self, row: int) -> str: ...


@dataclass(frozen=True, eq=False)
class _ColumnPart:
    """One column of a view. `rows`: the row of its own dataset for each of the view's, -1: none."""

    read: ColumnRead
    owner: TableRows
    held: TableColumn
    rows: Array | None
    places: Array | None
    """Of words: int32, the place of each among the categories, -1: none; the last is for what is missing."""
    numbers: tuple[Array, Array] | None
    """Of numbers as categories: they, ascending, and their places."""

    @property
    def width(self) -> int:
        if self.read.one_hot:
            return len(self.read.categories)
        return int(np.prod(self.held.values.shape[1:]))

    def missing(self, rows: Array | None) -> Array | None:
        """bool [rows]: which of them lack a value; None: no row of the dataset does."""
        at = _at(self.rows, rows)
        lacks = None if self.held.missing is None else _take(self.held.missing, at)
        if self.rows is None:
            return lacks
        assert at is not None
        return at < 0 if lacks is None else lacks | (at < 0)

    def values(self, rows: Array | None) -> Array:
        """[rows, ...]; of categories their places, -1 for what is none. What is missing is anything."""
        found = _take(self.held.values, _at(self.rows, rows))
        if self.places is not None:
            return np.take(self.places, found)  # -1, missing, is the last
        if self.numbers is None:
            return found
        known, places = self.numbers
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        return np.where(known[at] == found, places[at], -1)


class _Kept:
    """The view of a dataset that was laid together last."""

    def __init__(self) -> None:
        self._held: tuple[View, Array] | None = None

    def get(self, view: View, lay: Callable[[], Array]) -> Array:
        held = self._held
        if held is None or held[0] is not view:
            held = self._held = view, lay()
        return held[1]


class View:
    """A tensor of a dataset's rows, by `TableViews.view`.

    Attributes:
        source: what it is, as releases say it.
        unsure: whether it can be read tells of values, and nobody has looked yet: `check` has to be called
            first, as work on private data.
        row_bytes: of one row.
    """

    def __init__(
        self,
        dataset: TableRows,
        tensor: TensorRead,
        parts: Sequence[_ColumnPart],
        complete: Complete,
        keep: _Kept,
    ) -> None:
        self.source = table_source(dataset.name, tensor, complete.columns)
        self._dataset = dataset
        self._parts = tuple(parts)
        self._complete = complete
        self._presence = tensor.presence
        self._dtype = np.dtype(tensor.data_type.value)
        if tensor.side_by_side or tensor.presence:
            self._shape: tuple[int, ...] = (len(parts) if tensor.presence else sum(p.width for p in parts),)
        else:
            part = parts[0]
            self._shape = (part.width,) if part.read.one_hot else part.held.values.shape[1:]
        self.row_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._keep = keep
        self.unsure = not tensor.presence and any(
            part.read.categories or (part.rows is not None and part.read.constant is None) for part in parts
        )

    def check(self) -> None:
        """Look at every row that is read.

        Raises:
            InvalidArgument: a value is none of the categories, or there is none; which is in the log as well.
        """
        for part in self._parts:
            values, missing = part.values(None), part.missing(None)
            lacks = np.zeros(len(values), bool) if missing is None else missing
            what = f"column {part.read.name!r} of dataset {part.owner.name!r}"
            used = np.ones(len(values), bool) if self._complete.rows is None else self._complete.used
            if part.read.constant is None and (bad := np.flatnonzero(lacks & used)).size:
                where = self._dataset.place(int(bad[0]))
                raise InvalidArgument(f"{what}: {len(bad)} rows lack a value, the first is {where}")
            if part.read.categories and (bad := np.flatnonzero((values < 0) & ~lacks & used)).size:
                row = int(bad[0])
                of = row if part.rows is None else int(part.rows[row])
                value = (
                    part.held.values[of] if part.held.words is None else part.held.words[part.held.values[of]]
                )
                raise InvalidArgument(
                    f"{what}, {part.owner.place(of)}: {shown(str(value))[:80]!r} is none of the categories "
                    f"asked for; {len(bad)} rows are so"
                )
        self.unsure = False

    def read(self, rows: Array | None) -> Array:
        """The tensor of `rows`, int64, which are there; None: of all."""
        rows = self._complete.of(rows)
        part = self._parts[0]
        alone = len(self._parts) == 1 and not self._presence
        if alone and not (part.read.categories or part.read.constant is not None or part.rows is not None):
            source = part.held.values.reshape(len(part.held.values), *self._shape)
            if source.dtype == self._dtype:
                return np.ascontiguousarray(source) if rows is None else gather(source, rows)
        if len(self._parts) >= MANY and self._dataset.rows * self.row_bytes <= KEPT_BYTES:
            whole = self._keep.get(self, lambda: self._laid(None))
            return whole if rows is None else gather(whole, rows)
        return self._laid(rows)

    def _laid(self, rows: Array | None) -> Array:
        count = self._dataset.rows if rows is None else len(rows)
        found = empty((count, *self._shape), self._dtype)
        flat = found.reshape(count, int(np.prod(self._shape)))
        at = 0
        for part in self._parts:
            width = 1 if self._presence else part.width
            target = flat[:, at : at + width]
            at += width
            missing = part.missing(rows)
            if self._presence:
                target[...] = 1
                if missing is not None:
                    target[missing] = 0
                continue
            values = part.values(rows)
            # Rows without a value and without what stands for it are those that `complete` leaves out.
            fill = part.read.constant or 0.0
            if part.read.one_hot:
                places = values if missing is None else np.where(missing, int(fill), values)
                target[...] = places[:, None] == np.arange(width)
                continue
            target[...] = values.reshape(count, width)  # exact: see TableViews._require
            if missing is not None:
                target[missing] = fill
        return found


@dataclass(frozen=True, eq=False)
class Complete:
    """The rows of a dataset that have a value in each of `columns`: int64 [m]; None: all."""

    columns: tuple[ColumnRead, ...]
    rows: Array | None
    used: Array

    def of(self, rows: Array | None) -> Array | None:
        """The dataset's rows for `rows` of these."""
        return rows if self.rows is None else self.rows if rows is None else self.rows[rows]


class TableViews:
    """The views of one dataset. Thread-safe."""

    def __init__(self, dataset: TableRows) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._views: OrderedDict[object, View] = OrderedDict()
        self._completes: OrderedDict[tuple[ColumnRead, ...], Complete] = OrderedDict()
        self._matched: dict[str, Array] = {}
        self._keep = _Kept()

    def view(
        self, tensor: TensorRead, complete: tuple[ColumnRead, ...], datasets: Mapping[str, TableRows]
    ) -> View:
        """The tensor, whatever it is stored as. `complete`: of rows that have a value in each of these.

        Raises:
            InvalidArgument: there is no such column or dataset, or a column is not what it is read as.
            InvalidProgram: no tensor is read so.
        """
        key = replace(tensor, stored=""), complete
        with self._lock:
            found = self._views.get(key)
            if found is None:
                found = self._views[key] = self._made(tensor, self._complete(complete, datasets), datasets)
                while len(self._views) > KEPT:
                    self._views.popitem(last=False)
            self._views.move_to_end(key)
        return found

    def rows(self, complete: tuple[ColumnRead, ...], datasets: Mapping[str, TableRows]) -> int:
        """How many rows have a value in each of these columns. It tells of values."""
        with self._lock:
            rows = self._complete(complete, datasets).rows
        return self._dataset.rows if rows is None else len(rows)

    def _made(self, tensor: TensorRead, complete: Complete, datasets: Mapping[str, TableRows]) -> View:
        if not 0 < len(tensor.columns) <= MAX_COLUMNS:
            raise InvalidProgram(
                f"a tensor of a table has 1 to {MAX_COLUMNS:,} columns, not {len(tensor.columns):,}"
            )
        if len(tensor.columns) > 1 and not (tensor.side_by_side or tensor.presence):
            raise InvalidProgram("several columns are one tensor only side by side")
        parts = [self._part(each, datasets) for each in tensor.columns]
        if not tensor.presence:
            for part in parts:
                self._require(part, tensor, complete)
        return View(self._dataset, tensor, parts, complete, self._keep)

    def _complete(self, columns: tuple[ColumnRead, ...], datasets: Mapping[str, TableRows]) -> Complete:
        found = self._completes.get(columns)
        if found is None:
            used = np.ones(self._dataset.rows, bool)
            for each in columns:
                if (missing := self._part(each, datasets).missing(None)) is not None:
                    used &= ~missing
            rows = None if not columns or used.all() else np.flatnonzero(used)
            found = self._completes[columns] = Complete(columns, rows, used)
            while len(self._completes) > KEPT:
                self._completes.popitem(last=False)
        self._completes.move_to_end(columns)
        return found

    def _part(self, read: ColumnRead, datasets: Mapping[str, TableRows]) -> _ColumnPart:
        owner, rows = self._dataset, None
        if read.dataset and read.dataset != self._dataset.name:
            other = datasets.get(read.dataset)
            if other is None:
                raise InvalidArgument(f"this node has no dataset {read.dataset[:80]!r}")
            owner, rows = other, self._rows_of(other)
        held = owner.held(read.name)
        if len(read.categories) > MAX_COLUMNS:
            raise InvalidProgram(f"a column has at most {MAX_COLUMNS:,} categories")
        places = numbers = None
        if read.categories and held.words is not None:
            known = {same_for_all(each): place for place, each in enumerate(read.categories)}
            places = np.array([*(known.get(same_for_all(word), -1) for word in held.words), -1], np.int32)
        elif read.categories:
            said = [(number, place) for place, each in enumerate(read.categories)
                    if (number := number_of(each)) is not None]  # fmt: skip
            said = sorted(said) or [(np.inf, -1)]
            numbers = np.array([n for n, _ in said]), np.array([p for _, p in said], np.int32)
        return _ColumnPart(read, owner, held, rows, places, numbers)

    def _require(self, part: _ColumnPart, tensor: TensorRead, complete: Complete) -> None:
        """Refuse by what is registered of the column."""
        read, held = part.read, part.held
        what = f"column {read.name!r} of dataset {part.owner.name!r}"
        if read.of_all and (
            read.dataset or read.categories or held.words is not None or held.values.ndim > 2
        ):
            raise InvalidProgram(f"{what} is no column of numbers, as those of '*' are")
        if read.one_hot and not read.categories:
            raise InvalidProgram(f"{what}: only categories are one-hot")
        if read.categories and held.values.ndim > 1:
            raise InvalidArgument(f"{what} has several numbers a row; categories have one")
        if not read.categories and held.words is not None:
            raise InvalidArgument(f"{what} holds words; name the categories that they are read as")
        if tensor.side_by_side and held.values.ndim > 2:
            raise InvalidArgument(
                f"{what} is {list(held.values.shape[1:])} a row; side by side are numbers and vectors"
            )
        dtype = np.dtype(tensor.data_type.value)
        if not read.categories and (row := first_inexact(held.values, dtype)) is not None:
            log.warning(
                "%s, %s: %s is not exactly a %s", what, part.owner.place(row), held.values[row], dtype.name
            )
            raise InvalidArgument(f"{what} cannot be read as {dtype.name} exactly; the node's log says where")
        if read.constant is not None and dtype.kind in "biu" and read.constant != int(read.constant):
            raise InvalidProgram(f"{what}: {read.constant:g} is not a {dtype.name}")
        if read.categories and read.constant is not None and not 0 <= read.constant < len(read.categories):
            raise InvalidProgram(f"{what}: {read.constant:g} is the place of no category")
        gaps = held.missing is not None and bool(held.missing.any())
        if gaps and read.constant is None and _named(read) not in map(_named, complete.columns):
            raise InvalidArgument(
                f"{what} lacks values; say what is read instead, or leave out the rows that lack one"
            )

    def _rows_of(self, other: TableRows) -> Array:
        """For each row the row of `other` with its id, -1: it has none."""
        found = self._matched.get(other.name)
        if found is not None:
            return found
        mine, theirs = self._dataset.ids, other.ids
        if mine is None and theirs is None and self._dataset.rows == other.rows:
            found = np.arange(other.rows)
        elif mine is None or theirs is None:
            raise InvalidArgument(
                f"the rows of datasets {self._dataset.name!r} and {other.name!r} are matched by ids, which "
                "both need; without any in either they are matched by number, and are as many"
            )
        else:
            rows = {identity: row for row, identity in enumerate(theirs)}
            found = np.fromiter((rows.get(identity, -1) for identity in mine), np.int64, len(mine))
        self._matched[other.name] = found
        return found


def _named(read: ColumnRead) -> tuple[str, str]:
    """Which column it is, however it is read."""
    return read.dataset, read.name


def _at(matched: Array | None, rows: Array | None) -> Array | None:
    return rows if matched is None else matched if rows is None else matched[rows]


def _take(source: Array, rows: Array | None) -> Array:
    # -1, a row that is not there, reads some other: who asks fills that in.
    return source if rows is None else np.take(source, rows, axis=0, mode="wrap")
