"""What the demos share on the terminal: progress, and the verdict at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from edge_attention.core.printable import shown

console = Console(highlight=False)

json_file_option: Callable[[Any], Any] = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write every figure to FILE.",
)
verbose_option: Callable[[Any], Any] = click.option(
    "--verbose", is_flag=True, help="Also print what the processes print."
)


class ShownFigures(Protocol):
    """Every figure of a demo, and which that must hold do not."""

    @property
    def seconds(self) -> float: ...

    def to_json(self) -> dict[str, Any]: ...

    def failures(self) -> list[str]: ...


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar named `what`; its task's field `said` is printed beside it."""
    columns = (
        TextColumn(f"{what:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield bar, bar.add_task(what, total=total, said="")


def printer(verbose: bool) -> Callable[[str, str], None]:
    """For `LocalFleet`: prints what a child prints, if `verbose`."""

    def on_line(child: str, line: str) -> None:
        if verbose:
            console.print(Text(shown(f"{child}: {line}"), style="dim"))

    return on_line


def conclude(figures: ShownFigures, json_file: Path | None) -> None:
    """Write the figures where asked for; exit with 1 if one that must hold does not."""
    if json_file is not None:
        json_file.write_text(json.dumps(figures.to_json(), indent=2) + "\n")
    failures = figures.failures()
    for failure in failures:
        console.print(Text.assemble(("does not hold:", "red"), f" {shown(failure)}"))
    if failures:
        raise click.exceptions.Exit(1)
    console.print(f"everything that must hold does; {figures.seconds:.0f} s in all")
