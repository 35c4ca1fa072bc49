"""A table's rows as arrays, as a job says that columns become inputs: for rows handed to a trained model.

What nodes do with their own tables while they train is in edge_node/data/views.py. Here every row has to be
whole, or the job say what is read instead: what is dropped there is an error that names the line. The
means of all nodes come with the run, as numbers that it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edge_attention.core.categories import number_of, same_for_all
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import ColumnSpec, MissingRule, TableSpec
from edge_attention.core.tensors import Array
from edge_attention.tables.column import NO_VALUES, TableColumn
from edge_attention.tables.fit import fit, rule_of
from edge_attention.tables.table import Table

__all__ = ["arrays_of"]

_REMEDIES = {
    MissingRule.REFUSE: ", and the job says nothing that is read instead: give the value",
    MissingRule.DROP: "; the job leaves such rows out (missing = drop): give the value, or take the row out "
    "of the file",
    MissingRule.MEAN: "; the job reads the mean of its nodes there, which the run does not tell (it is of an "
    "earlier release, or reads the column as whole numbers, too): give the value",
}
"""What a sentence on a missing value ends with, by the rule that does not stand for it."""


def arrays_of(
    table: Table, inputs: Mapping[str, tuple[str, ...]], spec: TableSpec, what: str
) -> dict[str, Array]:
    """The arrays of `inputs`, each [rows, columns side by side]; of one column not listed its own shape.

    Args:
        inputs: input -> its columns; those listed by the job are in `spec.inputs`.
        what: the file, in errors.

    Raises:
        InvalidArgument: a column is not there, or is not what it is read as: which, and in which line.
    """
    found = {}
    table = _with_empty(table, {column for columns in inputs.values() for column in columns}, spec)
    for name, columns in inputs.items():
        if strange := [column for column in columns if column == "*" or ":" in column]:
            raise InvalidArgument(
                f"{what}: input {name} is made of {strange[0]!r}, which only a node's datasets say; name its "
                "columns in the job, or give arrays with --input"
            )
        own = replace(spec, inputs={}, columns={c: spec.columns[c] for c in columns if c in spec.columns})
        if refused := [why for one in fit(table, {c: c for c in columns}, own) for why in one.refused]:
            have = ", ".join(table.columns)
            raise InvalidArgument(f"{what}: input {name}: {'; '.join(refused)}; its columns are {have}")
        parts = [_column(table, column, own, what) for column in columns]
        if name in spec.inputs:
            parts = [np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)]
        found[name] = parts[0]
    return found


def _with_empty(table: Table, names: set[str], spec: TableSpec) -> Table:
    """The table with those of the columns that were set aside as no row has a value: of few rows, or of one,
    that is no wonder, and the job says what stands for a missing value."""
    rows = next(map(len, table.columns.values()), 0)
    empty = {}
    for name in sorted(names):
        if table.set_aside.get(name) == NO_VALUES and rows:
            words = bool(spec.columns.get(name, ColumnSpec()).categories)
            values = np.full(rows, -1, np.int32) if words else np.zeros(rows, np.int8)
            empty[name] = TableColumn(values, np.ones(rows, np.bool_), () if words else None)
    return replace(table, columns={**table.columns, **empty}) if empty else table


def _column(table: Table, name: str, spec: TableSpec, what: str) -> Array:
    """[rows, ...]; as categories their places, int64, or one-hot float32 [rows, categories]."""
    column, said = table.columns[name], spec.columns.get(name, ColumnSpec())
    if said.categories and column.values.ndim > 1:
        raise InvalidArgument(f"{what}: column {name!r} has several numbers a row; categories have one")
    rule = rule_of(column, said, spec)
    if column.missing is not None and column.missing.any() and rule.rule is not MissingRule.CONSTANT:
        where = table.place(int(np.argmax(column.missing)))
        raise InvalidArgument(f"{what}: column {name!r} lacks a value in {where}{_REMEDIES[rule.rule]}")
    if not said.categories:
        if column.missing is None:
            return column.values
        return _filled(column.values, column.missing, rule.number)
    places = _places(column, said)
    if column.missing is not None and column.missing.any():
        places[column.missing] = [same_for_all(one) for one in said.categories].index(
            same_for_all(rule.category)
        )
    return np.eye(len(said.categories), dtype=np.float32)[places] if said.one_hot else places


def _filled(values: Array, missing: Array, number: float) -> Array:
    """The values with `number` where one is missing, in a type that has room for both."""
    whole = values.dtype.kind in "biu" and number.is_integer() and abs(number) < 2**63
    kind = np.result_type(values.dtype, np.min_scalar_type(int(number))) if whole else np.dtype(np.float64)
    found = values.astype(kind)
    found[missing] = int(number) if whole else number
    return found


def _places(column: TableColumn, said: ColumnSpec) -> Array:
    """int64 [rows]: of each value its place among the categories; anything where it is missing."""
    if column.words is not None:
        known = {same_for_all(category): place for place, category in enumerate(said.categories)}
        return np.array([*(known[same_for_all(word)] for word in column.words), 0], np.int64)[column.values]
    places = np.zeros(len(column), np.int64)
    kind = column.values.dtype if column.values.dtype.kind == "f" else np.dtype(np.float64)
    for place, category in enumerate(said.categories):
        if (number := number_of(category)) is not None:
            places[column.values == kind.type(number)] = place
    return places
