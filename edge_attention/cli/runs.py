"""`edge-attention runs`: list and delete runs. What trains, and is trained, is under `train`."""

from __future__ import annotations

import click

from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, say
from edge_attention.cli.train import list_runs
from edge_attention.core.messages.training import TrainingRun
from edge_attention.failing import json_option


@click.group(
    invoke_without_command=True, epilog="Example: edge-attention runs delete patients-1f3a9c patients-77e0b2"
)
@json_option
@click.pass_context
def runs(ctx: click.Context, as_json: bool) -> None:
    """List the runs, or delete some. To stop, resume, watch or export one: train --help."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_runs, as_json=as_json)


@runs.command("list", epilog="Example: edge-attention runs list --json")
@json_option
@click.pass_context
def list_all(ctx: click.Context, as_json: bool) -> None:
    """List the runs."""
    ctx.invoke(list_runs, as_json=as_json)


@runs.command(epilog="Example: edge-attention runs delete patients-1f3a9c patients-77e0b2")
@click.argument("run", nargs=-1, required=True)
@json_option
@click.pass_obj
def delete(address: str, run: tuple[str, ...], as_json: bool) -> None:
    """Forget each RUN, which has ended: job, records and versions. What was deployed from it serves on.

    One that cannot be deleted ends the command; those before it are gone, and are said to be.
    """
    deleted: list[TrainingRun] = []
    with connect(address) as client:
        try:
            for name in run:
                deleted.append(client.run(name).delete())
                if not as_json:
                    say(f"deleted run {deleted[-1].id}, which was {deleted[-1].state.value}")
        finally:
            if as_json and deleted:
                print_json(deleted)
