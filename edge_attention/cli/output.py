"""How commands print: JSON for programs, tables for people."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import click
import numpy as np

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import COUNTED, Evaluation, TrainingRound
from edge_attention.core.printable import json_line, shown


def say(*lines: object, err: bool = False) -> None:
    """Print `lines`, each of which stays one."""
    click.echo("\n".join(map(shown, lines)), err=err)


def say_on(text: str) -> None:
    """Print a piece of a text, which goes on where the last one ended. Its line feeds stay."""
    click.echo("\n".join(map(shown, text.split("\n"))), nl=False)


_AS_THEY_ARE = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: ranges as [start, stop], enums by value, NaN as null."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, range):
        return [value.start, value.stop]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def print_json(value: Any, indent: int | None = 2) -> None:
    click.echo(json_line(json.dumps(plain(value), indent=indent, allow_nan=False)))


def require_rich() -> None:
    """One clear line instead of a traceback where the extra is not installed."""
    try:
        import rich  # noqa: F401
    except ImportError:
        raise FailedPrecondition(
            "tables need the package rich: pip install 'edge-attention[cli]', or give --json"
        ) from None


def print_list(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A line a row, whatever is in it: on a terminal as wide as that, the last column cut where it must be;
    else columns and rows with tabs between, for `cut` and `awk`."""
    lines = [[*columns], *([_cell(value).replace("\n", " ") for value in row] for row in rows)]
    if not sys.stdout.isatty():
        click.echo("\n".join("\t".join(line) for line in lines))
        return
    width = shutil.get_terminal_size().columns
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) - 1)]
    for line in lines:
        text = "  ".join((*(cell.ljust(size) for cell, size in zip(line, widths, strict=False)), line[-1]))
        click.echo(text if len(text) <= width else text[: width - 1] + "…")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table; numbers to the right. Columns are as wide as they must be where stdout is no terminal; on one
    that is too narrow for its words each row is a paragraph."""
    require_rich()
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=shown(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    content = [list(row) for row in rows]
    for i, column in enumerate(columns):
        number = bool(content) and all(isinstance(row[i], int | float) for row in content)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in content:
        table.add_row(*map(_cell, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(width=2000)).maximum
        console.width = max(console.width, wanted)
    elif console.width < console.measure(table, options=console.options.update(width=2000)).minimum:
        if title:
            say(title)
        say(*_paragraphs(columns, content))
        return
    console.print(table)


def _paragraphs(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of a table whose rows are paragraphs: a column each, what is empty left out."""
    size = max(map(len, columns))
    for row in rows:
        yield ""
        cells = [(column, _cell(value)) for column, value in zip(columns, row, strict=True)]
        yield from (f"{column.ljust(size)}  {text}" for column, text in cells if text.strip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shown(value)


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


STRETCHES = 20
"""Ranges of positions that are named; of more the rest are counted."""


def stretches(ranges: Iterable[range]) -> str:
    """`0-999, 2000-2999`: the positions, first and last of each range; of very many only some."""
    some = [f"{r.start}-{r.stop - 1}" for r in ranges if r]
    if len(some) > STRETCHES:
        some[STRETCHES - 2 : -1] = [f"and {len(some) - STRETCHES + 1:,} more"]
    return ", ".join(some) or "none"


def waiting(what: str) -> str:
    """A sentence of what a run says it waits for: `node 'a'`, or already `round 4 waits for a: ...`."""
    return what if "waits for" in what else f"waiting for {what}"


def seconds_of(round: TrainingRound) -> float:
    """Seconds of a round in all."""
    return round.seconds.get("all", sum(round.seconds.values()))


def evaluated(result: Evaluation) -> str:
    """`loss 0.4123, correct 43 of 50 (86.0%)`; of the tokens, where they are a metric."""
    of = result.counted
    shares = "".join(
        f", {name} {total:g} of {of:g} ({result.share(name):.1%})"
        for name, total in result.metrics.items()
        if name not in COUNTED
    )
    return f"loss {result.loss:.4f}{shares}"
