"""`edge-attention train`: start, plan, watch, list, stop, resume and export runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.commands import Commands
from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_list, say, waiting
from edge_attention.cli.plan import of_file, print_plan
from edge_attention.cli.versions import best_option, chosen_version, version_option
from edge_attention.cli.watch import watch
from edge_attention.client.sync import Client, Run
from edge_attention.core.errors import InvalidArgument
from edge_attention.failing import json_option

_EPILOG = """
Examples:

\b
  edge-attention train job.toml --plan
  edge-attention train job.toml --watch
  edge-attention train job.toml --detach
  edge-attention train stop patients
  edge-attention train export patients --onnx patients.onnx
"""

_record_option: Callable[[Any], Any] = click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append one JSON object a round to this file.",
)
_detach_option: Callable[[Any], Any] = click.option(
    "--detach", is_flag=True, help="Do not follow the run; it goes on by itself."
)


@click.command(cls=Commands, epilog=_EPILOG)
@click.argument("job", required=False, type=click.Path(path_type=Path))
@click.option(
    "--plan",
    is_flag=True,
    help="Show what JOB would run where, the release it needs, and what of the nodes' data a run would be "
    "refused for (then the exit code is 1); no start.",
)
@click.option("--watch", "table", is_flag=True, help="Follow it as a table of the nodes, a line each.")
@_detach_option
@click.option("--stop", "stopped", metavar="RUN", help="The same as: train stop RUN.")
@click.option("--list", "listed", is_flag=True, help="The same as: train list.")
@_record_option
@json_option
@click.pass_obj
def train(
    address: str,
    job: Path | None,
    plan: bool,
    table: bool,
    detach: bool,
    stopped: str | None,
    listed: bool,
    record: Path | None,
    as_json: bool,
) -> None:
    """Train the job of the TOML file JOB, and follow it; or one of the commands below, on a run.

    RUN is an id or a name. docs/client.md has the file's format. With --json: one JSON object a round, then
    the run. `train --watch RUN` is the same as `train watch RUN`.
    """
    if sum(map(bool, (job, stopped, listed))) != 1 or (plan and not job):
        raise click.UsageError(
            "give one of: JOB.toml, JOB.toml --plan, or one of the commands list, watch RUN, stop RUN, "
            "resume RUN, delete RUN, export RUN"
        )
    if sum((plan, table, detach)) > 1 or (record and (plan or detach)):
        raise click.UsageError("--plan, --detach and following (--watch, --record) exclude each other")
    if job and not job.is_file() and not (table and job.suffix != ".toml"):
        why = "is a directory" if job.is_dir() else "does not exist"
        raise click.BadParameter(f"File '{job}' {why}.", param_hint="'[JOB]'")
    with connect(address) as client:
        if listed:
            _list(client, as_json)
        elif stopped:
            _stop(client, stopped, as_json)
        elif job and plan:
            if not print_plan(of_file(client.plan, job), job, as_json):
                raise click.exceptions.Exit(1)
        elif job:
            _touch(record)  # before the run starts
            run = of_file(client.train, job) if job.is_file() else client.run(str(job))
            _left(run, as_json) if detach else watch(run, record, as_json, table=table)


@train.add
@click.command("list", epilog="Example: edge-attention train list")
@json_option
@click.pass_obj
def list_runs(address: str, as_json: bool) -> None:
    """List the runs."""
    with connect(address) as client:
        _list(client, as_json)


@train.add
@click.command("watch", epilog="Example: edge-attention train watch patients --record patients.jsonl")
@click.argument("run")
@_record_option
@json_option
@click.pass_obj
def watch_run(address: str, run: str, record: Path | None, as_json: bool) -> None:
    """Follow RUN as a table of the nodes. Where stdout is no terminal: a line a round."""
    with connect(address) as client:
        _touch(record)
        watch(client.run(run), record, as_json, table=True)


@train.add
@click.command("stop", epilog="Example: edge-attention train stop patients")
@click.argument("run")
@json_option
@click.pass_obj
def stop_run(address: str, run: str, as_json: bool) -> None:
    """Stop RUN now. What it committed stays; a round under way is dropped."""
    with connect(address) as client:
        _stop(client, run, as_json)


@train.add
@click.command("resume", epilog="Example: edge-attention train resume patients --watch")
@click.argument("run")
@click.option("--watch", "table", is_flag=True, help="Follow it as a table of the nodes, a line each.")
@_detach_option
@_record_option
@json_option
@click.pass_obj
def resume_run(address: str, run: str, table: bool, detach: bool, record: Path | None, as_json: bool) -> None:
    """Let RUN, which was stopped, go on after its last committed round, and follow it."""
    if detach and (table or record):
        raise click.UsageError("--detach and following (--watch, --record) exclude each other")
    with connect(address) as client:
        _touch(record)
        found = client.run(run)
        at = found.resume().round
        _left(found, as_json) if detach else watch(found, record, as_json, table=table, after=at)


@train.add
@click.command("delete", epilog="Example: edge-attention train delete patients-1f3a9c")
@click.argument("run")
@json_option
@click.pass_obj
def delete_run(address: str, run: str, as_json: bool) -> None:
    """Forget RUN, which has ended: its job, records and versions. The same as: runs delete RUN."""
    with connect(address) as client:
        deleted = client.run(run).delete()
    print_json(deleted) if as_json else say(f"deleted run {deleted.id}, which was {deleted.state.value}")


@train.add
@click.command(
    "export", epilog="Example: edge-attention train export patients --onnx patients.onnx --version best"
)
@click.argument("run")
@click.option(
    "--onnx",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the trained model as ONNX; of a fusion run encoders, attention and head in one file.",
)
@click.option(
    "--parameters",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the parameters as a safetensors file.",
)
@version_option
@best_option
@json_option
@click.pass_obj
def export_run(
    address: str,
    run: str,
    onnx: Path | None,
    parameters: Path | None,
    version: int | None,
    best: bool,
    as_json: bool,
) -> None:
    """Write what RUN has trained to a file."""
    if onnx is None and parameters is None:
        raise click.UsageError("give --onnx FILE, --parameters FILE, or both")
    if onnx == parameters:
        raise click.UsageError(f"--onnx and --parameters are both {onnx}; give each a file of its own")
    with connect(address) as client:
        found = client.run(run)
        chosen = chosen_version(version, best)
        if onnx is not None:
            chosen = found.save_onnx(onnx, chosen)
        if parameters is not None:
            chosen = found.save_parameters(parameters, chosen)
    files = [str(file) for file in (onnx, parameters) if file is not None]
    if as_json:
        print_json({"run": found.id, "version": chosen, "files": files})
    else:
        say(f"wrote version {chosen} of run {found.id} to {' and '.join(files)}")


def _touch(record: Path | None) -> None:
    if record:
        try:
            record.open("a").close()
        except OSError as error:
            raise InvalidArgument(f"--record {record} cannot be written: {error.strerror}") from None


def _left(run: Run, as_json: bool) -> None:
    if as_json:
        print_json(run.info)
        return
    say(
        f"run {run.id} ({run.info.name}) goes on: {run.info.rounds} rounds",
        f"  watch it: edge-attention train watch {run.id}",
        f"  stop it:  edge-attention train stop {run.id}",
    )


def _stop(client: Client, name: str, as_json: bool) -> None:
    run = client.run(name).stop()
    if as_json:
        print_json(run)
        return
    say(f"run {run.id} is {run.state.value}, at round {run.round} of {run.rounds}")
    if run.state.value == "stopped":
        say(f"  let it go on: edge-attention train resume {run.id}")


def _list(client: Client, as_json: bool) -> None:
    runs = client.runs()
    if as_json:
        print_json(runs)
    elif not runs:
        say("no runs; start one with: edge-attention train JOB.toml")
    else:
        print_list(
            ("run", "state", "round", "version", "best", "what it waits for, or how it ended"),
            (
                (
                    r.id,
                    r.state.value,
                    f"{r.round} of {r.rounds}",
                    str(r.version),
                    "-" if r.best_version is None else str(r.best_version),
                    (waiting(r.waiting) if r.waiting else r.detail).partition("\n")[0] or "-",
                )
                for r in runs
            ),
        )
