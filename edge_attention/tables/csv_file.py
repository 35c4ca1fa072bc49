"""A CSV file as a table. It is read in pieces; what is kept of them are numbers, codes of words, and ids."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables.column import NO_VALUES, TableColumn
from edge_attention.tables.column_builder import ColumnBuilder, ColumnKind
from edge_attention.tables.csv_rows import CsvRows, counted
from edge_attention.tables.dialect import CsvDialect, find_dialect
from edge_attention.tables.id_column import find_id_column
from edge_attention.tables.ids import IdsBuilder, MissingId
from edge_attention.tables.options import TableOptions
from edge_attention.tables.table import RowLines, Table

__all__ = ["read_csv"]

_CELLS = 8_192
"""Values of a piece: as objects of Python's they take half a MB."""
_ROWS = 32
_CHARACTERS = 1 << 18
_PLACES = 8
"""Columns of one name that a reason tells the places of."""
_SIGNS = {",": "comma", ".": "point"}


def read_csv(path: Path, options: TableOptions) -> Table:
    """The table in `path`.

    Raises:
        InvalidArgument: it is none, or nobody can know how to read it; says in which line and what decides.
        OSError: it cannot be read.
    """
    dialect = find_dialect(path, options)
    reading = _Reading(path, dialect, options)
    reading.read()
    if again := [i for i, one in reading.builders.items() if one.kind is ColumnKind.AGAIN]:
        # Numbers came first, words later: how the numbers were written is gone.
        reading.read(again)
    return reading.table()


class _Reading:
    def __init__(self, path: Path, dialect: CsvDialect, options: TableOptions) -> None:
        self._path = path
        self._dialect = dialect
        self._decided = dict(dialect.decided)
        names = dialect.names
        named = names[1:] if dialect.row_names else names
        self._twice = {name for name, count in Counter(named).items() if count > 1}
        self._id = find_id_column(names, options.id_column, path)
        if self._id is not None and names[self._id] in self._twice and not options.id_column:
            raise InvalidArgument(
                f"{path.name}, line {dialect.first}: two columns are called {names[self._id]!r}; which are "
                "the ids? Say ?id=#2 for the second column, or ?id= for none"
            )
        if self._id is not None:
            self._decided["ids"] = f"column {names[self._id] or '#1'!r}"
        self._decimal = options.decimal
        aside = {i for i, name in enumerate(names) if name in self._twice}
        if dialect.row_names:
            aside.add(0)
        self.builders = {
            i: ColumnBuilder(options.decimal) for i in range(len(names)) if i not in aside and i != self._id
        }
        self._ids = IdsBuilder() if self._id is not None else None
        # 4 bytes each: a file whose cells take many lines has a run a row.
        self._runs = array("I")
        self._lines = array("I")
        self._rows = 0

    def read(self, again: list[int] | None = None) -> None:
        """All of it; or, of a file read before, only these columns, as words."""
        rows = CsvRows(self._path, self._dialect)
        builders = self.builders
        if again is not None:
            builders = {i: ColumnBuilder(words=True) for i in again}
            for i, builder in builders.items():
                builder.odd = self.builders[i].odd
        first = again is None
        most = max(_ROWS, _CELLS // len(self._dialect.names))
        block: list[list[str]] = []
        count = characters = 0
        expected = -1
        for line, row in rows:
            if first and line != expected:
                self._runs.append(count)
                self._lines.append(line)
            expected = line + 1
            count += 1
            block.append(row)
            if len(block) >= most or rows.characters - characters > _CHARACTERS:
                self._add(block, builders, first)
                block = []
                characters = rows.characters
        if block:
            self._add(block, builders, first)
        if first:
            self._rows = count
            self._left_out(rows)
        elif count != self._rows:
            raise InvalidArgument(f"{self._path.name} was changed while it was read: try again")
        self.builders.update(builders)

    def _add(self, block: list[list[str]], builders: dict[int, ColumnBuilder], first: bool) -> None:
        columns = list(zip(*block, strict=True))
        for i, builder in builders.items():
            builder.add(columns[i])
        if first and self._ids is not None and self._id is not None:
            begun = len(self._ids)
            try:
                self._ids.extend(columns[self._id])
            except MissingId as error:
                line = self._row_lines().of(begun + error.row)
                name = self._dialect.names[self._id] or "the first"
                raise InvalidArgument(
                    f"{self._path.name}, line {line}, column {name!r}: {error}; every row needs an id. Mend "
                    "the row, or say ?id=COLUMN for another column of ids, ?id= for none"
                ) from None

    def _left_out(self, rows: CsvRows) -> None:
        found = (
            (rows.blank, "empty line", ""),
            (rows.comments, "line", " with # before it"),
            (rows.trailing, "line", " of separators alone at the end"),
        )
        if words := ", ".join(f"{counted(count, what)}{more}" for count, what, more in found if count):
            self._decided["left out"] = words

    def _row_lines(self) -> RowLines:
        return RowLines(np.array(self._runs), np.array(self._lines))

    def table(self) -> Table:
        """What was read. Nothing can be read after it."""
        dialect = self._dialect
        if not self._rows:
            raise InvalidArgument(
                f"{self._path.name}: it has no rows below line {dialect.first}; a dataset has one or more"
            )
        lines = self._row_lines()
        columns: dict[str, TableColumn] = {}
        words: dict[str, int] = {}
        aside: dict[str, str] = {}
        if dialect.row_names and self._id != 0:
            aside[dialect.names[0] or "(the first column)"] = "names of the rows, as R and pandas write them"
        for name in sorted(self._twice):
            places = [i + 1 for i, one in enumerate(dialect.names) if one == name]
            more = f" and {len(places) - _PLACES:,} more" if len(places) > _PLACES else ""
            aside[name] = f"columns {', '.join(map(str, places[:_PLACES]))}{more} are called so"
        commas, points = self._signs(lines, aside)
        for i in list(self.builders):
            builder = self.builders.pop(i)
            name = dialect.names[i]
            if name in aside:
                continue
            column = builder.finish()
            if column is not None:
                columns[name] = column
                if column.words is not None:
                    words[name] = builder.odd
            elif not (dialect.header and name == f"column_{i + 1}" and builder.reason == NO_VALUES):
                aside[name] = builder.reason
                if builder.odd > 0 or (builder.odd == 0 and builder.of_odd):
                    first = "" if builder.of_odd else "the first that is no number is in "
                    aside[name] += f" ({first}line {lines.of(builder.odd)})"
        if commas or points:
            self._decided["decimal sign"] = _SIGNS["," if commas else "."] + (
                ", as said" if self._decimal else ""
            )
        ids = None if self._ids is None else self._ids.finish()
        return Table(columns, ids, lines, aside, words, self._decided)

    def _signs(self, lines: RowLines, aside: dict[str, str]) -> tuple[list[int], list[int]]:
        """The columns with decimal commas, and with points. A file has one sign: of two neither is sure."""
        live = {i: one for i, one in self.builders.items() if one.kind is ColumnKind.NUMBERS}
        commas = [i for i, one in live.items() if one.comma >= 0]
        points = [i for i, one in live.items() if one.point >= 0]
        if commas and points and not self._decimal:
            comma, point = commas[0], points[0]
            for i in {*commas, *points}:
                aside[self._dialect.names[i]] = (
                    f"decimal commas (line {lines.of(live[comma].comma)}) and points (line "
                    f"{lines.of(live[point].point)}) are in one file: say ?decimal=comma or ?decimal=point"
                )
            return [], []
        return commas, points
