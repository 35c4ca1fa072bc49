"""Whether a file fits a job, before any node has it: what becomes which input, and what would be refused.

As `data check` it says no value: of words that are none of a job's categories only how many rows have one,
and where the first is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_attention.core.categories import number_of, same_for_all
from edge_attention.core.messages.table import ColumnSpec, MissingRule, MissingValues, TableSpec
from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.table import Table

__all__ = ["InputFit", "fit"]

_ALL = "*"


@dataclass(frozen=True)
class InputFit:
    """One input. `columns`: what it is made of, each with what is done to it. `refused`: why it would be."""

    name: str
    columns: tuple[str, ...]
    refused: tuple[str, ...]


def fit(table: Table, inputs: Mapping[str, str], spec: TableSpec) -> list[InputFit]:
    """What becomes of each input that the job names, of the dataset that `table` is.

    Columns of other datasets (`other:column`) are named and not looked at.
    """
    named = {
        name: spec.inputs[name].columns if name in spec.inputs else (inputs[name],)
        for name in dict.fromkeys((*inputs, *spec.inputs))
    }
    used = {text for texts in named.values() for text in texts}
    rest = [
        name
        for name, column in table.columns.items()
        if name not in used and column.words is None and column.values.ndim < 3
    ]
    found = []
    for name, texts in named.items():
        whole = [one for text in texts for one in (rest if text == _ALL else [text])]
        columns: list[str] = []
        refused: list[str] = []
        for text in whole:
            column = table.columns.get(text)
            said = spec.columns.get(text, ColumnSpec())
            if column is not None:
                columns.append(f"{text} ({_becomes(column, said, spec)})")
                refused += _wrong(table, text, column, said, spec)
            elif ":" in text:
                columns.append(f"{text} (of another dataset)")
            else:
                why = table.set_aside.get(text)
                refused.append(f"column {text!r} " + (f"is set aside: {why}" if why else "is not there"))
        if not whole:
            refused.append("no column of numbers is left for '*'")
        found.append(InputFit(name, tuple(columns), tuple(refused)))
    return found


def _becomes(column: TableColumn, said: ColumnSpec, spec: TableSpec) -> str:
    if said.categories:
        what = f"{len(said.categories)} categories{', one-hot' if said.one_hot else ''}"
    else:
        what = "words" if column.words is not None else "numbers"
    if column.missing is None:
        return what
    rule = _rule(said, spec)
    done = "read as what the job says" if rule.rule is MissingRule.CONSTANT else "refused"
    return f"{what}; {int(column.missing.sum())} missing, {done}"


def _rule(said: ColumnSpec, spec: TableSpec) -> MissingValues:
    refuse = MissingValues(MissingRule.REFUSE)
    if said.missing is not None or spec.missing is None:
        return said.missing or refuse
    numbers = spec.missing.rule in (MissingRule.MEAN, MissingRule.CONSTANT)
    return refuse if said.categories and numbers else spec.missing


def _wrong(table: Table, name: str, column: TableColumn, said: ColumnSpec, spec: TableSpec) -> list[str]:
    found = []
    if said.categories:
        outside = _outside(column, said)
        if count := int(outside.sum()):
            place = table.place(int(np.argmax(outside)))
            rows = "1 row has" if count == 1 else f"{count:,} rows have"
            found.append(
                f"column {name!r}: {rows} a value that is none of the job's categories, the first in {place}"
            )
    elif column.words is not None:
        first = table.first_words.get(name, 0)
        late = f" ({table.place(first)} is the first that is no number)" if first else ""
        found.append(f"column {name!r} holds words{late}: list the categories that they are read as")
    rule = _rule(said, spec).rule
    if column.missing is not None and rule in (MissingRule.DROP, MissingRule.MEAN):
        found.append(f"column {name!r} lacks values, and {rule.value!r} is not carried out by this release")
    if column.missing is not None and rule is MissingRule.REFUSE:
        place = table.place(int(np.argmax(column.missing)))
        lacks = f"column {name!r} lacks {int(column.missing.sum()):,} values, the first in {place}"
        found.append(f"{lacks}: say what is read instead")
    return found


def _outside(column: TableColumn, said: ColumnSpec) -> Array:
    """bool [rows]: a value that is none of the categories; not where it is missing."""
    if column.words is not None:
        known = {same_for_all(category) for category in said.categories}
        good = np.array([same_for_all(word) in known for word in column.words] + [True])
        return np.asarray(~good[column.values])  # -1, missing, is the last
    numbers = [number for category in said.categories if (number := number_of(category)) is not None]
    kind = column.values.dtype if column.values.dtype.kind == "f" else np.dtype(np.float64)
    inside = np.isin(column.values, np.array(numbers, kind)).reshape(len(column), -1).all(axis=1)
    return np.asarray(~inside if column.missing is None else ~inside & ~column.missing)
