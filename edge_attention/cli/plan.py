"""`edge-attention train --plan`: what a job would run on the nodes, and what their operators allow for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from edge_attention.cli.output import print_json, print_table, say
from edge_attention.client.plans import JobPlan
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import PlannedGraph, PlannedModel
from edge_attention.core.release import ANY_COLUMN, Release, columns_of
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.job import FusionJob
from edge_attention.jobs.job_file import read_job
from edge_attention.jobs.split_job import SplitJob

T = TypeVar("T")

_SHOWN = 6
"""Names of a list that are shown."""
_NODES = 3
"""Nodes of a row that are named."""


def of_file(call: Callable[[FusionJob | FederatedJob | SplitJob], T], file: Path) -> T:
    """`call` with the job of `file`, which is named where the job is refused."""
    job = read_job(file)
    try:
        return call(job)
    except InvalidArgument as error:
        raise type(error)(f"{file}: {error.message}") from None


def release_flags(graphs: Sequence[PlannedGraph]) -> dict[str, list[str]]:
    """Node -> the values of `edge-node --allow-release` it needs, each once."""
    needed: dict[str, list[str]] = {graph.node: [] for graph in graphs}
    for graph in graphs:
        if graph.release and graph.release not in needed[graph.node]:
            needed[graph.node].append(graph.release)
    return needed


def _some(outputs: Sequence[str]) -> str:
    more = f" and {len(outputs) - 2} more" if len(outputs) > 3 else ""
    return ", ".join(outputs[:2] if more else outputs) + more or "nothing"


def _origins(graph: PlannedGraph) -> str:
    """The columns that the release lets it be computed from."""
    if not graph.release_text:
        return "-"
    found: list[str] = []
    for source in Release.parse(graph.release_text).columns:
        names = ["/".join(pair) for pair in columns_of(source)]
        found += names or ["any column" if source == ANY_COLUMN else source]
    return _some(list(dict.fromkeys(found)))


def describe(model: PlannedModel) -> list[str]:
    """What a job makes of a file, a line each."""
    numbers = sum(model.trained.values())
    lines = [
        f"{model.place}: {_counted(len(model.trained), 'parameter')} of {numbers:,} numbers train: "
        f"{_named(tuple(model.trained))}"
    ]
    whys: dict[str, list[str]] = {}
    for name, why in model.frozen.items():
        whys.setdefault(why, []).append(name)
    lines += [
        f"  {_counted(len(names), 'weight')} frozen, {why}: {_named(names)}" for why, names in whys.items()
    ]
    if model.cut:
        lines.append(f"  cut off, as nothing here needs them: {_named(model.cut)}")
    lines += [f"  dimension {name} is {size}" for name, size in model.dimensions.items()]
    return lines + [f"  {note}" for note in model.notes]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def _rows(graphs: Iterable[PlannedGraph]) -> Iterator[tuple[str, ...]]:
    """Of the table, one for all nodes that run the same."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for g in graphs:
        said = g.role, g.digest[:12], _some(g.outputs), _origins(g), g.release[:19] or "-"
        alike.setdefault(said, []).append(g.node)
    for row, nodes in alike.items():
        more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES + 1 else ""
        yield (", ".join(nodes[:_NODES] if more else nodes) + more, *row)


def print_plan(plan: JobPlan, job: Path, as_json: bool) -> bool:
    """The plan of the job file `job`, as a table and as flags of `edge-node`; whether a run would begin."""
    graphs, needed = list(plan), release_flags(plan)
    if as_json:
        print_json(
            {
                "graphs": graphs,
                "models": plan.models,
                "allow_release": needed,
                "job_release": plan.job_release,
                "problems": plan.problems,
                "unchecked": plan.unchecked,
            }
        )
        return not plan.problems
    for model in plan.models:
        say(*describe(model))
    print_table(
        ("node", "graph", "digest", "leaves the node", "computed from", "release"),
        _rows(graphs),
        title=f"What {job} runs. Nothing else of a node's data leaves it.",
    )
    say("What the nodes' operators allow for it:")
    alike: dict[str, list[str]] = {}
    for node, releases in needed.items():
        # An aggregator of an earlier release says nothing of the whole.
        values = [plan.job_release] if plan.job_release and releases else releases
        flags = "".join(f" --allow-release {shlex.quote(value)}" for value in values)
        alike.setdefault(flags, []).append(node)
    for flags, nodes in alike.items():
        if not flags:
            say(f"  {', '.join(nodes)}: nothing")
        elif len(nodes) == 1:
            say(f"  edge-node --name {nodes[0]}{flags} ...")
        else:
            say(f"  each of {', '.join(nodes)}:", f"  edge-node{flags} ...")
    if plan.job_release:
        say("That is all of the job in one; its releases one by one: add --json, allow_release.")
    for text in plan.unchecked:
        say(f"not checked: {text}")
    if not plan.problems:
        return True
    say(f"A run of {job} would be refused:")
    say(*(f"  {problem.node or 'the fleet'}: {problem.text}" for problem in plan.problems))
    return False
