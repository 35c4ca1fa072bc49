"""Reads tables: .csv (and .tsv, .txt), .npz and .parquet files. Whoever has a file of a table begins here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.tables.options import TableOptions
from edge_attention.tables.table import Table

__all__ = ["read_table"]

_REASONS = 1_000
"""Characters of why columns are set aside, in an error."""


def read_table(path: Path, options: TableOptions | None = None, *, private: bool = False) -> Table:
    """The table in `path`, its rows' ids checked: each there once.

    What is missing in a column is no error here, nor is a column that is neither numbers nor few words: it
    is set aside, with the reason. `private`: no error may name an id.

    Raises:
        InvalidArgument: it cannot be read, has no rows, no column that can be used, or an id missing or
            twice; says where.
        ResourceExhausted: it holds more than this machine has room for.
    """
    options = options or TableOptions()
    reader = _reader(path.suffix.lower())
    if path.is_dir():
        raise InvalidArgument(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise InvalidArgument(f"{path} is no file")
    if reader is None:
        raise InvalidArgument(f"{path} is none of .npz, .csv, .tsv, .txt, .parquet, by the end of its name")
    try:
        table = reader(path, options)
    except InvalidArgument:
        raise
    except PermissionError:
        who = f"user {os.geteuid()}, group {os.getegid()}"
        raise InvalidArgument(
            f"{path} cannot be read: this process runs as {who}, which may not: let that user read the "
            f"file and enter its folders, as with `setfacl -m u:{os.geteuid()}:r`, and nobody else here"
        ) from None
    except OSError as error:
        _, named, file = str(path).partition("=")
        # As other commands take a file: with the dataset's or the node's name.
        meant = f"; give the file alone: {file}" if named and Path(file).is_file() else ""
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}{meant}") from None
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    _check(table, path, private)
    return table


def _reader(suffix: str) -> Callable[[Path, TableOptions], Table] | None:
    """Each is loaded when it is needed: a node has few kinds of files."""
    if suffix in (".csv", ".tsv", ".txt"):
        from edge_attention.tables.csv_file import read_csv

        return read_csv
    if suffix == ".npz":
        from edge_attention.tables.npz_file import read_npz

        return read_npz
    if suffix == ".parquet":
        from edge_attention.tables.parquet_file import read_parquet

        return read_parquet
    return None


def _check(table: Table, path: Path, private: bool) -> None:
    if not table.columns:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in table.set_aside.items())
        why = shown(reasons, _REASONS) or "it has ids alone"
        raise InvalidArgument(f"{path.name} has no column of numbers or categories: {why}")
    lengths = {name: len(column) for name, column in table.columns.items()}
    if table.ids is not None:
        lengths["(ids)"] = len(table.ids)
    if len(set(lengths.values())) > 1:
        raise InvalidArgument(
            f"{path.name}: columns of one length are needed; there are {shown(lengths, 500)}"
        )
    if not next(iter(lengths.values())):
        raise InvalidArgument(
            f"{path.name}: column {next(iter(lengths))!r} has no rows; a dataset has one or more"
        )
    if table.ids is not None and (twice := table.ids.twice()) is not None:
        which = "one id" if private else f"id {table.ids[twice[1]].decode()!r}"
        places = f"{table.place(twice[0])} and again in {table.place(twice[1])}"
        raise InvalidArgument(
            f"{path.name}: {which} is in {places}; ?id=COLUMN names another column of ids, ?id= says none is"
        )
