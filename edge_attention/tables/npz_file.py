"""An .npz file as a table: an array a column. What its headers say it holds is checked before it is read."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.tables.column import NO_VALUES, TableColumn
from edge_attention.tables.id_column import find_id_column
from edge_attention.tables.ids import IdsBuilder, MissingId
from edge_attention.tables.options import TableOptions
from edge_attention.tables.pieces import TooManyWords, WordPieces
from edge_attention.tables.size import require_room
from edge_attention.tables.table import Table

__all__ = ["read_npz"]

_WIDER = {"int16": np.int32, "uint16": np.int32, "uint32": np.int64}
_KEPT = ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")
_REASONS = {"O": "objects of Python's", "M": "dates and times", "m": "spans of time", "c": "complex numbers"}


def read_npz(path: Path, options: TableOptions) -> Table:
    """The table in `path`.

    Raises:
        InvalidArgument: it is none, or holds more than this machine has room for.
        OSError: it cannot be read.
    """
    try:
        headers = _headers(path)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, SyntaxError, TypeError):
        raise InvalidArgument(
            f"{path} cannot be read: it is not an .npz file of numbers, or is damaged"
        ) from None
    require_room(path, sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values()))
    aside = {name: reason for name, (shape, dtype) in headers.items() if (reason := _reason(shape, dtype))}
    names = [name for name in headers if name not in aside]
    vectors = {name for name, (shape, _) in headers.items() if math.prod(shape[1:]) > 1}
    place = find_id_column(names, options.id_column, path, vectors)
    identity = None if place is None else names[place]
    ids = None
    columns: dict[str, TableColumn] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                array = file[name]
                if name == identity:
                    ids = IdsBuilder()
                    ids.extend_array(array)
                    continue
                found = _column(array, name, path)
                if isinstance(found, str):
                    aside[name] = found
                else:
                    columns[name] = found
    except MissingId as error:
        raise InvalidArgument(f"{path.name}, row {error.row}, column {identity!r}: {error}") from None
    except (InvalidArgument, OSError, MemoryError):
        raise
    except Exception:
        # NumPy, zipfile and zlib each have errors of their own for a file that is damaged.
        raise InvalidArgument(
            f"{path} cannot be read: it is not an .npz file of numbers, or is damaged"
        ) from None
    return Table(
        columns,
        None if ids is None else ids.finish(),
        None,
        aside,
        decided={} if identity is None else {"ids": f"column {identity!r}"},
    )


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array, without reading it."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
            if dtype.kind != "O" and math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError("less than its header says")
            found[entry.filename.removesuffix(".npy")] = (shape, dtype)
    return found


def _reason(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Why an array is no column; empty: it is one."""
    if dtype.kind in _REASONS:
        return _REASONS[dtype.kind]
    if not shape:
        return "is one value, not a column of rows"
    if dtype.kind in "biuf" and dtype.name not in (*_KEPT, *_WIDER, "uint64"):
        return f"{dtype} is no number that travels"
    if dtype.kind in "US":
        return "text of more than one value a row" if len(shape) > 1 else ""
    return "" if dtype.kind in "biuf" else f"{dtype} is no number"


def _column(array: Array, name: str, path: Path) -> TableColumn | str:
    """The column, or why it is set aside."""
    if array.dtype.kind in "US":
        try:
            return _words(array)
        except UnicodeDecodeError:
            return "bytes that are no UTF-8"
        except TooManyWords as error:
            return f"text with {error}"
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    if array.dtype == np.uint64:
        if (large := array > np.iinfo(np.int64).max).any():
            row = int(np.argwhere(large)[0][0])
            raise InvalidArgument(
                f"{path.name}, row {row}, column {name!r}: a number over 2^63 - 1 does not fit int64"
            )
        array = array.astype(np.int64)
    array = array.astype(_WIDER.get(array.dtype.name, array.dtype), copy=False)
    if array.dtype.kind != "f" or not len(array):
        return TableColumn(array)
    finite = np.isfinite(array)
    if finite.all():
        return TableColumn(array)
    if (infinite := np.isinf(array)).any():
        return f"has a number that is infinite (row {int(np.argwhere(infinite)[0][0])})"
    missing = np.logical_not(finite.reshape(len(array), -1).all(axis=1))
    if missing.all():
        return NO_VALUES
    array = array.copy()
    array[missing] = 0
    return TableColumn(array, missing)


def _words(array: Array) -> TableColumn | str:
    pieces = WordPieces()
    for at in range(0, len(array), 4096):
        cells = array[at : at + 4096].tolist()
        pieces.add([cell.decode() if isinstance(cell, bytes) else cell for cell in cells])
    return pieces.finish() if pieces.words else NO_VALUES
