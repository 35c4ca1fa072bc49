"""How a CSV file is written, found in its first lines: separator, quotes, header, a column of row names.

What is found is what reading holds on to: a later line that does not fit is refused by its number.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables.encoding import TextEncoding, find_encoding
from edge_attention.tables.options import SEPARATORS, TableOptions
from edge_attention.tables.spellings import MISSING, is_number

__all__ = ["MAX_CELL", "MAX_LINE", "CsvDialect", "find_dialect", "named_separator"]

MAX_LINE = 16 << 20
"""Characters of a line of a CSV file."""
MAX_CELL = 256 << 10
"""Characters of one value of a CSV file: a quote that is not closed would take all that follows, and while a
value is read each character takes 4 to 8 bytes."""

_SAMPLE_ROWS = 200
_SAMPLE_CHARACTERS = 256 << 10
_TIERS = (",;\t|", ":^~\x01\x1f", " ")
"""The likelier before the others: of these one has to fit before the next are looked at."""
_ROW_NAMES = frozenset(("", "Unnamed: 0", "rownames", "row.names"))
"""Names of a first column that is the names or numbers of rows, as R and pandas write them."""


@dataclass(frozen=True)
class CsvDialect:
    """What was found.

    Attributes:
        encoding: of the file.
        separator: the character between values; a space stands for any number of spaces and tabs.
        quote: the character around values.
        first: the line, from 1, with which the table begins: its header, or its first row.
        header: whether it is a header.
        names: of the columns, as they stand there or by place; as many as a row has values.
        row_names: whether the first column is the names of rows.
        decided: what to tell a person of it, by topic.
    """

    encoding: TextEncoding
    separator: str
    quote: str
    first: int
    header: bool
    names: tuple[str, ...]
    row_names: bool
    decided: dict[str, str]


def named_separator(separator: str) -> str:
    """What a person calls it."""
    name = next((name for name, one in SEPARATORS.items() if one == separator), "")
    return name or repr(separator)


def find_dialect(path: Path, options: TableOptions) -> CsvDialect:
    """The dialect of the file at `path`, where `options` do not say.

    Raises:
        InvalidArgument: it cannot be found, or there is more than one that fits; says which option decides.
        OSError: the file cannot be read.
    """
    csv.field_size_limit(MAX_CELL)
    encoding = find_encoding(path, options.encoding)
    sample, whole = _sample(path, encoding.name, options.skip)
    decided = {"encoding": encoding.words}
    while sample and not sample[0][1].strip():
        del sample[0]
    separator = options.separator
    if sample and (said := re.fullmatch(r"sep=(.)\s*", sample[0][1])):  # Excel's own way to say so
        separator = separator or said[1]
        del sample[0]
    comments = [i for i, (_, text) in enumerate(sample) if not text.startswith("#")][:1] or [len(sample)]
    hashed = sample[: comments[0]]
    rest = sample[comments[0] :]
    lines = [text for _, text in rest]
    if not lines or not any(text.strip() for text in lines):
        if not path.stat().st_size:
            raise InvalidArgument(f"{path.name} is empty: a header and a row are needed")
        raise InvalidArgument(
            f"{path.name}, line {sample[0][0] if sample else 1}: a header with a name for each column is "
            "needed"
        )
    quote = _quote(lines)
    found, how = _separator(path.name, lines, quote, separator, whole)
    decided["separator"] = f"{named_separator(found)}, {how}"
    rows = parsed(lines, found, quote, whole)
    first = rest[0][0]
    if not rows:  # separators alone, or a value that is too long
        why = "a header with a name for each column is needed"
        if any(len(value) > MAX_CELL for value in lines[0].split(found)):
            why = f'a value of over {MAX_CELL:,} characters; is a quote (") not closed?'
        raise InvalidArgument(f"{path.name}, line {first}: {why}")
    # A header may begin with the sign of a comment: it then has a name for each value below it.
    if hashed and len(rows[0]) > 1 and options.header is not False:
        (head,) = parsed([hashed[-1][1].lstrip("# ")], found, quote, True) or [[]]
        if len(head) == len(rows[0]) and any(map(is_number, rows[0])) and not any(map(is_number, head)):
            rows.insert(0, head)
            first = hashed.pop()[0]
    head, body = rows[0], rows[1:]
    header, why = _has_header(head, body, lines[0], quote, options.header)
    names, row_names = _names(head, body, header)
    decided["header"] = f"line {first}{why}" if header else f"none{why}: columns are called by their place"
    if body and len(head) == 1 and len(body[0]) > 1:
        raise InvalidArgument(
            f"{path.name}, line {first}: 1 name over rows of {len(body[0])} values; if lines of a title "
            "stand above the header, say how many: ?skip=LINES"
        )
    if row_names:
        decided["row names"] = "the first column" + (f", {names[0]!r}" if names[0] else ", which has no name")
    if options.skip:
        decided["skipped"] = f"the first {options.skip} lines, as said"
    return CsvDialect(encoding, found, quote, first, header, names, row_names, decided)


def parsed(lines: Sequence[str], separator: str, quote: str, whole: bool) -> list[list[str]]:
    """Rows of `lines` that are not empty, values without spaces around; not the last if it may be cut."""
    if separator == " ":
        lines = [line.replace("\t", " ").strip() + "\n" for line in lines]
    found = csv.reader(lines, delimiter=separator, quotechar=quote, skipinitialspace=True)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # of what is too long, which is refused when all is read
        rows.extend([value.strip() for value in row] for row in found if any(row))
    return rows if whole or len(rows) < 2 else rows[:-1]


def _sample(path: Path, encoding: str, skip: int) -> tuple[list[tuple[int, str]], bool]:
    """The first lines with their numbers, and whether they are all."""
    found: list[tuple[int, str]] = []
    size = 0
    with path.open(encoding=encoding, newline="") as file:
        lines = enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), start=1)
        for number, line in islice(lines, skip, None):
            if len(line) > MAX_LINE:
                raise InvalidArgument(f"{path.name}, line {number}: a line of over {MAX_LINE:,} characters")
            if len(found) > _SAMPLE_ROWS or (size > _SAMPLE_CHARACTERS and len(found) > 2):
                return found, False
            found.append((number, line))
            size += len(line)
    return found, True


def _quote(lines: Sequence[str]) -> str:
    text = lines[0].strip()
    single = text.count("'")
    return "'" if '"' not in text and single > 1 and single % 2 == 0 and text[0] == text[-1] == "'" else '"'


def _separator(name: str, lines: Sequence[str], quote: str, given: str, whole: bool) -> tuple[str, str]:
    """The separator, and how it is known."""
    if given:
        return given, "as said"
    lines = [lines[0], *(line for line in lines[1:] if line[0] != "#")]  # remarks, most likely
    nearly: list[tuple[float, int, str]] = []
    for tier in _TIERS:
        fits = []
        for separator in tier:
            rows = parsed(lines, separator, quote, whole)
            if not rows or len(rows[0]) < 2:
                continue
            head = len(rows[0])
            widths = {len(row) for row in rows[1:]}
            if widths <= {head} or widths == {head + 1}:
                fits.append((separator, rows))
            else:
                share = sum(len(row) == head for row in rows) / len(rows)
                nearly.append((share, head, separator))
        if tier == " ":  # words are between spaces, too
            fits = [
                (s, rows)
                for s, rows in fits
                if any(all(map(_numeric, c)) for c in zip(*rows[1:], strict=True))
            ]
        if len(fits) > 1:
            both = " and ".join(named_separator(separator) for separator, _ in fits)
            raise InvalidArgument(
                f"{name}: the separator could be {both}; say which: ?separator={_said(fits[0][0])}"
            )
        if fits:
            return fits[0][0], "by the first lines"
        if tier == _TIERS[0] and nearly and max(nearly)[0] >= 0.5:
            break
    if nearly:
        return max(nearly)[2], "by most of the first lines"
    return ",", "there is one column"


def _said(separator: str) -> str:
    return next((name for name, one in SEPARATORS.items() if one == separator), separator)


def _numeric(value: str) -> bool:
    return value in MISSING or is_number(value)


def _has_header(
    head: Sequence[str], body: Sequence[Sequence[str]], line: str, quote: str, given: bool | None
) -> tuple[bool, str]:
    """Whether the first row is names, and what to add when that is said."""
    if given is not None:
        return given, ", as said"
    filled = [value for value in head if value not in MISSING]
    numbers = [value for value in filled if is_number(value)]
    if not numbers:
        return True, ""
    if not body:
        return len(numbers) < len(filled) and all(value.isdecimal() for value in numbers), ""
    if all(f"{quote}{value}{quote}" in line for value in numbers):
        return True, ", whose numbers are quoted"
    if not head[0] and body[0][0]:
        return True, ", whose first column has no name"
    if len(filled) == len(numbers):
        years = [int(value) for value in numbers if value.isdecimal()]
        steps = {b - a for a, b in pairwise(years)}
        if (
            len(years) == len(filled) > 2
            and len(steps) == 1
            and steps <= {1, 2, 5, 10}
            and 1000 < years[0] < 3000
        ):
            return True, ", years"
        return False, " (line 1 is numbers alone)"
    words = [i for i, value in enumerate(head) if value not in MISSING and not is_number(value)]
    below = [[row[i] for row in body if len(row) > i] for i in words]
    if any(cells and all(map(_numeric, cells)) for cells in below):
        return True, ", though some names are numbers"
    again = any(head[i] in cells for i, cells in zip(words, below, strict=True))
    if again or not all(value.isdecimal() for value in numbers):
        return False, " (line 1 is like the lines below)"
    return True, ", though some names are numbers"


def _names(head: Sequence[str], body: Sequence[Sequence[str]], header: bool) -> tuple[tuple[str, ...], bool]:
    """The names of all columns, and whether the first is the names of rows."""
    if not header:
        return tuple(f"column_{i}" for i in range(1, len(head) + 1)), False
    names = list(head)
    row_names = False
    if body and len(head) > 1 and all(len(row) == len(names) + 1 for row in body):
        if all(not row[-1] for row in body):
            names.append("")  # a separator after the last value
        else:
            names.insert(0, "")  # R: a name for each column but that of the row names
    if len(names) > 1 and names[0] in _ROW_NAMES and (not body or any(row[0] for row in body if row)):
        row_names = True
    return tuple(name or (f"column_{i}" if i > 1 else "") for i, name in enumerate(names, start=1)), row_names
