"""Tables from .npz, .csv and .parquet files: columns by name, and the ids of the rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.array_files import load_npz
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.tables.table import RowLines, Table

__all__ = ["read_table"]


def read_table(path: Path, id_column: str = "") -> Table:
    """Read `path`; `id_column` names the column of ids, otherwise `id` or `ids` does if there is one.

    In .csv and .parquet integers are int64 and other numbers float32.

    Raises:
        InvalidArgument: it cannot be read, has no rows, lacks a number or has an id twice; says where.
    """
    readers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgument(f"{path.name} is none of {', '.join(readers)}")
    try:
        table = reader(path, id_column)
    except UnicodeDecodeError:
        raise InvalidArgument(_not_utf8(path)) from None
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    _check(table, path)
    return table


def _check(table: Table, path: Path) -> None:
    for name, column in table.columns.items():
        array = column.values
        if not len(array):
            raise InvalidArgument(f"{path.name}: column {name!r} has no rows; a dataset has one or more")
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            row = int(np.argwhere(~finite)[0][0])
            raise InvalidArgument(
                f"{path.name}, {table.place(row)}, column {name!r}: a number is missing, or not finite"
            )
    if table.ids is not None and (twice := table.ids.twice()) is not None:
        first, again = twice
        raise InvalidArgument(
            f"{path.name}: id {table.ids[again].decode()!r} is in {table.place(first)} and again in "
            f"{table.place(again)}"
        )


def _not_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The reader's own position is that in a piece of the file.
        line = data.count(b"\n", 0, error.start) + 1
        return (
            f"{path.name}, line {line}, byte {error.start}: 0x{data[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        )
    return f"{path.name} is not UTF-8; save the file as UTF-8"


def _npz(path: Path, id_column: str) -> Table:
    columns = {column: np.ascontiguousarray(array) for column, array in load_npz(path).items()}
    identity = _id_column(columns, id_column, path)
    ids = [str(i) for i in columns.pop(identity).tolist()] if identity else None
    return Table.of(columns, ids)


def _csv(path: Path, id_column: str) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [column.strip() for column in next(reader, [])]
        if not header or len(set(header)) != len(header) or "" in header:
            raise InvalidArgument(
                f"{path.name}, line 1: a header with a name for each column is needed, each once"
            )
        rows: list[list[str]] = []
        for row in reader:
            if len(row) != len(header):
                raise InvalidArgument(
                    f"{path.name}, line {reader.line_num}: {len(row)} values under {len(header)} columns"
                )
            rows.append(row)
    cells: dict[str, tuple[str, ...]] = dict(
        zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True)
    )
    identity = _id_column(cells, id_column, path)
    ids = [cell.strip() for cell in cells.pop(identity)] if identity else None
    columns = {column: _numbers(values, column, path) for column, values in cells.items()}
    return replace(Table.of(columns, ids), lines=RowLines.from_line(2))


def _numbers(values: tuple[str, ...], column: str, path: Path) -> Array:
    """int64 if every value is an integer, else float32."""
    for dtype, storage in ((np.int64, np.int64), (np.float64, np.float32)):
        try:
            with np.errstate(over="ignore"):  # what becomes infinite is refused with its line
                return np.array(values, dtype=np.str_).astype(dtype).astype(storage)
        except (ValueError, OverflowError):
            continue
    for line, value in enumerate(values, start=2):
        try:
            float(value)
        except ValueError:
            raise InvalidArgument(
                f"{path.name}, line {line}, column {column!r}: {value[:40]!r} is not a number"
            ) from None
    raise InvalidArgument(f"{path.name}: column {column!r} holds numbers that do not fit")


def _parquet(path: Path, id_column: str) -> Table:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InvalidArgument(
            "reading .parquet needs pyarrow: pip install 'edge-attention[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise InvalidArgument(f"{path.name} is not a Parquet file: {error}") from None
    cells = dict(zip(table.column_names, table.columns, strict=True))
    identity = _id_column(cells, id_column, path)
    ids = [str(i) for i in cells.pop(identity).to_pylist()] if identity else None
    columns: dict[str, Array] = {}
    for column, values in cells.items():
        array = values.to_numpy()
        if array.dtype.kind not in "biuf":
            raise InvalidArgument(f"{path.name}: column {column!r} is {values.type}, not numbers")
        columns[column] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    return Table.of(columns, ids)


def _id_column(columns: Mapping[str, Any], wanted: str, path: Path) -> str:
    if wanted and wanted not in columns:
        raise InvalidArgument(f"{path.name} has no column {wanted!r} for ids; it has {', '.join(columns)}")
    return wanted or next((column for column in ("id", "ids") if column in columns), "")
