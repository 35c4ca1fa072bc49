"""`edge-attention train --plan`: what a job would run on the nodes, and what their operators allow for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from edge_attention.cli.output import print_json, print_table, say
from edge_attention.core.messages.training import PlannedGraph
from edge_attention.core.release import Release, column_of


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
    columns = map(column_of, Release.parse(graph.release_text).columns)
    return _some(["/".join(names) if names else "any column" for names in columns])


def print_plan(graphs: Sequence[PlannedGraph], job: Path, as_json: bool) -> None:
    """The plan of the job file `job`, as a table and as flags of `edge-node`."""
    needed = release_flags(graphs)
    if as_json:
        print_json({"graphs": graphs, "allow_release": needed})
        return
    print_table(
        ("node", "graph", "digest", "leaves the node", "computed from", "release"),
        (
            (g.node, g.role, g.digest[:12], _some(g.outputs), _origins(g), g.release[:19] or "-")
            for g in graphs
        ),
        title=f"What {job} runs. Nothing else of a node's data leaves it.",
    )
    say("What the nodes' operators allow for it:")
    for node, releases in needed.items():
        flags = "".join(f" --allow-release {shlex.quote(release)}" for release in releases)
        say(f"  edge-node --name {node}{flags} ..." if flags else f"  {node}: nothing")
