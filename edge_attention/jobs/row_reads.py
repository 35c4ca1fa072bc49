"""How a job reads rows of tables, as its run keeps it; and in what a file says otherwise than the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_attention.core.categories import same_for_all
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import ColumnSpec, MissingRule, MissingValues
from edge_attention.core.messages.training import RowsRead
from edge_attention.jobs.columns import prepared
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel
from edge_attention.jobs.job import Encoder, FusionJob, Head
from edge_attention.jobs.split_job import SplitJob

__all__ = ["columns_of", "differences", "reads_of", "require_same"]

SHOWN = 5
"""Differences that an error names; entries of two lists that are alike are left out beyond."""
ALL = "*"
"""All columns of numbers that are not named besides."""
WIDTH = 200
"""Characters of a list that an error has."""


def reads_of(job: FusionJob | FederatedJob | SplitJob) -> tuple[RowsRead, ...]:
    """How `job` reads rows, as a run of it would say. Raises InvalidArgument."""
    if isinstance(job, FusionJob):
        parts: list[tuple[str, Encoder | Head, str]] = [(one.node, one, "inputs") for one in job.encoders]
        return tuple(
            RowsRead(node, *prepared(part.inputs, part.columns, part.missing_values, what))
            for node, part, what in (*parts, ("", job.head, "head.inputs"))
        )
    inputs = job.model.inputs if isinstance(job.model, FederatedModel) else {}
    return (RowsRead("", *prepared(inputs, job.columns, job.missing_values, "inputs")),)


def columns_of(reads: RowsRead, name: str) -> tuple[str, ...]:
    """The columns that input `name` is made of."""
    listed = reads.table.inputs.get(name)
    return listed.columns if listed is not None else (reads.inputs.get(name, name),)


def require_same(here: Sequence[RowsRead], there: Sequence[RowsRead], file: str, run: str) -> None:
    """Refuse a job's `file` that reads rows otherwise than the run.

    Raises:
        InvalidArgument: in what they differ.
    """
    if found := differences(here, there):
        more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        raise InvalidArgument(
            f"{file} is not the job that run {run} was trained by: {'; '.join(found[:SHOWN])}{more}. Leave "
            "it out: rows are read as the run's own job says"
        )


def differences(here: Sequence[RowsRead], there: Sequence[RowsRead]) -> list[str]:
    """In what a file (`here`) reads rows otherwise than a run (`there`), a clause each."""
    ours, theirs = ({reads.node: reads for reads in each} for each in (here, there))
    if set(ours) != set(theirs):
        return [f"its rows are on {_nodes(ours)}, the run's on {_nodes(theirs)}"]
    return [
        f"{f'node {node}: ' if node else ''}{clause}"
        for node in ours
        for clause in _differ(ours[node], theirs[node])
    ]


def _nodes(reads: Mapping[str, RowsRead]) -> str:
    return ", ".join(node for node in reads if node) or "nodes that are alike"


def _differ(here: RowsRead, there: RowsRead) -> list[str]:
    found = []
    inputs = (*there.inputs, *there.table.inputs, *here.inputs, *here.table.inputs)
    for name in dict.fromkeys(inputs):
        ours, theirs = columns_of(here, name), columns_of(there, name)
        if ALL in ours and ALL not in theirs and set(ours) - {ALL} <= set(theirs):
            continue  # which they are is found when a run begins
        if ours != theirs:
            found.append(f"input {name} is made of {_lists(ours, theirs)}")
        elif (name in here.table.inputs) != (name in there.table.inputs):
            found.append(f"input {name} is {_shape(here, name)}, in the run {_shape(there, name)}")
    for name in dict.fromkeys((*there.table.columns, *here.table.columns)):
        own, run = (each.table.columns.get(name, ColumnSpec()) for each in (here, there))
        ours, theirs = (tuple(map(same_for_all, each.categories)) for each in (own, run))
        if ours != theirs:
            how = "its categories in another order: " if sorted(ours) == sorted(theirs) else "categories "
            found.append(f"column {name} has {how}{_lists(own.categories, run.categories)}")
        if own.one_hot != run.one_hot:
            found.append(f"column {name} is {_one_hot(own)}, in the run {_one_hot(run)}")
        if not _found_mean(own.missing or here.table.missing, run.missing):
            found += _rules(f"column {name}: missing", own.missing, run.missing)
    refuse = MissingValues(MissingRule.REFUSE)
    return found + _rules("missing_values", here.table.missing or refuse, there.table.missing or refuse)


def _found_mean(ours: MissingValues | None, theirs: MissingValues | None) -> bool:
    """Whether `theirs` may be the mean that `ours` asks for: which it is is found when a run begins."""
    means = ours is not None and ours.rule is MissingRule.MEAN
    return means and theirs is not None and theirs.rule is MissingRule.CONSTANT and not theirs.category


def _lists(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Two lists that differ; long ones from where they do."""
    alike = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    at = min(len(ours), len(theirs)) if alike is None else alike
    skipped = at if at > SHOWN else 0

    def said(each: Sequence[str]) -> str:
        return ("... " if skipped else "") + (", ".join(each[skipped:])[:WIDTH] or "none")

    return f"{said(ours)}, in the run {said(theirs)}"


def _shape(reads: RowsRead, name: str) -> str:
    return "a list of columns" if name in reads.table.inputs else "one column"


def _one_hot(column: ColumnSpec) -> str:
    return "one_hot" if column.one_hot else "not one_hot"


def _rules(what: str, here: MissingValues | None, there: MissingValues | None) -> list[str]:
    ours, theirs = _rule(here), _rule(there)
    return [f"{what} is {ours}, in the run {theirs}"] if ours != theirs else []


def _rule(rule: MissingValues | None) -> str:
    if rule is None:
        return "as for all columns"
    if rule.rule is MissingRule.CONSTANT:
        return same_for_all(rule.category) if rule.category else repr(rule.number)
    return str(rule.rule.value)
