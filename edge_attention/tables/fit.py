"""Whether a file fits a job, before any node has it: what becomes which input, and what would be refused.

As `data check` it says no value: of words that are none of a job's categories only how many rows have one,
and where the first is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge_attention.core.categories import number_of, same_for_all
from edge_attention.core.messages.table import ColumnSpec, MissingRule, MissingValues, TableSpec
from edge_attention.core.tensors import Array
from edge_attention.tables.column import TableColumn
from edge_attention.tables.table import Table

__all__ = ["InputFit", "fit", "rule_of"]

_ALL = "*"


@dataclass(frozen=True)
class InputFit:
    """One input.

    Attributes:
        columns: what it is made of, each with what is done to it.
        refused: why it would be.
        left_out: rows that lack a value in a column, of any input, whose rule is to leave such rows out.
    """

    name: str
    columns: tuple[str, ...]
    refused: tuple[str, ...]
    left_out: int = 0


def fit(
    table: Table,
    inputs: Mapping[str, str],
    spec: TableSpec,
    whole: Collection[str] = (),
) -> list[InputFit]:
    """What becomes of each input that the job names, of the dataset that `table` is.

    Columns of other datasets (`other:column`) are named and not looked at.

    Args:
        whole: inputs that are known to take whole numbers, which a mean seldom is.
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
    dropped = np.zeros(len(next(iter(table.columns.values()), ())), bool)
    found = []
    for name, texts in named.items():
        every = [one for text in texts for one in (rest if text == _ALL else [text])]
        columns: list[str] = []
        refused: list[str] = []
        meant = spec.missing is not None and spec.missing.rule is MissingRule.MEAN
        own = replace(spec, missing=None) if meant and name in whole else spec
        for text in every:
            column = table.columns.get(text)
            said = spec.columns.get(text, ColumnSpec())
            if column is not None:
                columns.append(f"{text} ({_becomes(column, said, own)})")
                refused += _wrong(table, text, column, said, own, name in whole)
                if column.missing is not None and rule_of(column, said, own).rule is MissingRule.DROP:
                    dropped |= column.missing
            elif ":" in text:
                columns.append(f"{text} (of another dataset)")
            else:
                why = table.set_aside.get(text)
                refused.append(f"column {text!r} " + (f"is set aside: {why}" if why else "is not there"))
        if not every:
            refused.append("no column of numbers is left for '*'")
        found.append(InputFit(name, tuple(columns), tuple(refused)))
    if strangers := [n for n in spec.columns if n not in table.columns and ":" not in n]:
        aside = [name for name in strangers if name in table.set_aside]
        what = "set aside" if aside else "not there"
        why = f"columns.{(aside or strangers)[0]} says how a column is read that is {what}"
        if found and not any((aside or strangers)[0] in texts for texts in named.values()):  # else it is said
            found[-1] = replace(found[-1], refused=(*found[-1].refused, why))
    if found and dropped.size and dropped.all():
        why = "no row is left: each lacks a value in one of the columns that rows are dropped by"
        found[-1] = replace(found[-1], refused=(*found[-1].refused, why))
    return [replace(one, left_out=int(dropped.sum())) for one in found]


def _becomes(column: TableColumn, said: ColumnSpec, spec: TableSpec) -> str:
    if said.categories:
        what = f"{len(said.categories)} categories{', one-hot' if said.one_hot else ''}"
    else:
        what = "words" if column.words is not None else "numbers"
    if column.missing is None:
        return what
    done = {
        MissingRule.REFUSE: "refused",
        MissingRule.DROP: "their rows are left out",
        MissingRule.MEAN: "read as the mean of all nodes",
        MissingRule.CONSTANT: "read as what the job says",
    }
    return f"{what}; {int(column.missing.sum())} missing, {done[rule_of(column, said, spec).rule]}"


def rule_of(column: TableColumn, said: ColumnSpec, spec: TableSpec) -> MissingValues:
    """What is done where a value is missing, as aggregator/fleet/columns has it."""
    refuse = MissingValues(MissingRule.REFUSE)
    if said.missing is not None or spec.missing is None:
        return said.missing or refuse
    numbers = spec.missing.rule in (MissingRule.MEAN, MissingRule.CONSTANT)
    vectors = spec.missing.rule is MissingRule.MEAN and column.values.ndim > 1
    return refuse if vectors or (said.categories and numbers) else spec.missing


def _wrong(
    table: Table,
    name: str,
    column: TableColumn,
    said: ColumnSpec,
    spec: TableSpec,
    whole: bool,
) -> list[str]:
    found = []
    if said.missing is not None and said.missing.rule is MissingRule.MEAN:
        if column.values.ndim > 1:
            found.append(f"column {name!r} has several numbers a row, and no one mean; name another rule")
        elif whole:
            found.append(
                f"column {name!r} is read as whole numbers, which a mean seldom is; name another rule"
            )
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
    rule = rule_of(column, said, spec).rule
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
