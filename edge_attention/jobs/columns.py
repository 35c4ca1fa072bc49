"""How columns of tables become a graph's inputs, as users say it.

inputs = {"x": ["age", "weight", "sex"], "labels": "diagnosis"}
columns = {"sex": JobColumn(categories=("female", "male"), one_hot=True),
           "diagnosis": JobColumn(categories=("healthy", "ill")),
           "weight": JobColumn(missing="mean")}
missing_values = "drop"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.keywords import named_fields
from edge_attention.core.messages.table import (
    ColumnSpec,
    InputColumns,
    MissingRule,
    MissingValues,
    TableSpec,
)
from edge_attention.core.table_spec import check_spec
from edge_attention.jobs.values import is_finite, said, switch, text

__all__ = ["Columns", "Inputs", "JobColumn", "WhereMissing", "prepared"]

Inputs = Mapping[str, str | Sequence[str]]
"""Graph input -> its column, or a list of columns that are side by side.

A column is one of the job's dataset; `other:column` is of another dataset of the same node, whose rows are
matched by their ids, or by their numbers if neither has ids and both have as many. `*` is every column of
numbers of the job's dataset that no input names; never the ids.
"""

WhereMissing = str | float
"""What is done where a value is missing: `refuse` the job; `drop` the row; read the `mean` of all nodes,
where an input takes floats; or read the number or the category that is given.

To drop rows, or for a mean, every node is asked for a count, or sums, before the first round, and has to let
that leave. In a fusion job a part's node tells which of its rows lack a value, and the mean is of that node;
`append_dataset` drops no rows and reads no means.
"""


@named_fields
@dataclass(frozen=True)
class JobColumn:
    """How a column is read wherever a job names it.

    Attributes:
        categories: not empty: each value is one of these, words or numbers, and read as its place among them,
            from 0: one code for all nodes.
        one_hot: a category is read as so many numbers as there are, 1 at its place and 0 elsewhere.
        missing: see `WhereMissing`; None: as the job says for all.
    """

    categories: Sequence[str | float] = ()
    one_hot: bool = False
    missing: WhereMissing | None = None


Columns = Mapping[str, JobColumn]


def prepared(inputs: Any, columns: Any, missing: Any, what: str) -> tuple[dict[str, str], TableSpec]:
    """Input -> column as it travels, and all else that is said of the table. `what`: the field, as `inputs`.

    Raises:
        InvalidArgument: naming what cannot be meant.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidArgument(f"{what} is {said(inputs)}; it must map names to columns or lists of columns")
    single: dict[str, str] = {}
    lists: dict[str, InputColumns] = {}
    for name, given in inputs.items():
        where = f"{what}.{text(name, f'a name in {what}')}"
        if isinstance(given, str):
            single[name] = text(given, where)
            continue
        if not isinstance(given, Sequence) or not given:
            raise InvalidArgument(f"{where} is {said(given)}; it must name a column, or list columns")
        names = tuple(text(column, f"an entry of {where}") for column in given)
        if twice := next((column for column in names if names.count(column) > 1), None):
            raise InvalidArgument(f"{where} names {twice!r} twice; name each once")
        lists[name] = InputColumns(names)
        # An aggregator of a release without lists looks for a column of this name, and says there is none.
        single[name] = ", ".join(names)
    if not isinstance(columns, Mapping):
        raise InvalidArgument(f"columns is {said(columns)}; it must map columns to JobColumns")
    specs = {text(name, "a name in columns"): _column(name, column) for name, column in columns.items()}
    rule = None if missing is None else _missing(missing, "missing_values", ())
    spec = TableSpec(lists, specs, rule)
    check_spec(spec)
    return single, spec


def _column(name: str, column: Any) -> ColumnSpec:
    where = f"columns.{name}"
    if not isinstance(column, JobColumn):
        raise InvalidArgument(f"{where} is {said(column)}; give a JobColumn")
    given: Any = column.categories
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise InvalidArgument(f"{where}.categories is {said(given)}; it must list words or numbers")
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise InvalidArgument(f"{where}.categories has {given.ndim} axes; it must be a list")
    categories = tuple(_category(each, f"an entry of {where}.categories") for each in given)
    one_hot = switch(column.one_hot, f"{where}.one_hot")
    rule = None if column.missing is None else _missing(column.missing, f"{where}.missing", categories)
    return ColumnSpec(categories, one_hot, rule)


def _category(value: Any, what: str) -> str:
    if isinstance(value, str) and value.strip():
        return text(value, what)
    if is_finite(value):
        return str(value)
    raise InvalidArgument(f"{what} is {said(value)}; it must be a word or a number")


def _missing(value: Any, what: str, categories: tuple[str, ...]) -> MissingValues:
    rules = {rule.value: rule for rule in MissingRule if rule is not MissingRule.CONSTANT}
    if isinstance(value, str) and value in rules:
        return MissingValues(rules[value])
    if isinstance(value, str) and value in categories:
        return MissingValues(MissingRule.CONSTANT, category=value)
    if is_finite(value):
        if categories:
            return MissingValues(MissingRule.CONSTANT, category=str(value))
        return MissingValues(MissingRule.CONSTANT, float(value))
    known = ", ".join(map(repr, rules))
    raise InvalidArgument(
        f"{what} is {said(value)}; it must be one of {known}, or the "
        f"{'category' if categories else 'number'} that is read instead"
    )
