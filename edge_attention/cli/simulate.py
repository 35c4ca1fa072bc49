"""`edge-attention simulate`: a job's nodes on this machine, many in a process."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.output import print_json, print_table, say
from edge_attention.cli.watch import watch
from edge_attention.client.sync import Client, Run
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.training import RunState
from edge_attention.failing import json_option
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.job_file import read_job
from edge_attention.simulation.partition import RowSharing, partition
from edge_attention.simulation.scenario import NodeCourse, courses, read_scenario
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table

MOST_NODES = 2_000
STARTED_SECONDS = 120.0
"""That nodes have to come, those that the scenario has come late apart."""
LEASE_SECONDS = 30.0
"""Nodes share two cores or four: one that is silent for so long is not lost yet."""
LOOK_SECONDS = 0.2
"""Between two looks at whether the nodes are still there."""

_EPILOG = """
The job runs as it would on a fleet: the real aggregator and its strategies, and nodes that train with the
same graphs and come to the same parameters. All of it is in this process, or nodes share a few, with what is
loaded there and this machine's cores: how long a round takes says nothing of a fleet's.

A scenario (--scenario) has nodes that are slow, fail, or come late:

\b
  [[slow]]
  nodes = "10%"        # a share, a number, or a list of names
  times = 4.0          # as long as its graphs take
  [[failing]]
  nodes = 5
  every = 20.0         # seconds between two failures, on average
  down = 3.0           # seconds it is away
  [[late]]
  nodes = ["node-1"]
  after = 10.0         # seconds after the others

\b
Examples:
  edge-attention simulate job.toml --nodes 100 --data digits.csv
  edge-attention simulate job.toml --nodes 50 --data digits.csv --split dirichlet --by label --alpha 0.3
  edge-attention simulate job.toml --nodes 10 --data visits.parquet --split column --by hospital
"""


@click.command(epilog=_EPILOG)
@click.argument("job", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--nodes", "count", type=click.IntRange(1, MOST_NODES), default=10, help="How many nodes.")
@click.option("--data", required=True, metavar="FILE", help="The rows of all nodes: .csv, .npz or .parquet.")
@click.option(
    "--split",
    "kind",
    type=click.Choice(["iid", "dirichlet", "column"]),
    default="iid",
    help="How rows are shared: by lot; unevenly, by a Dirichlet law over the labels in --by; or a node for "
    "each value of --by.",
)
@click.option("--by", default="", metavar="COLUMN", help="The column that rows are shared by.")
@click.option("--alpha", type=float, default=1.0, help="Of --split dirichlet: less is more uneven.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Another one shares the rows out otherwise.")
@click.option(
    "--scenario",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Who is slow, fails or comes late: TOML, see below.",
)
@click.option(
    "--processes",
    type=click.IntRange(0, 64),
    default=0,
    help="Processes that nodes share, over gRPC: for large models; 0: all are in this one.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append one JSON object a round to this file.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the run and its parameters, for an aggregator later. By default they go with the "
    "simulation.",
)
@click.option(
    "--resume",
    metavar="RUN",
    default="",
    help="Have RUN of --state go on, which was interrupted; give what it was started with besides.",
)
@json_option
def simulate(
    job: Path,
    count: int,
    data: str,
    kind: Any,
    by: str,
    alpha: float,
    seed: int,
    scenario: Path | None,
    processes: int,
    record: Path | None,
    state: Path | None,
    resume: str,
    as_json: bool,
) -> None:
    """Run the federated job of the TOML file JOB over many nodes on this machine."""
    if resume and state is None:
        raise click.UsageError("--resume takes a run of --state FOLDER, which is not given")
    wanted = read_job(job)
    if not isinstance(wanted, FederatedJob):
        raise InvalidArgument(
            f"{job} is no federated job: only those have nodes that are alike, each with rows of its own. "
            "Run it over `edge-attention up`"
        )
    names = [f"node-{at + 1}" for at in range(count)]
    found = _courses(scenario, names)
    table = read_table(*split_file(data))
    rows = partition(table, RowSharing(kind, by, alpha), count, seed)
    if not as_json:
        least, most = min(map(len, rows)), max(map(len, rows))
        say(f"{count:,} nodes of {least:,} to {most:,} rows, {sum(map(len, rows)):,} in all")
    began = time.monotonic()
    nodes = [
        {"name": name, "rows": {wanted.dataset: share}, **asdict(found[name])}
        for name, share in zip(names, rows, strict=True)
    ]
    with ExitStack() as stack:
        if processes:
            hosts = min(count, processes)
            fleet = stack.enter_context(_fleet(wanted.dataset, data, nodes, hosts, state))
            require: Callable[[], None] = partial(_require_running, fleet)
            address = fleet.address
        else:
            hosted = _host().hosted
            tables = {wanted.dataset: table}
            address, require = stack.enter_context(hosted(nodes, tables, state, LEASE_SECONDS))
        client = stack.enter_context(Client(address, timeout=300.0))
        _stop_others(client, resume)
        _wait(client, require, [name for name in names if not found[name].after])
        ready = time.monotonic()
        run = _again(client, resume) if resume else client.train(replace(wanted, nodes=tuple(names)))
        try:
            with _while_there(run, require):
                watch(run, record, as_json, after=run.info.round, goes_on=False)
        except KeyboardInterrupt:
            if state is None:
                raise
            _say_interrupted(run, state)
            raise click.exceptions.Exit(130) from None
        _report(found, ready - began, time.monotonic() - ready, as_json)


def _courses(scenario: Path | None, names: Sequence[str]) -> dict[str, NodeCourse]:
    """What the scenario, if there is one, says of each node; InvalidArgument names the file."""
    if scenario is None:
        return courses({}, names)
    read = read_scenario(scenario)
    try:
        return courses(read, names)
    except InvalidArgument as error:
        raise InvalidArgument(f"{scenario}: {error.message}") from None


@contextmanager
def _fleet(
    dataset: str,
    data: str,
    nodes: Sequence[Mapping[str, Any]],
    hosts: int,
    state: Path | None,
) -> Iterator[LocalFleet]:
    """An aggregator, and the processes that nodes share; all are ended when it is left."""
    with tempfile.TemporaryDirectory(prefix="edge-simulate-") as folder, LocalFleet(state) as fleet:
        fleet.start_aggregator("--lease", f"{LEASE_SECONDS:g}")
        for host in range(hosts):
            file = Path(folder, f"nodes-{host}.json")
            said = {
                "aggregator": fleet.address,
                "threads": 1,
                "files": {dataset: _absolute(data)},
                "nodes": [
                    {**node, "rows": {name: rows.tolist() for name, rows in node["rows"].items()}}
                    for node in nodes[host::hosts]
                ],
            }
            file.write_text(json.dumps(said), encoding="utf-8")
            fleet.start_child(f"nodes {host + 1}", "edge_node.many", [str(file)])
        yield fleet


def _absolute(data: str) -> str:
    file, question, options = data.partition("?")
    return f"{Path(file).absolute()}{question}{options}"


def _host() -> Any:
    """Both daemons, as modules; an installation for clients has neither."""
    try:
        return import_module("edge_attention.simulation.host")
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"simulate needs {error.name}, which is not installed: "
            "pip install 'edge-attention[aggregator,cli]'"
        ) from None


def _require_running(fleet: LocalFleet) -> None:
    for child in fleet.children.values():
        if not child.running:
            raise FailedPrecondition(f"{child.name} ended:", child.last_lines())


def _wait(client: Client, require: Callable[[], None], names: Sequence[str]) -> None:
    """Return when the aggregator has all of `names`. `require` raises where they cannot come any more.

    Raises:
        FailedPrecondition: a process of nodes has ended.
        DeadlineExceeded: they do not come.
    """
    until = time.monotonic() + STARTED_SECONDS
    while True:
        there = {node.name for node in client.nodes() if node.state is NodeState.READY}
        lacking = [name for name in names if name not in there]
        if not lacking:
            return
        require()
        if time.monotonic() > until:
            raise DeadlineExceeded(
                f"{len(lacking):,} of {len(names):,} nodes did not come within {STARTED_SECONDS:g} s, "
                f"{lacking[0]} among them"
            )
        time.sleep(0.02)


@contextmanager
def _while_there(run: Run, require: Callable[[], None]) -> Iterator[None]:
    """Stop the run as soon as its nodes cannot come any more, for which it would wait, and raise why."""
    over, failed = threading.Event(), list[EdgeAttentionError]()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            try:
                require()
            except EdgeAttentionError as error:
                failed.append(error)
                with suppress(EdgeAttentionError):  # the aggregator may be what has ended
                    run.stop()
                return

    looking = threading.Thread(target=look, name="nodes", daemon=True)
    looking.start()
    try:
        yield
    except EdgeAttentionError:
        if not failed:
            raise
    finally:
        over.set()
        looking.join()
    if failed:
        raise failed[0]


def _stop_others(client: Client, resumed: str) -> None:
    """Have runs that a simulation which was killed has left in its state wait until somebody resumes them."""
    left = [run for run in client.runs() if run.state is RunState.RUNNING]
    going = client.run(resumed).id if resumed else ""
    for run in left:
        if run.id != going:
            client.run(run.id).stop()
            say(
                f"run {run.id} was cut off after round {run.round} of {run.rounds}: it is stopped, and "
                f"goes on with --resume {run.id}",
                err=True,
            )


def _again(client: Client, name: str) -> Run:
    """The run of that name or id, which goes on. Raises FailedPrecondition: it has finished."""
    run = client.run(name)
    if run.info.state is not RunState.RUNNING:  # one that was killed goes on by itself
        run.resume()
    return run


def _say_interrupted(run: Run, state: Path) -> None:
    """Stop the run, which is to be there as one that can go on, and say so."""
    info = run.stop()
    if info.state is not RunState.STOPPED:  # its end had come
        say("", f"run {info.id} is {info.state.value}; {state} has it", err=True)
        return
    say(
        "",
        f"interrupted: run {info.id} is stopped after round {info.round} of {info.rounds}, version "
        f"{info.version}; {state} has it",
        f"  let it go on: the same command with --resume {info.id}",
        err=True,
    )


def _report(found: Mapping[str, NodeCourse], start: float, run: float, as_json: bool) -> None:
    """What it took, and what was simulated."""
    kinds = {
        "slow": sum(course.times > 1 for course in found.values()),
        "failing": sum(course.every > 0 for course in found.values()),
        "late": sum(course.after > 0 for course in found.values()),
    }
    if as_json:
        print_json({"simulated": {"nodes": len(found), **kinds, "start_seconds": start, "run_seconds": run}})
        return
    print_table(
        ("nodes", "slow", "failing", "late", "seconds to start", "seconds of the run"),
        [(len(found), *kinds.values(), f"{start:.1f}", f"{run:.1f}")],
    )
