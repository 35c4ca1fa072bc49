"""What an operator says of a file beside its path: `FILE?id=COLUMN&separator=tab&decimal=comma`."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, replace
from pathlib import Path

from edge_attention.core.errors import InvalidArgument

__all__ = ["SEPARATORS", "TableOptions", "parse_options", "split_file"]

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " ", "colon": ":"}
"""Separators that have a name; any other single character stands for itself."""

_BEGIN = re.compile(r"\?(?=[a-z]+=)")
_DECIMALS = {"point": ".", ".": ".", "comma": ",", ",": ","}
_HEADERS = {"yes": True, "no": False}


@dataclass(frozen=True)
class TableOptions:
    """Empty and None: it is found out.

    Attributes:
        id_column: the column of ids, by name, or by its place as `#1`; None: `id` or `ids`, if there is one.
            Empty: no column is.
        separator: the character between values.
        decimal: `.` or `,`.
        encoding: a name of Python's, as `latin-1`.
        header: whether the first line has the names of the columns.
        skip: lines before the header that are no part of the table.
    """

    id_column: str | None = None
    separator: str = ""
    decimal: str = ""
    encoding: str = ""
    header: bool | None = None
    skip: int = 0


def parse_options(text: str) -> TableOptions:
    """The options of `id=COLUMN&separator=tab`.

    Raises:
        InvalidArgument: one is not known, or has a value that it cannot have.
    """
    found = TableOptions()
    for part in text.split("&") if text else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidArgument(f"{part!r} is not OPTION=VALUE, as id=COLUMN")
        if key == "id":
            found = replace(found, id_column=value)
        elif key == "separator" and (one := SEPARATORS.get(value, value)) and len(one) == 1:
            if one in "\"'\r\n\0" or one.isalnum():
                raise InvalidArgument(f"separator={value}: that cannot be between values")
            found = replace(found, separator=one)
        elif key == "decimal" and value in _DECIMALS:
            found = replace(found, decimal=_DECIMALS[value])
        elif key == "header" and value in _HEADERS:
            found = replace(found, header=_HEADERS[value])
        elif key == "skip" and value.isdecimal() and len(value) < 7:
            found = replace(found, skip=int(value))
        elif key == "encoding":
            found = replace(found, encoding=_encoding(value))
        else:
            raise InvalidArgument(
                f"{part!r} is none of id=COLUMN, separator=comma|semicolon|tab|bar|space|CHARACTER, "
                "decimal=point|comma, encoding=NAME, header=yes|no, skip=LINES"
            )
    return found


def split_file(spec: str) -> tuple[Path, TableOptions]:
    """The path and the options of `FILE` or `FILE?id=COLUMN&separator=tab`.

    Raises:
        InvalidArgument: there is no path, or an option is none.
    """
    file, *options = _BEGIN.split(spec, maxsplit=1)
    if not file:
        raise InvalidArgument(f"{spec!r} has no file")
    return Path(file), parse_options("".join(options))


def _encoding(name: str) -> str:
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        raise InvalidArgument(
            f"encoding={name}: no encoding is called so; utf-8, latin-1 or cp1252?"
        ) from None
    if not getattr(found, "_is_text_encoding", True):
        raise InvalidArgument(f"encoding={name} is no encoding of text")
    return found.name
