"""The rows of a CSV file with their true line numbers, however many lines a quoted value takes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables.dialect import MAX_CELL, MAX_LINE, CsvDialect

__all__ = ["CsvRows"]

_HINT = "; if lines of a title stand above the header, say how many: ?skip=LINES"


def counted(number: int, what: str) -> str:
    """`1 value`, `2 values`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class CsvRows:
    """Iterates over (line, values) of the rows below the header, once.

    Attributes:
        blank: empty lines left out so far.
        comments: lines that begin with # and are no rows, left out so far.
        trailing: rows of separators alone at the end, left out; known when all has been read.
        characters: read so far.
    """

    def __init__(self, path: Path, dialect: CsvDialect) -> None:
        self.blank = 0
        self.comments = 0
        self.trailing = 0
        self.characters = 0
        self._path = path
        self._dialect = dialect
        self._line = 0
        self._begun = 0
        """The line in which the row that is being read begins; 0: none has begun."""

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Raises:
        InvalidArgument: a row has more or fewer values than there are columns, or a quote is not closed.
        OSError: the file cannot be read.
        """
        dialect, width = self._dialect, len(self._dialect.names)
        with self._path.open(encoding=dialect.encoding.name, newline="") as file:
            lines = self._lines(iter(lambda: file.readline(MAX_LINE + 1), ""))
            rows = csv.reader(
                lines, delimiter=dialect.separator, quotechar=dialect.quote, skipinitialspace=True
            )
            empty: list[tuple[int, list[str]]] = []
            header, first = dialect.header, True
            while True:
                self._begun = 0
                try:
                    row = next(rows, None)
                except csv.Error:  # it has no other here
                    raise InvalidArgument(
                        f"{self._path.name}, line {self._begun}: a value of over {MAX_CELL:,} characters; is "
                        f"a quote ({dialect.quote}) not closed?"
                    ) from None
                if row is None:
                    break
                if header:
                    header = False
                elif not row:
                    self.blank += 1
                elif len(row) != width:
                    hint = _HINT if first else ""
                    raise InvalidArgument(
                        f"{self._path.name}, line {self._begun}: {counted(len(row), 'value')} under "
                        f"{counted(width, 'column')}{hint}"
                    )
                elif width > 1 and not any(row):
                    empty.append((self._begun, row))
                else:
                    if empty:
                        yield from empty
                        empty.clear()
                    first = False
                    yield self._begun, row
            self.trailing = len(empty)

    def _lines(self, lines: Iterator[str]) -> Iterator[str]:
        """What the CSV reader is fed: it asks for a second line of a row only where a quote is open."""
        spaces = self._dialect.separator == " "
        for line in lines:
            self._line += 1
            if self._line < self._dialect.first:
                continue
            self.characters += len(line)
            if len(line) > MAX_LINE:
                raise InvalidArgument(
                    f"{self._path.name}, line {self._line}: a line of over {MAX_LINE:,} characters"
                )
            if not self._begun:
                if line.isspace() and not (self._dialect.separator == "\t" and "\t" in line):
                    self.blank += 1
                    continue
                if line[0] == "#" and self._line > self._dialect.first and self._comment(line):
                    self.comments += 1
                    continue
                self._begun = self._line
                if spaces:
                    line = line.replace("\t", " ").strip() + "\n"
            yield line
        if self._begun:
            raise InvalidArgument(
                f"{self._path.name}, line {self._begun}: a quote ({self._dialect.quote}) is opened and "
                "never closed"
            )

    def _comment(self, line: str) -> bool:
        """Whether a line that begins with # is no row."""
        if line[1:2] in ("", " ", "\t", "#", "!", "\n", "\r"):
            return True
        dialect = self._dialect
        try:
            row = next(csv.reader([line], delimiter=dialect.separator, quotechar=dialect.quote), [])
        except csv.Error:
            return True
        return len(row) != len(dialect.names) or len(row) == 1
