"""Following a run: as a bar with the loss, as a live table of the nodes, as lines, as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_attention.cli.output import (
    evaluated,
    plain,
    print_json,
    require_rich,
    say,
    seconds_of,
    waiting,
)
from edge_attention.client.sync import Run
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import RunState, TrainingRound, TrainingRun
from edge_attention.core.printable import shown

Show = Callable[[TrainingRound | TrainingRun], None]

_COUNTS = re.compile(r"\d+ of \d+ chunks|, idle [\d.]+ s|\bin \d+ s|[\d.]+ s ago|for [\d.]+ s")
"""Of the sentences that say what a run waits for: what only counts on."""


def watch(
    run: Run,
    record: Path | None,
    as_json: bool,
    *,
    table: bool = False,
    after: int = 0,
    goes_on: bool = True,
) -> None:
    """Follow `run` after round `after` to its end, its rounds also into `record`.

    `table`: as a live table; as lines where stdout is no terminal. Ctrl-C ends the following and not the run,
    which it says; of a run that does not go on without us it is KeyboardInterrupt, as elsewhere.
    """
    if as_json:
        follow = _follow_json
    elif table:
        follow = _follow_table if sys.stdout.isatty() else _follow_lines
    else:
        follow = _follow
    try:
        follow(run, record, after)
    except KeyboardInterrupt:
        if not goes_on:
            raise
        say(
            "",
            f"stopped watching; run {run.id} goes on.",
            f"  watch it again: edge-attention train watch {run.id}",
            f"  stop it:        edge-attention train stop {run.id}",
            err=True,
        )
        raise click.exceptions.Exit(130) from None


class _Waits:
    """What there is to print of a run: each note once, and what it waits for, but not every second of it."""

    def __init__(self) -> None:
        self._told = ""
        self._notes = 0

    def news(self, info: TrainingRun) -> list[str]:
        """Lines; none where there is nothing new."""
        about = _COUNTS.sub("", info.waiting)
        new, self._told = about != self._told, about
        lines = [f"note: {note}" for note in info.notes[self._notes :]]
        self._notes = max(self._notes, len(info.notes))
        lines += [waiting(info.waiting)] if new and info.waiting else []
        return lines


def _events(run: Run, record: Path | None, after: int, show: Show) -> None:
    for event in run.events(after):
        if record and isinstance(event, TrainingRound):
            try:
                with record.open("a") as file:
                    file.write(json.dumps(_row(run, event), allow_nan=False) + "\n")
            except OSError as error:
                raise InvalidArgument(
                    f"--record {record} cannot be written: {error.strerror}; run {run.id} goes on, watch it "
                    f"with: edge-attention train watch {run.id}"
                ) from None
        show(event)


def _row(run: Run, event: TrainingRound) -> dict[str, Any]:
    return {"run": run.id, **plain(event)}


def _follow_json(run: Run, record: Path | None, after: int) -> None:
    def show(event: TrainingRound | TrainingRun) -> None:
        if isinstance(event, TrainingRound):
            print_json(_row(run, event), indent=None)

    _events(run, record, after, show)
    print_json(run.info, indent=None)


def _follow(run: Run, record: Path | None, after: int) -> None:
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
    _begun(run)
    waits = _Waits()
    left_out: dict[str, str] = {}
    with Progress(*columns, console=Console(highlight=False, markup=False)) as bar:
        task = bar.add_task("training", total=run.info.rounds, completed=after, said="")

        def show(event: TrainingRound | TrainingRun) -> None:
            if isinstance(event, TrainingRound):
                bar.update(
                    task, completed=event.number, said=f"loss {event.loss:.4f}  version {event.version}"
                )
                for node, reason in event.left_out.items():
                    # Of a run of many rounds a reason is news once.
                    if left_out.get(node) != reason:
                        left_out[node] = reason
                        line = f"round {event.number}: without {node}: {reason}"
                        bar.console.print(shown(line), soft_wrap=True)
                if event.evaluation is not None:
                    bar.console.print(shown(_evaluated(event)))
            else:
                # Printed, so that it is also there where the bar cannot be drawn.
                for line in waits.news(event):
                    bar.console.print(shown(line), soft_wrap=True)

        _events(run, record, after, show)
    _ended(run)


def _follow_lines(run: Run, record: Path | None, after: int) -> None:
    _begun(run)
    waits = _Waits()

    def show(event: TrainingRound | TrainingRun) -> None:
        if isinstance(event, TrainingRun):
            if lines := waits.news(event):
                say(*lines)
            return
        say(
            f"round {event.number} of {run.info.rounds}: loss {event.loss:.4f}, version {event.version}, "
            f"{seconds_of(event):.2f} s, {len(event.nodes or event.mass)} nodes"
        )
        for node, reason in event.left_out.items():
            say(f"round {event.number}: without {node}: {reason}")
        if event.evaluation is not None:
            say(_evaluated(event))

    _events(run, record, after, show)
    _ended(run)


def _follow_table(run: Run, record: Path | None, after: int) -> None:
    require_rich()
    from rich.live import Live

    from edge_attention.cli.run_table import RunTable

    table = RunTable(run.info)
    with Live(table, refresh_per_second=5):
        _events(run, record, after, table.hear)
    _ended(run)


def _begun(run: Run) -> None:
    say(f"run {run.id} ({run.info.name}): {run.info.rounds} rounds")


def _ended(run: Run) -> None:
    info = run.info
    why = f" ({info.detail})" if info.detail else ""
    say(f"run {info.id} {info.state.value}{why} after round {info.round}, version {info.version}")
    if info.best_version is not None and info.best_loss is not None:
        say(f"  the best on the held-out samples: version {info.best_version}, loss {info.best_loss:.4f}")
    say(f"  its parameters: edge-attention parameters {info.id}")
    if info.state is RunState.STOPPED:
        say(f"  let it go on:   edge-attention train resume {info.id}")


def _evaluated(event: TrainingRound) -> str:
    assert event.evaluation is not None
    return f"round {event.number}: held-out {evaluated(event.evaluation)}"
