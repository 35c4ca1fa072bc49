"""What of a job's words about columns no dataset could mend: refused wherever they are read. Pure."""

from __future__ import annotations

from edge_attention.core.categories import same_for_all
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import ColumnSpec, MissingRule, MissingValues, TableSpec

__all__ = ["MAX_COLUMNS", "check_spec", "constant_of"]

MAX_COLUMNS = 4_096
"""Columns of an input, and categories of a column."""


def check_spec(spec: TableSpec, what: str = "") -> None:
    """Refuse what no dataset could mend.

    Raises:
        InvalidArgument: naming the column.
    """
    for name, columns in spec.inputs.items():
        if not columns.columns or len(columns.columns) > MAX_COLUMNS:
            raise InvalidArgument(
                f"{what}input {name!r} names {len(columns.columns):,} columns; it is 1 to {MAX_COLUMNS:,}"
            )
        if len(set(columns.columns)) < len(columns.columns):
            raise InvalidArgument(f"{what}input {name!r} names a column twice; name each once")
    for name, column in spec.columns.items():
        where = f"{what}column {name!r}"
        same = [same_for_all(category) for category in column.categories]
        if len(same) > MAX_COLUMNS:
            raise InvalidArgument(f"{where} has {len(same):,} categories; {MAX_COLUMNS:,} is the limit")
        if len(set(same)) < len(same) or "" in same:
            raise InvalidArgument(
                f"{where}: its categories are no words, each there once: {', '.join(column.categories)[:200]}"
            )
        if column.one_hot and not same:
            raise InvalidArgument(f"{where} is one_hot; list its categories")
        if column.missing is not None:
            constant_of(column, column.missing, where)  # refuses it
            if column.categories and column.missing.rule is MissingRule.MEAN:
                raise InvalidArgument(f"{where} is read as categories, which have no mean; name another rule")


def constant_of(column: ColumnSpec, rule: MissingValues, where: str) -> float | None:
    """What stands for a missing value by that rule, if it is one; of categories a place."""
    if rule.rule is not MissingRule.CONSTANT:
        return None
    if not column.categories:
        if rule.category:
            raise InvalidArgument(
                f"{where}: {rule.category!r} stands for what is missing, and it has no categories"
            )
        return rule.number
    same = [same_for_all(category) for category in column.categories]
    wanted = same_for_all(rule.category) if rule.category else repr(rule.number)
    if wanted not in same:
        raise InvalidArgument(
            f"{where}: {rule.category or rule.number!r}, which stands for what is missing, is none of its "
            "categories"
        )
    return float(same.index(wanted))
