"""What a node would make of a file, said without a value of it: `data check` and `edge-node --check-data`.

The figures tell of no single row: counts, and for columns of numbers with a value in MIN_ROWS rows or more
the mean and the deviation, both rounded to the first digit of the deviation: to who knew all rows but one
they leave the last one open to within a deviation or so. No least or largest value, no word of a column of
words, no id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from edge_attention.core.errors import InvalidArgument, ResourceExhausted
from edge_attention.core.printable import shown
from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table
from edge_attention.tables.table import Table

__all__ = ["MIN_ROWS", "ColumnCheck", "FileCheck", "check_file", "check_table", "differences", "lines_of"]

MIN_ROWS = 20
"""Rows with a value that a figure of a column needs."""

_EXACT = 1 << 24  # whole numbers up to here are what they are in float32
_SLICE = 1 << 16
_NAMES = 500


@dataclass(frozen=True)
class ColumnCheck:
    """A column that a job can name.

    Attributes:
        name: of the column.
        kind: `whole numbers`, `numbers` or `words`.
        exactly: the types that its values can be read as without a change, of float32, int64 and words.
        row_shape: of one row; empty: one value.
        missing: rows that have no value.
        words: distinct words; 0 for numbers.
        mean, deviation: rounded, see above; None: not told.
    """

    name: str
    kind: str
    exactly: tuple[str, ...]
    row_shape: tuple[int, ...] = ()
    missing: int = 0
    words: int = 0
    mean: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class FileCheck:
    """A file. `refused`: why a node would not read it; then the rest is empty."""

    file: str
    refused: str = ""
    rows: int = 0
    ids: bool = False
    columns: tuple[ColumnCheck, ...] = ()
    set_aside: dict[str, str] = field(default_factory=dict)
    decided: dict[str, str] = field(default_factory=dict)


def check_file(spec: str) -> tuple[FileCheck, Table | None]:
    """The check of `FILE` or `FILE?id=COLUMN&...`, and the table; None: it is refused."""
    try:
        path, options = split_file(spec)
        table = read_table(path, options, private=True)
    except (InvalidArgument, ResourceExhausted) as error:
        return FileCheck(spec, error.message), None
    return check_table(spec, table), table


def check_table(file: str, table: Table) -> FileCheck:
    """The check of a table that `file` was read into."""
    columns = tuple(_column(name, column) for name, column in table.columns.items())
    rows = len(next(iter(table.columns.values())))
    aside, decided = dict(table.set_aside), dict(table.decided)
    return FileCheck(file, "", rows, table.ids is not None, columns, aside, decided)


def _column(name: str, column: TableColumn) -> ColumnCheck:
    values, gaps = column.values, column.missing
    missing = 0 if gaps is None else int(gaps.sum())
    shape = values.shape[1:]
    if column.words is not None:
        return ColumnCheck(name, "words", ("words",), shape, missing, len(column.words))
    whole = values.dtype.kind in "biu"
    exactly: tuple[str, ...] = ("float32",)
    if whole:
        small = values.dtype.itemsize < 4 or bool(values.min() >= -_EXACT and values.max() <= _EXACT)
        exactly = ("float32", "int64") if small else ("int64",)
    mean = deviation = None
    if not shape and len(values) - missing >= MIN_ROWS:
        mean, deviation = _figures(values, gaps)
    return ColumnCheck(
        name, "whole numbers" if whole else "numbers", exactly, shape, missing, 0, mean, deviation
    )


def _figures(values: Array, gaps: Array | None) -> tuple[float | None, float | None]:
    """Mean and deviation of what is there, rounded; None of a column of one value, which they would tell."""
    count = len(values) - (0 if gaps is None else int(gaps.sum()))
    mean = sum(float(piece.sum()) for piece in _pieces(values, gaps)) / count
    variance = sum(float(np.square(piece - mean).sum()) for piece in _pieces(values, gaps)) / count
    deviation = math.sqrt(variance)
    if not deviation > abs(mean) * 1e-9:
        return None, None
    digits = -math.floor(math.log10(deviation))
    return round(mean, digits), round(deviation, digits)


def _pieces(values: Array, gaps: Array | None) -> Iterator[Array]:
    for at in range(0, len(values), _SLICE):
        piece = values[at : at + _SLICE].astype(np.float64)
        yield piece if gaps is None else piece[~gaps[at : at + _SLICE]]


def lines_of(check: FileCheck) -> list[str]:
    """A check for a person, a fact a line."""
    if check.refused:
        return [f"{check.file}: refused: {check.refused}"]
    ids = "with ids" if check.ids else "without ids"
    lines = [f"{check.file}: {check.rows:,} rows, {ids}"]
    lines += [f"  {topic}: {words}" for topic, words in check.decided.items()]
    width = max(len(shown(column.name, 40)) for column in check.columns)
    for column in check.columns:
        lines.append(f"  {shown(column.name, 40):{width}}  {', '.join(_facts(column))}")
    lines += [f"  {shown(name, 80)}: set aside: {reason}" for name, reason in check.set_aside.items()]
    return lines


def _facts(column: ColumnCheck) -> Iterator[str]:
    yield f"{column.kind} {list(column.row_shape)}" if column.row_shape else column.kind
    if column.words:
        yield f"{column.words:,} distinct"
    if column.kind == "whole numbers" and "float32" not in column.exactly:
        yield f"beyond {_EXACT:,}: not exact in float32"
    if column.missing:
        yield f"{column.missing:,} missing"
    if column.mean is not None:
        yield f"mean about {column.mean:g}, deviation about {column.deviation:g}"


def differences(checks: Sequence[FileCheck]) -> list[str]:
    """What keeps files from being one table: names, types, row shapes, and the order of columns; in words."""
    read = [check for check in checks if not check.refused]
    found: list[str] = []
    for one, other in combinations(read, 2):
        if one is not read[0]:
            continue  # each is held against the first
        first, second = ({c.name: c for c in check.columns} for check in (one, other))
        for here, there, names in (
            (one, other, set(first) - set(second)),
            (other, one, set(second) - set(first)),
        ):
            if names:
                listed = ", ".join(repr(c.name) for c in here.columns if c.name in names)
                found.append(f"only in {here.file}, not in {there.file}: {shown(listed, _NAMES)}")
        both = [name for name in first if name in second]
        for name in both:
            mine, theirs = first[name], second[name]
            if (mine.kind == "words") != (theirs.kind == "words") or mine.row_shape != theirs.row_shape:
                found.append(
                    f"{name!r} is {next(_facts(mine))} in {one.file}, {next(_facts(theirs))} in {other.file}"
                )
        if both != [name for name in second if name in first]:
            found.append(
                f"the columns are in another order in {other.file} than in {one.file}: put right by name"
            )
        if one.ids != other.ids:
            found.append(f"{one.file} is {'with' if one.ids else 'without'} ids, {other.file} is not")
    return found
