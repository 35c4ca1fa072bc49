"""Rows that lack values, before the first round: how many are whole on each node, and the means of the fleet.

Asked of every node, which lets it leave or not (roles `complete` and `means`, releases of their own): a
count of rows; and of each column whose mean stands for what is missing the sum of its values, and how many.
A mean is that of all rows that have a value, whether a run holds them out or leaves them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator.engine.returned import close
from aggregator.engine.spool import SpooledTensor
from aggregator.fleet.columns import TableView
from aggregator.store.tensor_file import Spec
from aggregator.training.federated.asker import Asker
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.federated.push import Push
from aggregator.training.gap_reads import COMPLETE, MEANS, reads
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, InvalidArgument
from edge_attention.core.messages.program import Batch, Instruction, Return, Run, Stored, Value
from edge_attention.core.tensors import Array

__all__ = ["NodeGaps", "without_gaps"]

MAX_SHOWN = 8
"""Nodes, or columns, that a sentence names."""


@dataclass(frozen=True)
class NodeGaps:
    """What a node tells. `sums`, `counts`: float64, a number for each column of the view's means."""

    node: str
    rows: int
    complete: int
    sums: Array
    counts: Array


async def without_gaps(
    plan: FederatedPlan, view: TableView, rows: Mapping[str, int], asker: Asker
) -> tuple[dict[str, int], TableView, str]:
    """The rows each node trains on, the view with its means, and what whoever trains should know, if any.

    `rows`: node -> how many its dataset has.

    Raises:
        FailedPrecondition: a node does not tell, and why.
        InvalidArgument: a node has no whole row; or no node has a value in a column.
    """
    if not (view.complete or view.means):
        return dict(rows), view, ""
    tasks = [asyncio.create_task(_ask(asker, plan, view, n, rows[n]), name=n) for n in sorted(rows)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, ended, strict=True):
        if isinstance(result, EdgeAttentionError):
            what = " and ".join(
                text
                for text, wanted in (("how many of its rows are whole", view.complete), ("means", view.means))
                if wanted
            )
            raise FailedPrecondition(f"node {task.get_name()!r} does not tell {what}: {result.message}")
        if isinstance(result, Exception):
            raise result
    return settled(view, [each for each in ended if isinstance(each, NodeGaps)])


def settled(view: TableView, nodes: list[NodeGaps]) -> tuple[dict[str, int], TableView, str]:
    """What comes of what all nodes told. Raises InvalidArgument, as `without_gaps`."""
    dropping = ", ".join(repr(each.name) for each in view.complete[:MAX_SHOWN])
    if empty := [each.node for each in nodes if not each.complete]:
        raise InvalidArgument(
            f"dataset {view.dataset!r} of node {', '.join(empty[:MAX_SHOWN])} has no row left: each lacks a "
            f"value in one of the columns that rows are dropped by ({dropping}); name another rule for them"
        )
    means = {}
    for at, column in enumerate(view.means):
        count = sum(float(each.counts[at]) for each in nodes)
        if not count:
            raise InvalidArgument(
                f"column {column.name!r} has no value on any node, and so no mean; leave it out of the job"
            )
        means[column] = sum(float(each.sums[at]) for each in nodes) / count
    left = {each.node: each.rows - each.complete for each in nodes if each.complete < each.rows}
    note = ""
    if left:
        shown = ", ".join(f"{count:,} of node {node}" for node, count in list(left.items())[:MAX_SHOWN])
        more = f" and of {len(left) - MAX_SHOWN} more" if len(left) > MAX_SHOWN else ""
        note = f"{sum(left.values()):,} rows lack a value and are left out: {shown}{more}"
    return {each.node: each.complete for each in nodes}, view.filled(means), note


async def _ask(asker: Asker, plan: FederatedPlan, view: TableView, node: str, rows: int) -> NodeGaps:
    wanted: dict[str, Spec] = {}
    instructions: list[Instruction] = []
    returned: list[Instruction] = []
    double = np.dtype(np.float64)
    each = (len(view.means),)
    outputs: dict[str, dict[str, tuple[int, ...]]] = {
        COMPLETE: {"rows": ()},
        MEANS: {"sums": each, "counts": each},
    }
    for role, tensors in reads(view).items():
        # All rows at once: to name them would be a number more a row on the way.
        instructions.append(Batch(view.dataset, {}, None, tensors=tuple(tensors.values())))
        inputs: dict[str, Value] = {name: Stored(tensor.stored) for name, tensor in tensors.items()}
        stored = {name: f"task/told/{name}" for name in outputs[role]}
        instructions.append(Run(plan.graphs[role].digest, inputs, stored))
        returned += [Return(at, name) for name, at in stored.items()]
        wanted |= {name: (double, shape) for name, shape in outputs[role].items()}
    told = (*instructions, *returned)
    answer = await asker.ask(node, 0, told, {}, Push(), wanted, lambda there: None)
    arrays = {
        name: tensor.array() if isinstance(tensor, SpooledTensor) else tensor
        for name, tensor in answer.tensors.items()
    }
    close(answer.tensors)
    complete = float(arrays["rows"].reshape(-1)[0]) if "rows" in arrays else float(rows)
    none = np.zeros(len(view.means))
    sums, counts = arrays.get("sums", none), arrays.get("counts", none)
    sound = _is_count(complete, rows) and np.isfinite(sums).all()
    if not (sound and all(_is_count(float(count), rows) for count in counts)):
        raise InvalidArgument("what it says of its rows is no count of them, or no number")
    return NodeGaps(node, rows, int(complete), sums, counts)


def _is_count(number: float, most: int) -> bool:
    """Whether a node's number is a count of up to `most`; not by `in range`, which tries each for a float."""
    return 0 <= number <= most and number.is_integer()
