"""How far an append is: a bar on stderr where somebody reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge_attention.cli.output import require_rich
from edge_attention.client.contexts import OnProgress

__all__ = ["append_progress"]


@contextlib.contextmanager
def append_progress(as_json: bool) -> Iterator[OnProgress | None]:
    """What is told the tokens stored, and all of them; None for a program, which reads one object."""
    if as_json:
        yield None
        return
    require_rich()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("tokens stored"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokens stored", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
