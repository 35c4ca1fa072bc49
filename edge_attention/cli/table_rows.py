"""Rows of files of tables for a trained model: read as nodes read them, made inputs as the job says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.jobs.columns import Columns, Inputs, WhereMissing, prepared
from edge_attention.jobs.federated_job import FederatedModel
from edge_attention.jobs.job import FusionJob
from edge_attention.jobs.job_file import read_job
from edge_attention.tables.arrays import arrays_of
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table
from edge_attention.tables.table import Table

__all__ = ["RowFiles"]


class RowFiles:
    """What `--rows FILE`, or of a fusion job `--rows NODE=FILE`, gives by a job's columns.

    Attributes:
        ids: of the rows, in their order; empty: the files have none.

    Raises:
        click.BadParameter: files are named otherwise than the job's kind needs.
        InvalidArgument: the job or a file cannot be read, or files of two nodes have other rows.
    """

    def __init__(self, job: Path, files: Sequence[str]) -> None:
        said = read_job(job)
        self._parts: list[tuple[str, str, Table, Inputs, Columns, WhereMissing | None]] = []
        if isinstance(said, FusionJob):
            pairs = [_named(file, [one.node for one in said.encoders]) for file in files]
            named = dict(pairs)
            if len(named) < len(pairs):
                raise click.BadParameter("a node is given two files; give each one", param_hint="--rows")
            tables = _aligned({file: read_table(*split_file(file)) for file in named.values()})
            for one in said.encoders:
                if one.node in named:
                    file = named[one.node]
                    rest = (one.inputs, one.columns, one.missing_values)
                    self._parts.append((f"{one.node}/", file, tables[file], *rest))
        else:
            if len(files) != 1:
                raise click.BadParameter("give one file; its rows are the samples", param_hint="--rows")
            inputs = said.model.inputs if isinstance(said.model, FederatedModel) else {}
            tables = {files[0]: read_table(*split_file(files[0]))}
            self._parts.append(("", files[0], tables[files[0]], inputs, said.columns, said.missing_values))
        ids = next(iter(tables.values())).ids
        self.ids = () if ids is None else tuple(ids[row].decode() for row in range(len(ids)))

    def arrays(self, takes: Sequence[str]) -> dict[str, Array]:
        """The rows by input. `takes`: the trained model's inputs; what else the job reads, as labels, is not
        looked for.

        Raises:
            InvalidArgument: a file lacks a column, or a row of it a value.
        """
        found: dict[str, Array] = {}
        for prefix, file, table, inputs, columns, missing in self._parts:
            single, spec = prepared(inputs, columns, missing, "inputs")
            wanted = [name.removeprefix(prefix) for name in takes if name.startswith(prefix)]
            # A fusion model's inputs that say whether a node has a sample are no columns.
            wanted = [name for name in wanted if not prefix or name in single]
            texts = {
                name: spec.inputs[name].columns if name in spec.inputs else (single.get(name, name),)
                for name in wanted
            }
            found |= {prefix + name: array for name, array in arrays_of(table, texts, spec, file).items()}
        return found


def _named(text: str, nodes: Sequence[str]) -> tuple[str, str]:
    """The node and the file of `NODE=FILE`."""
    node, _, file = text.partition("=")
    if node not in nodes or not file:
        raise click.BadParameter(
            f"{text!r}: each part of a fusion job has rows of its own: NODE=FILE, NODE of {', '.join(nodes)}",
            param_hint="--rows",
        )
    return node, file


def _aligned(tables: dict[str, Table]) -> dict[str, Table]:
    """The tables with a sample at one place in all: by ids, or by rows' numbers where none has ids."""
    (first, lead), *others = tables.items()
    found = {first: lead}
    for file, table in others:
        counts = f"{first} has {_rows(lead):,} rows and {file} {_rows(table):,}"
        if lead.ids is None or table.ids is None:
            if lead.ids is not table.ids or _rows(lead) != _rows(table):
                raise InvalidArgument(f"{counts}, and not both have ids to match them by; give ids to both")
            found[file] = table
            continue
        place = {table.ids[row]: row for row in range(_rows(table))}
        rows = [place.get(lead.ids[row], -1) for row in range(_rows(lead))]
        if len(place) != len(rows) or -1 in rows:
            lacks = "" if -1 not in rows else f", and not {lead.ids[rows.index(-1)].decode()!r}"
            raise InvalidArgument(f"{counts}{lacks}; give each the same samples")
        found[file] = table.take(np.array(rows, np.int64))
    return found


def _rows(table: Table) -> int:
    return len(next(iter(table.columns.values())))
