"""Following a run in a terminal: a progress bar with the loss, and what the run waits for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.output import plain, print_json, require_rich
from edge_attention.client import Run
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.jobs import TrainingRound, TrainingRun

Show = Callable[[TrainingRound | TrainingRun], None]


def watch(run: Run, record: Path | None, as_json: bool) -> None:
    """Follow `run` to its end, its rounds also into `record`; Ctrl-C ends the following and not the run."""
    follow = _follow_json if as_json else _follow
    try:
        follow(run, record)
    except KeyboardInterrupt:
        click.echo(
            f"\nstopped watching; run {run.id} goes on.\n"
            f"  watch it again: edge-attention train --watch {run.id}\n"
            f"  stop it:        edge-attention train --stop {run.id}",
            err=True,
        )
        raise click.exceptions.Exit(130) from None


def _events(run: Run, record: Path | None, show: Show) -> None:
    for event in run.events():
        if record and isinstance(event, TrainingRound):
            try:
                with record.open("a") as file:
                    file.write(json.dumps(_row(run, event), allow_nan=False) + "\n")
            except OSError as error:
                raise InvalidArgument(
                    f"--record {record} cannot be written: {error.strerror}; run {run.id} goes on, watch it "
                    f"with: edge-attention train --watch {run.id}"
                ) from None
        show(event)


def _row(run: Run, event: TrainingRound) -> dict[str, Any]:
    return {"run": run.id, **plain(event)}


def _follow_json(run: Run, record: Path | None) -> None:
    def show(event: TrainingRound | TrainingRun) -> None:
        if isinstance(event, TrainingRound):
            print_json(_row(run, event), indent=None)

    _events(run, record, show)
    print_json(run.info, indent=None)


def _follow(run: Run, record: Path | None) -> None:
    require_rich()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    click.echo(f"run {run.id} ({run.info.name}): {run.info.rounds} rounds")
    waiting = ""
    with Progress(*columns, console=Console(highlight=False, markup=False)) as bar:
        task = bar.add_task("training", total=run.info.rounds, said="")

        def show(event: TrainingRound | TrainingRun) -> None:
            nonlocal waiting
            if isinstance(event, TrainingRound):
                bar.update(
                    task, completed=event.number, said=f"loss {event.loss:.4f}  version {event.version}"
                )
                if event.evaluation is not None:
                    bar.console.print(_evaluated(event))
            elif event.waiting != waiting:
                waiting = event.waiting
                if waiting:
                    # Printed, so that it is also there where the bar cannot be drawn.
                    bar.console.print(f"waiting for {waiting}")

        _events(run, record, show)
    info = run.info
    click.echo(f"run {info.id} {info.state.value} after round {info.round}, version {info.version}")
    click.echo(f"  its parameters: edge-attention parameters {info.id}")


def _evaluated(event: TrainingRound) -> str:
    result = event.evaluation
    assert result is not None
    shares = "".join(
        f", {name} {total:g} of {result.samples} ({total / max(1, result.samples):.1%})"
        for name, total in result.metrics.items()
    )
    return f"round {event.number}: held-out loss {result.loss:.4f}{shares}"
