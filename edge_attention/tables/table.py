"""What reading a file gives: columns by name, the ids of the rows, and where in the file each row is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.ids import Ids

__all__ = ["RowLines", "Table"]


@dataclass(frozen=True, eq=False)
class RowLines:
    """The line, from 1, in which each row of a text file begins.

    Attributes:
        rows: ascending, from row 0: where a run of rows begins that stand in lines one after the other.
        lines: the line of the first row of each run.
    """

    rows: Array
    lines: Array

    def of(self, row: int) -> int:
        """The line of `row`, counted from 0."""
        run = int(np.searchsorted(self.rows, self.rows.dtype.type(row), side="right")) - 1
        return int(self.lines[run]) + row - int(self.rows[run])


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one number of rows.

    Attributes:
        columns: by name, in the order of the file; without the ids and what was set aside.
        ids: the rows' ids, each there once; None: there are none.
        lines: of a text file, where each row begins; None: rows have numbers only, from 0.
        set_aside: columns that are no numbers and no categories, with the reason.
        first_words: of a text file, for each column of words the first row that is no number.
        decided: of a text file, what reading it had to find out (separator, decimal sign, encoding, header,
            column of row names, lines left out), by topic, in words.
    """

    columns: Mapping[str, TableColumn]
    ids: Ids | None = None
    lines: RowLines | None = None
    set_aside: Mapping[str, str] = field(default_factory=dict)
    first_words: Mapping[str, int] = field(default_factory=dict)
    decided: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, Array], ids: Iterable[str] | None = None) -> Table:
        """A table of numbers of which none is missing."""
        columns = {name: TableColumn(array) for name, array in arrays.items()}
        return cls(columns, None if ids is None else Ids.of(ids))

    def take(self, rows: Array) -> Table:
        """Only some rows. `rows`: int64, each one that is there."""
        columns = {
            name: TableColumn(
                column.values[rows],
                None if column.missing is None else column.missing[rows],
                column.words,
            )
            for name, column in self.columns.items()
        }
        ids = None if self.ids is None else Ids.of(self.ids[row].decode() for row in rows.tolist())
        lines = self.lines
        if lines is not None:
            lines = RowLines(
                np.arange(len(rows)), np.array([lines.of(row) for row in rows.tolist()], np.int64)
            )
        return Table(columns, ids, lines, self.set_aside, {}, self.decided)

    def place(self, row: int) -> str:
        """Where a row is: `line 7` of a text file, else `row 5`."""
        return f"row {row}" if self.lines is None else f"line {self.lines.of(row)}"
