"""Rows of files of tables for a trained model: read as nodes read them, made inputs as its run's job says."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click
import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import RowsRead
from edge_attention.core.tensors import Array
from edge_attention.jobs.row_reads import columns_of
from edge_attention.tables.arrays import arrays_of
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table
from edge_attention.tables.table import Table

__all__ = ["RowFiles"]


class RowFiles:
    """What `--rows FILE`, or of a fusion run `--rows NODE=FILE`, gives by a job's columns.

    Attributes:
        ids: of the rows, in their order; empty: the files have none.

    Raises:
        click.BadParameter: files are named otherwise than the run's kind needs.
        InvalidArgument: a file cannot be read, or files of two nodes have other rows.
    """

    def __init__(self, files: Sequence[str], reads: Sequence[RowsRead]) -> None:
        """`reads`: how the run reads rows."""
        self._parts: list[tuple[str, str, Table, RowsRead]] = []
        by_node = {each.node: each for each in reads if each.node}
        if by_node:
            pairs = [_named(file, list(by_node)) for file in files]
            named = dict(pairs)
            if len(named) < len(pairs):
                raise click.BadParameter("a node is given two files; give each one", param_hint="--rows")
            tables = _aligned({file: read_table(*split_file(file)) for file in named.values()})
            for node, each in by_node.items():
                if node in named:
                    self._parts.append((f"{node}/", named[node], tables[named[node]], each))
        else:
            if len(files) != 1:
                raise click.BadParameter("give one file; its rows are the samples", param_hint="--rows")
            tables = {files[0]: read_table(*split_file(files[0]))}
            self._parts.append(("", files[0], tables[files[0]], reads[0]))
        ids = next(iter(tables.values())).ids
        self.ids = () if ids is None else tuple(ids[row].decode() for row in range(len(ids)))

    def arrays(self, takes: Sequence[str], spare: Collection[str] = ()) -> dict[str, Array]:
        """The rows by input.

        Args:
            takes: the trained model's inputs; what else the job reads, as labels, is not looked for.
            spare: those that some output does not need, as labels of a loss that is in the model: left out
                where the file has none of their columns.

        Raises:
            InvalidArgument: a file lacks a column, or a row of it a value.
        """
        found: dict[str, Array] = {}
        for prefix, file, table, reads in self._parts:
            wanted = [name.removeprefix(prefix) for name in takes if name.startswith(prefix)]
            # A fusion model's inputs that say whether a node has a sample are no columns.
            wanted = [name for name in wanted if not prefix or name in reads.inputs]
            texts = {name: columns_of(reads, name) for name in wanted}
            have = table.columns.keys() | table.set_aside.keys()
            texts = {
                name: columns
                for name, columns in texts.items()
                if prefix + name not in spare or have.intersection(columns)
            }
            read = arrays_of(table, texts, reads.table, file)
            found |= {prefix + name: array for name, array in read.items()}
        return found


def _named(text: str, nodes: Sequence[str]) -> tuple[str, str]:
    """The node and the file of `NODE=FILE`."""
    node, _, file = text.partition("=")
    if node not in nodes or not file:
        raise click.BadParameter(
            f"{text!r}: each part of a fusion run has rows of its own: NODE=FILE, NODE of {', '.join(nodes)}",
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
