"""A Parquet file as a table, a batch of rows at a time. Needs pyarrow, the extra `parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.tables.column import NO_VALUES, TableColumn
from edge_attention.tables.id_column import find_id_column
from edge_attention.tables.ids import IdsBuilder, MissingId
from edge_attention.tables.options import TableOptions
from edge_attention.tables.pieces import NotFiniteRow, NumberPieces, TooManyWords, WordPieces
from edge_attention.tables.size import require_room
from edge_attention.tables.table import Table

__all__ = ["read_parquet"]

_BATCH = 8_192
_NUMBER = 8
"""Bytes that a number takes at most while it is read."""
_MOST = np.iinfo(np.int64).max


def read_parquet(path: Path, options: TableOptions) -> Table:
    """The table in `path`.

    Raises:
        InvalidArgument: it is none, a value does not fit, or it holds more than this machine has room for.
        OSError: it cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import compute, parquet
    except ImportError:
        raise InvalidArgument(
            "reading .parquet needs pyarrow: pip install 'edge-attention[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            content = sum(
                max(chunk.total_uncompressed_size, chunk.num_values * _NUMBER)
                for group in groups
                for chunk in (group.column(i) for i in range(group.num_columns))
            )
            require_room(path, content)
            if not metadata.num_rows:
                raise InvalidArgument(f"{path.name} has no rows; a dataset has one or more")
        columns = [_ParquetColumn(path.name, field.name, field.type, pyarrow, compute) for field in schema]
        names = [column.name for column in columns]
        vectors = {field.name for field in schema if _is_list(field.type, pyarrow)}
        place = find_id_column(names, options.id_column, path, vectors)
        if place is not None:
            columns[place].is_id()
        twice = {name for name in names if names.count(name) > 1}
        for column in columns:
            if column.name in twice:
                column.reason = "more than one column is called so"
        # A text that is in many rows is read once.
        words = [column.name for column in columns if column.kind == "words"]
        wanted = [column for column in columns if not column.reason]
        with parquet.ParquetFile(path, read_dictionary=words) as file:
            for batch in file.iter_batches(_BATCH, columns=[column.name for column in wanted]):
                for column, values in zip(wanted, batch.columns, strict=True):
                    column.add(values)
    except MissingId as error:
        raise InvalidArgument(
            f"{path.name}, row {error.row}, column {error.args[1]!r}: {error.args[0]}"
        ) from None
    except pyarrow.ArrowInvalid as error:
        raise InvalidArgument(f"{path.name} is not a Parquet file: {error}") from None
    except pyarrow.ArrowException as error:
        raise InvalidArgument(f"{path.name} cannot be read: {error}") from None
    ids = None if place is None else columns[place].ids
    found: dict[str, TableColumn] = {}
    aside: dict[str, str] = {}
    for column in columns:
        if column.kind == "id":
            continue
        made = column.finish()
        if made is None:
            aside[column.name] = column.reason
        else:
            found[column.name] = made
    return Table(
        found,
        None if ids is None else ids.finish(),
        None,
        aside,
        decided={} if place is None else {"ids": f"column {names[place]!r}"},
    )


class _ParquetColumn:
    """One column as its batches come. `reason`: why it is set aside; empty: it is not."""

    def __init__(self, file: str, name: str, type_: Any, arrow: Any, compute: Any) -> None:
        self.name = name
        self.kind, self.reason = _kind(type_, arrow)
        self.ids = IdsBuilder()
        self._file = file
        self._arrow = arrow
        self._compute = compute
        self._rows = 0
        self._numbers = NumberPieces()
        self._words = WordPieces()
        self._there = False
        self._widths: dict[int, int] = {}
        self._pending = 0
        """Rows so far, all missing, of which it is not known how long their lists would be."""

    def is_id(self) -> None:
        self.kind, self.reason = "id", ""

    def add(self, values: Any) -> None:
        rows = self._rows
        self._rows += len(values)
        if self.reason:
            return
        if self.kind == "id":
            self._add_ids(values, rows)
        elif self.kind == "words":
            self._add_words(values)
        else:
            array, missing = self._matrix(values, np.arange(rows, self._rows), 0)
            if array is None:
                self._pending += len(values)
                return
            if self._pending:
                gone = np.ones(self._pending, bool)
                self._numbers.add(np.zeros((self._pending, *array.shape[1:]), np.int64), gone)
                self._pending = 0
            try:
                self._numbers.add(array, missing)
            except NotFiniteRow as error:
                self.reason = (
                    f"has a number that is infinite, or too large for float32 (row {rows + error.row})"
                )
                self._numbers = NumberPieces()
            self._there = self._there or missing is None or not missing.all()

    def _add_ids(self, values: Any, rows: int) -> None:
        arrow = self._arrow
        try:
            if arrow.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if values.null_count:
                raise MissingId(int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))))
            kind = values.type
            if (
                arrow.types.is_binary(kind)
                or arrow.types.is_large_binary(kind)
                or arrow.types.is_fixed_size_binary(kind)
            ):
                self.ids.extend_array(np.array(values.to_pylist(), np.bytes_))
            elif arrow.types.is_floating(kind):
                self.ids.extend_array(values.to_numpy(zero_copy_only=False))
            elif arrow.types.is_boolean(kind) or arrow.types.is_nested(kind):
                raise MissingId(0, f"{kind} is no id")
            else:
                self.ids.extend([str(one) for one in values.to_pylist()])
        except MissingId as error:
            found = MissingId(rows + error.row)
            found.args = (str(error), self.name)
            raise found from None

    def _add_words(self, values: Any) -> None:
        arrow = self._arrow
        if not arrow.types.is_dictionary(values.type):
            values = values.dictionary_encode()
        missing = values.is_null().to_numpy(zero_copy_only=False)
        indices = values.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        texts = values.dictionary.to_pylist()
        missing = missing | np.array([text is None for text in texts] or [True])[indices if len(texts) else 0]
        try:
            self._words.add_codes([text or "" for text in texts] or [""], indices, missing)
        except TooManyWords as error:
            self.reason = f"text with {error}"
            self._words = WordPieces()

    def _matrix(self, values: Any, places: Array, depth: int) -> tuple[Array | None, Array | None]:
        """[rows, ...] int64 or float64, and which rows are missing; None: no row says how long its list is.

        `places`: the row of the file that each of `values` is in.
        """
        missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
        if not _is_list(values.type, self._arrow):
            array = self._single(values, places)
            if array.dtype.kind == "f" and (nan := np.isnan(array)).any():
                array = np.where(nan, 0, array)
                missing = nan if missing is None else missing | nan
            return array, missing
        there = np.arange(len(values)) if missing is None else np.flatnonzero(~missing)
        if not len(there):
            return None, missing
        present = values if missing is None else values.drop_null()
        lengths = self._compute.list_value_length(present).to_numpy(zero_copy_only=False)
        width = self._width(depth, lengths, places[there])
        inner, gaps = self._matrix(present.flatten(), np.repeat(places[there], width), depth + 1)
        if inner is None:
            return None, missing
        inner = inner.reshape(len(there), width, *inner.shape[1:])
        bad = None if gaps is None else gaps.reshape(len(there), -1).any(axis=1)
        if missing is None and bad is None:
            return inner, None
        spread = np.zeros((len(values), *inner.shape[1:]), inner.dtype)
        spread[there] = inner
        gone = np.zeros(len(values), bool) if missing is None else missing.copy()
        if bad is not None:
            gone[there[bad]] = True
            spread[there[bad]] = 0
        return spread, gone

    def _width(self, depth: int, lengths: Array, places: Array) -> int:
        """How long the lists `depth` deep are: all alike, in all batches. `places`: the row of each."""
        width = self._widths.setdefault(depth, int(lengths[0]))
        if (other := lengths != width).any():
            at = int(np.argmax(other))
            raise InvalidArgument(
                f"{self._file}, row {int(places[at])}, column {self.name!r}: a list of {int(lengths[at])} "
                f"where the first is of {width}; lists of one length are a column of vectors"
            )
        if not width:
            raise InvalidArgument(f"{self._file}, row {int(places[0])}, column {self.name!r}: an empty list")
        return width

    def _single(self, values: Any, places: Array) -> Array:
        arrow = self._arrow
        kind = values.type
        if arrow.types.is_decimal(kind):
            values = values.cast(arrow.float64())
        elif arrow.types.is_boolean(kind):
            values = values.cast(arrow.int8())
        elif arrow.types.is_dictionary(kind):
            values = values.dictionary_decode()
        array: Array = values.fill_null(0).to_numpy(zero_copy_only=False)
        if array.dtype == np.uint64 and (large := array > _MOST).any():
            raise InvalidArgument(
                f"{self._file}, row {int(places[np.argmax(large)])}, column {self.name!r}: a number over "
                "2^63 - 1 does not fit int64"
            )
        return array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)

    def finish(self) -> TableColumn | None:
        """The column; None: it is set aside, and `reason` says why."""
        if not self.reason and self.kind == "words" and not self._words.words:
            self.reason = NO_VALUES
        if not self.reason and self.kind == "numbers" and not self._there:
            self.reason = NO_VALUES
        if self.reason:
            return None
        return self._words.finish() if self.kind == "words" else self._numbers.finish()


def _is_list(kind: Any, arrow: Any) -> bool:
    types = arrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _kind(kind: Any, arrow: Any) -> tuple[str, str]:
    """What a column of this type is, `numbers` or `words`, and why it is set aside if it is."""
    types = arrow.types
    if types.is_dictionary(kind):
        return _kind(kind.value_type, arrow)
    if types.is_string(kind) or types.is_large_string(kind):
        return "words", ""
    inner = kind
    while _is_list(inner, arrow):
        inner = inner.value_type
    if (
        types.is_boolean(inner)
        or types.is_integer(inner)
        or types.is_floating(inner)
        or types.is_decimal(inner)
    ):
        return "numbers", ""
    if types.is_null(inner):
        return "numbers", NO_VALUES
    if types.is_temporal(inner):
        return "numbers", f"dates and times ({inner})"
    return "numbers", f"is {kind}, no column of numbers or words"
