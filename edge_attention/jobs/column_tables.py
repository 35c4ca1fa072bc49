"""What a job file says of columns: `[columns.NAME]`, and `missing_values` of all others."""

from __future__ import annotations

from typing import Any

from edge_attention.jobs.columns import JobColumn
from edge_attention.jobs.toml_table import TomlTable, names_of

__all__ = ["columns_of"]


def columns_of(table: TomlTable) -> dict[str, Any]:
    """`columns` and `missing_values` of a job or of a part of one.

    Raises:
        InvalidArgument: naming the file and the key.
    """
    names = table.take("columns", dict, {})
    return {
        "columns": {
            name: _column(
                TomlTable(table.file, f"{table.name('columns')}.{name}", given, names_of(JobColumn))
            )
            for name, given in names.items()
        },
        "missing_values": _missing(table, "missing_values"),
    }


def _column(table: TomlTable) -> JobColumn:
    return JobColumn(
        table.take("categories", list, []), table.take("one_hot", bool, False), _missing(table, "missing")
    )


def _missing(table: TomlTable, key: str) -> str | float | None:
    return table.take(key, str) if table.is_text(key) else table.optional_number(key)
