"""`edge-attention train`: start, plan, watch, list and stop runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from edge_attention.cli.output import json_option, print_json, print_table
from edge_attention.cli.watch import watch
from edge_attention.client import Client
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.jobs import PlannedGraph
from edge_attention.job import FusionJob

T = TypeVar("T")

_EPILOG = """
Examples:

\b
  edge-attention train job.toml --plan
  edge-attention train job.toml --record rounds.jsonl
  edge-attention train --watch patients
"""


@click.command(epilog=_EPILOG)
@click.argument("job", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--plan", is_flag=True, help="Show what JOB would run where, and the releases it needs; no start."
)
@click.option("--watch", "watched", metavar="RUN", help="Follow a run that was started before.")
@click.option("--stop", "stopped", metavar="RUN", help="Stop a run after the round under way.")
@click.option("--list", "listed", is_flag=True, help="List the runs.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append one JSON object a round to this file.",
)
@json_option
@click.pass_obj
def train(
    address: str,
    job: Path | None,
    plan: bool,
    watched: str | None,
    stopped: str | None,
    listed: bool,
    record: Path | None,
    as_json: bool,
) -> None:
    """Train the job of the TOML file JOB, and follow it. RUN is an id or a name.

    docs/client.md has the file's format. With --json: one JSON object a round, then the run.
    """
    if sum(map(bool, (job, watched, stopped, listed))) != 1 or (plan and not job):
        raise click.UsageError("give one of: JOB.toml, JOB.toml --plan, --watch RUN, --stop RUN, --list")
    with Client(address) as client:
        if listed:
            _list(client, as_json)
        elif stopped:
            run = client.run(stopped).stop()
            said = f"run {run.id} is {run.state.value}, at round {run.round} of {run.rounds}"
            print_json(run) if as_json else click.echo(said)
        elif job and plan:
            _print_plan(_of_file(client.plan, job), job, as_json)
        else:
            if record:
                record.open("a").close()  # before the run starts
            followed = _of_file(client.train, job) if job else client.run(watched or "")
            watch(followed, record, as_json)


def _of_file(call: Callable[[FusionJob], T], file: Path) -> T:
    """`call` with the job of `file`, which is named where the job is refused."""
    job = FusionJob.from_toml(file)
    try:
        return call(job)
    except InvalidArgument as error:
        raise type(error)(f"{file}: {error.message}") from None


def _list(client: Client, as_json: bool) -> None:
    runs = client.runs()
    if as_json:
        print_json(runs)
    elif not runs:
        click.echo("no runs; start one with: edge-attention train JOB.toml")
    else:
        print_table(
            ("run", "name", "state", "round", "of", "version", "waits for", "detail"),
            (
                (r.id, r.name, r.state.value, r.round, r.rounds, r.version, r.waiting or "-", r.detail or "-")
                for r in runs
            ),
        )


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


def _print_plan(graphs: Sequence[PlannedGraph], job: Path, as_json: bool) -> None:
    needed = release_flags(graphs)
    if as_json:
        print_json({"graphs": graphs, "allow_release": needed})
        return
    print_table(
        ("node", "graph", "digest", "leaves the node", "release"),
        ((g.node, g.role, g.digest[:12], _some(g.outputs), g.release[:19] or "-") for g in graphs),
        title=f"What {job} runs. Nothing else of a node's data leaves it.",
    )
    click.echo("What the nodes' operators allow for it:")
    for node, releases in needed.items():
        flags = "".join(f" --allow-release {shlex.quote(release)}" for release in releases)
        click.echo(f"  edge-node --name {node}{flags} ..." if flags else f"  {node}: nothing")
