"""`python -m tests.models FOLDER [NAME...] [--write]`: cut every model by every plan, against the whole.

FOLDER has the files that `python -m tools.exports` writes, and whatever else is to be tried. A cell is the
largest error, relative to the largest value, over 2, 3 and 5 parts of unequal size and two lengths, and what
share of the arithmetic the busiest of 5 parts does; or why the plan is refused. Rows are kept in FOLDER's
tried.json, where those of files not tried this time stay; `--write` puts the table of all into
docs/models.md. Fails where an answer is off by more than 1e-5 and does not say so, or by anything in an int8
model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, sizes_of
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from tests.graphs.axes.export_feeds import LENGTHS, Lengths, feeds_for
from tests.graphs.axes.model_plans import (
    PLANS,
    SHARES,
    NotWhole,
    Tried,
    plan_of,
    try_plan,
    whole_answer,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
LARGE = 50.0
START, END = "<!-- table: python -m tests.models -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Length:
    """A model at one of the lengths it is tried at."""

    axes: Axes
    feeds: dict[str, Array]
    expected: dict[str, Array]


@dataclass(frozen=True)
class Row:
    """A model: by plan, the worst that came of it."""

    name: str
    megabytes: float
    parts: tuple[int, ...]
    cells: dict[str, Tried]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--parts", type=int, nargs="+", choices=SHARES, default=tuple(SHARES), help="of these only"
    )
    parser.add_argument("--write", action="store_true", help="put the table in docs/models.md")
    parser.add_argument("--trace", action="store_true", help="show where faults come from")
    said = parser.parse_intermixed_args()
    paths = sorted(said.folder.glob("*.onnx"))
    if not paths:  # else the page would get a table of nothing
        sys.exit(f"{said.folder} has no .onnx file; python -m tools.exports writes such a folder")
    kept = said.folder / "tried.json"
    rows = _read(kept)
    for path in paths:
        if said.names and not any(path.stem.startswith(name) for name in said.names):
            continue
        began = time.perf_counter()
        found = rows[path.stem] = row(path, tuple(said.parts), said.trace)
        kept.write_text(json.dumps([asdict(one) for one in rows.values()], indent=1) + "\n")
        shown = " | ".join(f"{name} {cell.said}" for name, cell in found.cells.items())
        print(f"{path.stem} ({time.perf_counter() - began:.0f} s): {shown}", flush=True)
    text = table([rows[name] for name in sorted(rows)])
    print(text)
    if said.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(START)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{START}\n\n{text}\n{END}{after}")
    return 1 if any(cell.fault for one in rows.values() for cell in one.cells.values()) else 0


def _read(path: Path) -> dict[str, Row]:
    """By name of the model, what earlier runs found."""
    if not path.exists():
        return {}
    return {
        one["name"]: Row(
            one["name"],
            one["megabytes"],
            tuple(one.get("parts", SHARES)),
            {name: Tried(**cell) for name, cell in one["cells"].items()},
        )
        for one in json.loads(path.read_text())
    }


def row(path: Path, numbers: tuple[int, ...], trace: bool) -> Row:
    """Try one model by everything."""
    cells: dict[str, Tried] = {}
    size = path.stat().st_size / 1e6
    try:
        model = open_model(path)
        lengths = [_length(path, model, one) for one in LENGTHS]
    except EdgeAttentionError as error:
        return Row(path.stem, size, numbers, dict.fromkeys(PLANS, Tried(None, error.message)))
    except NotWhole as error:
        return Row(path.stem, size, numbers, dict.fromkeys(PLANS, Tried(None, str(error))))
    for plan in PLANS:
        found = [
            _cell(model, length, plan, parts, trace)
            for number, length in enumerate(lengths)
            for parts in _parts(plan, number, size, numbers)
        ]
        cells[plan] = worst(found)
        # A merge is of attention, which is float32 in these models.
        if "int8" in path.stem and cells[plan].error and plan != "tokens, merge":
            cells[plan] = replace(cells[plan], fault=True)
    return Row(path.stem, size, numbers, cells)


def _parts(plan: str, length: int, megabytes: float, numbers: tuple[int, ...]) -> Sequence[int]:
    """Of how many parts a plan is tried; of large files the second length by three only."""
    if plan == "replicate":
        return (1,)
    return (3,) if length and megabytes > LARGE else numbers


def _length(path: Path, model: OpenModel, lengths: Lengths) -> Length:
    feeds = feeds_for(model.model.graph, lengths)
    forms = {name: TensorForm(str(value.dtype), value.shape) for name, value in feeds.items()}
    return Length(analyse(model, sizes_of(model, forms)), feeds, whole_answer(path, feeds))


def _cell(model: OpenModel, length: Length, plan: str, parts: int, trace: bool) -> Tried:
    try:
        return try_plan(model, length.axes, plan_of(plan, length.axes, parts), length.feeds, length.expected)
    except Exception as error:
        if trace:
            traceback.print_exc()
        return Tried(None, f"{type(error).__name__}: {str(error)[:160]} ({parts} parts)", True)


def worst(found: Sequence[Tried]) -> Tried:
    """Of what came of one plan on several numbers of parts: a fault before a refusal before an error.

    Its share of the work is the least: that of the most parts.
    """
    worst = max(found, key=lambda one: (one.fault, one.error is None, one.error or 0.0))
    return worst if worst.error is None else replace(worst, share=min(one.share for one in found))


def _exact(cell: Tried) -> bool:
    return cell.error is not None and not cell.fault and not cell.why


def table(rows: Sequence[Row]) -> str:
    """In Markdown; reasons of refusals below it."""
    reasons: dict[str, int] = {}
    lines = [f"| model | MB | {' | '.join(PLANS)} |", f"|---|---|{'---|' * len(PLANS)}"]
    for one in rows:
        shown = []
        for name in PLANS:
            cell = one.cells[name]
            if cell.error is not None:
                said = f"{cell.said}, {cell.share:.0%}" if name != "replicate" else cell.said
                said = said if not cell.fault else f"**{said}**"
            else:
                said = "**fault**" if cell.fault else "no"
            if cell.why:
                said += f" ({reasons.setdefault(cell.why, len(reasons) + 1)})"
            shown.append(said)
        tried = "" if one.parts == tuple(SHARES) else f" (of {', '.join(map(str, one.parts))})"
        lines.append(f"| {one.name}{tried} | {one.megabytes:.1f} | {' | '.join(shown)} |")
    lines.append("")
    lines += [f"{number}. {why}" for why, number in reasons.items()]
    counts = ", ".join(f"{name} {sum(_exact(one.cells[name]) for one in rows)}" for name in PLANS)
    return "\n".join([*lines, "", f"Exact, of {len(rows)} models: {counts}.", ""])


if __name__ == "__main__":
    sys.exit(main())
