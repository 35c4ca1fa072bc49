"""Datasets of this node: `--data NAME=FILE` from .npz, .csv or .parquet. Rows leave only as results."""

from __future__ import annotations

import csv
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core import session
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.tensors import MAX_RANK, Array, DataType, require_name

_ALL = "*"
"""The column that is all float columns of a table side by side: [rows, n] float32, in the file's order."""


class Dataset:
    """Columns [rows, ...] of one length, and for each row an id or for none.

    Raises:
        InvalidArgument: columns of different lengths, a dtype that cannot be used, NaN, or an id twice;
            `first_line` is the line of row 0 in the file, to say where.
    """

    def __init__(
        self, name: str, columns: Mapping[str, Array], ids: list[str] | None, first_line: int = 0
    ) -> None:
        self.name = require_name(name, "the dataset")
        self._columns = dict(columns)
        self._ids = [i.encode() for i in ids] if ids is not None else None
        lengths = {column: len(array) if array.ndim else -1 for column, array in columns.items()}
        if not columns or len({*lengths.values(), *([len(ids)] if ids is not None else [])}) != 1:
            raise InvalidArgument(f"dataset {name!r} needs columns of one length; it has {lengths}")
        self.rows = next(iter(lengths.values()))
        place = "line" if first_line else "row"
        for column, array in columns.items():
            if array.ndim > MAX_RANK:
                raise InvalidArgument(f"dataset {name!r}: column {column!r} has over {MAX_RANK} dimensions")
            DataType.of(array.dtype, f"column {column!r} of dataset {name!r}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise InvalidArgument(
                    f"dataset {name!r}: {place} {row + first_line}, column {column!r}: a number is missing, "
                    "or not finite"
                )
        seen: dict[str, int] = {}
        for row, identity in enumerate(ids or ()):
            if seen.setdefault(identity, row) != row:
                raise InvalidArgument(
                    f"dataset {name!r}: id {identity!r} is in {place} {seen[identity] + first_line} and "
                    f"again in {place} {row + first_line}; ids must differ"
                )

    def describe(self) -> session.Dataset:
        """What the aggregator may know of it."""
        columns = [
            session.Column(column, DataType.of(array.dtype), array.shape[1:])
            for column, array in self._columns.items()
        ]
        return session.Dataset(self.name, self.rows, tuple(columns), self._ids is not None)

    def column(self, name: str) -> Array:
        """The column [rows, ...]. Raises InvalidArgument if there is none."""
        if name not in self._columns:
            known = ", ".join(self._columns)[:500]
            raise InvalidArgument(f"dataset {self.name!r} has no column {name[:80]!r}; it has {known}")
        return self._columns[name]

    def hashes(self, rows: Array | None, key: bytes) -> Array:
        """uint8 [rows, 16]: the first 16 bytes of HMAC-SHA-256(key, id as UTF-8) of each row."""
        if self._ids is None:
            raise InvalidArgument(f"dataset {self.name!r} has no ids: its file needs a column of them")
        chosen: Iterable[int] = range(self.rows) if rows is None else rows.tolist()
        data = b"".join(hmac.digest(key, self._ids[row], "sha256")[:16] for row in chosen)
        return np.frombuffer(data, np.uint8).reshape(-1, 16)


def read(spec: str) -> Dataset:
    """The dataset `NAME=FILE` (`FILE?id=COLUMN` names the column of ids; otherwise `id` or `ids`).

    Raises:
        InvalidArgument: it cannot be read; says where and why.
    """
    name, equals, file = spec.partition("=")
    file, _, id_column = file.partition("?id=")
    if not equals or not file:
        raise InvalidArgument(f"--data {spec!r} is not NAME=FILE, as clinic=/data/patients.csv")
    readers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    path = Path(file)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgument(f"--data {name}: {path.name} is none of {', '.join(readers)}")
    try:
        return reader(name, path, id_column)
    except EdgeAttentionError as error:
        raise InvalidArgument(f"--data {name}: {error.message}") from None
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise InvalidArgument(f"--data {name}: {path} cannot be read: {error}") from None


def _npz(name: str, path: Path, id_column: str) -> Dataset:
    with np.load(path, allow_pickle=False) as arrays:
        columns = {column: np.ascontiguousarray(arrays[column]) for column in arrays.files}
    identity = _id_column(columns, id_column, path)
    ids = [str(i) for i in columns.pop(identity).tolist()] if identity else None
    return Dataset(name, columns, ids)


def _csv(name: str, path: Path, id_column: str) -> Dataset:
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
    return _table(name, columns, ids, first_line=2)


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


def _parquet(name: str, path: Path, id_column: str) -> Dataset:
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
    return _table(name, columns, ids)


def _table(name: str, columns: dict[str, Array], ids: list[str] | None, first_line: int = 0) -> Dataset:
    floats = [column for column, array in columns.items() if array.dtype == np.float32]
    if floats and _ALL not in columns:
        matrix = np.stack([columns[column] for column in floats], axis=1)
        # Views: a table is held once.
        columns |= {column: matrix[:, index] for index, column in enumerate(floats)}
        columns[_ALL] = matrix
    return Dataset(name, columns, ids, first_line)


def _id_column(columns: Mapping[str, Any], wanted: str, path: Path) -> str:
    if wanted and wanted not in columns:
        raise InvalidArgument(f"{path.name} has no column {wanted!r} for ids; it has {', '.join(columns)}")
    return wanted or next((column for column in ("id", "ids") if column in columns), "")
