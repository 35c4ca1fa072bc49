"""Before the first round: whether every node's labels are what the loss takes, and which class nobody has.

Asked of the nodes, which let it leave or not (role `labels`, a release of its own): sums over all rows, never
a row. A node that does not tell is trained on all the same; what is wrong then fails in the first round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.engine.returned import close
from aggregator.engine.spool import SpooledTensor
from aggregator.training.federated.asker import Asker
from aggregator.training.federated.plan import LabelPlan
from aggregator.training.federated.programs import Programs
from aggregator.training.federated.push import Push
from aggregator.training.federated.samples import NodeSamples
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages.training import FederatedJob
from edge_attention.core.tensors import Array

log = logging.getLogger(__name__)

SECONDS = 30.0
"""How long nodes are waited for; whoever takes longer is not checked."""
MAX_SHOWN = 8
"""Nodes, or classes, that a message names."""


@dataclass(frozen=True)
class NodeLabels:
    """What a node tells of its labels. `seen`: 1 where a class is there."""

    node: str
    outside: int
    strange: int
    lowest: int
    highest: int
    seen: Array


async def check_labels(
    run: str,
    asker: Asker,
    programs: Programs,
    samples: Mapping[str, NodeSamples],
    seconds: float,
    say: Callable[[str], None],
) -> str:
    """What whoever trains should know of the labels, or nothing.

    `say` is told whose answer is waited for; nothing when that is over.

    Raises:
        InvalidArgument: labels, or weights of rows, that the loss cannot take: on which nodes, which column.
    """
    wanted = programs.plan.label
    if wanted is None or "labels" not in programs.plan.graphs:
        return ""
    found, untold = await ask_labels(asker, programs, samples, seconds, say)
    for node, why in untold.items():
        log.warning("run %s: labels of node %s are not checked: %s", run, node, why)
    if wrong := [text for node in found if (text := wrong_labels(programs.job, wanted, node))]:
        more = f"; and {len(wrong) - MAX_SHOWN} more nodes" if len(wrong) > MAX_SHOWN else ""
        raise InvalidArgument("; ".join(wrong[:MAX_SHOWN]) + more)
    return "" if untold else missing_classes(wanted, found)


async def ask_labels(
    asker: Asker,
    programs: Programs,
    samples: Mapping[str, NodeSamples],
    seconds: float,
    say: Callable[[str], None],
) -> tuple[list[NodeLabels], dict[str, str]]:
    """What nodes tell of their labels; and, by node, why others do not. The plan has a graph for it."""
    tasks = [asyncio.create_task(_ask(asker, programs, s), name=s.node) for s in samples.values()]
    try:
        await asyncio.wait(tasks, timeout=min(1.0, seconds))
        if late := [task for task in tasks if not task.done()]:
            names = ", ".join(task.get_name() for task in late[:MAX_SHOWN])
            others = f" and {len(late) - MAX_SHOWN} more" if len(late) > MAX_SHOWN else ""
            say(f"{names}{others} to look at the labels")
            await asyncio.wait(late, timeout=max(0.0, min(seconds, SECONDS) - 1.0))
    finally:
        say("")
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    found: list[NodeLabels] = []
    untold: dict[str, str] = {}
    for task, result in zip(tasks, ended, strict=True):
        if isinstance(result, NodeLabels):
            found.append(result)
            continue
        told = result.message if isinstance(result, EdgeAttentionError) else "it did not answer in time"
        untold[task.get_name()] = told
    return found, untold


def wrong_labels(job: FederatedJob, wanted: LabelPlan, found: NodeLabels) -> str:
    """What is wrong with a node's labels, and what to do; nothing if they can be trained on."""
    bound = job.model.inputs
    where = f"dataset {job.dataset!r} of node {found.node!r}"
    if found.strange:
        column = bound.get(wanted.weights, wanted.weights)
        return (
            f"{found.strange:,} weights of rows in column {column!r}, {where}, cannot be used: a weight is a "
            f"number that is 0 or above and at most {wanted.most:g}"
        )
    if not found.outside:
        return ""
    column = bound.get(wanted.labels, wanted.labels)
    what = f"{found.outside:,} labels in column {column!r}, {where}, cannot be used"
    if not wanted.classes and not wanted.binary:
        return f"{what}: they are NaN or infinite; fill them in, or leave those rows out"
    low, high = wanted.reach
    least = f"{low} or less" if found.lowest <= low else str(found.lowest)
    most = f"{high} or more" if found.highest >= high else str(found.highest)
    if wanted.binary:
        return f"{what}: labels hold {least} to {most}, and are to be 0 to 1, none missing; recode them"
    remedy = f"number the classes 0 to {wanted.classes - 1}, or train a model with more"
    if found.lowest == 1 and found.highest == wanted.classes:
        remedy = "number the classes from 0, not from 1"
    elif found.lowest < 0:
        remedy += "; labels that are to be ignored are named by the loss's ignore_index"
    return f"{what}: labels hold {least} to {most}, the model has classes 0 to {wanted.classes - 1}; {remedy}"


def missing_classes(wanted: LabelPlan, found: Sequence[NodeLabels]) -> str:
    """Of which classes no node has a label; nothing if all are there."""
    if not wanted.classes or not found:
        return ""
    seen = np.maximum.reduce([node.seen for node in found])
    absent = np.flatnonzero(seen < 0.5).tolist()
    if not absent:
        return ""
    names = ", ".join(map(str, absent[:MAX_SHOWN]))
    more = f" and {len(absent) - MAX_SHOWN:,} more" if len(absent) > MAX_SHOWN else ""
    return f"no node has a label of class {names}{more}, of {wanted.classes:,} classes"


async def _ask(asker: Asker, programs: Programs, samples: NodeSamples) -> NodeLabels:
    instructions, tensors = await asyncio.to_thread(programs.labels, samples.rows)
    wanted = programs.label_specs
    answer = await asker.ask(samples.node, 0, instructions, tensors, Push(), wanted, lambda there: None)
    arrays = {}
    for name, tensor in answer.tensors.items():
        arrays[name] = tensor.array() if isinstance(tensor, SpooledTensor) else tensor
    close(answer.tensors)
    number = {name: float(array.reshape(-1)[0]) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InvalidArgument(f"node {samples.node!r} says nothing of its labels that is a number")
    return NodeLabels(
        samples.node,
        int(number["next/outside"]),
        int(number["next/strange"]),
        int(number["next/lowest"]),
        int(number["next/highest"]),
        arrays["next/seen"],
    )
