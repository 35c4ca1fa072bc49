"""`python -m tests.models.training FOLDER [NAME...] [--write]`: gradients of every model cut by every plan.

FOLDER has the files that `python -m tools.exports` writes, and whatever else is to be tried. A cell is the
largest difference of a gradient from that of the whole model, relative to the largest gradient, over 2 and 3
parts of unequal size, with activations kept and computed again; or why it is refused. Rows are kept in
FOLDER's trained.json; `--write` puts the table of all into docs/split_training.md. Fails where a gradient is
off by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from edge_attention.core.errors import EdgeAttentionError
from tests.graphs.axes.export_feeds import LENGTHS, feeds_for
from tests.graphs.axes.model_plans import PLANS, SHARES, Tried, plan_of
from tests.graphs.backward.training_cases import TrainingCase, case_of, loss_for, run_cut

PAGE = Path(__file__).resolve().parents[2] / "docs" / "split_training.md"
START, END = "<!-- table: python -m tests.models.training -->", "<!-- end of table -->"
PARTS = (2, 3)
LARGE = 50.0
"""MB of a file that is tried over 3 parts only, with activations kept."""
LITTLE = 1e-3
"""Where a loss is less, as labels are what the model says, gradients are rounding: others are taken."""


@dataclass(frozen=True)
class TrainedRow:
    """A model: what trains of it, and by plan the worst that came of it."""

    name: str
    megabytes: float
    weights: int
    parts: tuple[int, ...]
    cells: dict[str, Tried]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models.training", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--parts", type=int, nargs="+", choices=SHARES, default=PARTS, help="of these only")
    parser.add_argument("--write", action="store_true", help="put the table in docs/split_training.md")
    said = parser.parse_intermixed_args()
    kept = said.folder / "trained.json"
    rows = _read(kept)
    for path in sorted(said.folder.glob("*.onnx")):
        if said.names and path.stem not in said.names:
            continue
        began = time.perf_counter()
        found = rows[path.stem] = row(path, tuple(said.parts))
        kept.write_text(json.dumps([asdict(one) for one in rows.values()], indent=1) + "\n")
        shown = " | ".join(f"{name} {cell.said}" for name, cell in found.cells.items())
        print(f"{path.stem} ({time.perf_counter() - began:.0f} s): {shown}", flush=True)
    text = table([rows[name] for name in sorted(rows)])
    print(text)
    if said.write:
        before, _, rest = PAGE.read_text().partition(START)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{START}\n\n{text}\n{END}{after}")
    return 1 if any(cell.fault for one in rows.values() for cell in one.cells.values()) else 0


def _read(path: Path) -> dict[str, TrainedRow]:
    if not path.exists():
        return {}
    return {
        one["name"]: TrainedRow(
            one["name"],
            one["megabytes"],
            one["weights"],
            tuple(one.get("parts", PARTS)),
            {name: Tried(**cell) for name, cell in one["cells"].items()},
        )
        for one in json.loads(path.read_text())
    }


def row(path: Path, parts: tuple[int, ...]) -> TrainedRow:
    """Try one model by everything."""
    model = onnx.load(path)
    size = path.stat().st_size / 1e6
    feeds = feeds_for(model.graph, LENGTHS[0])
    try:
        for seed in range(4):
            case = case_of(path.read_bytes(), feeds, loss_for(model), seed=seed)
            if case.loss > LITTLE:
                break
    except EdgeAttentionError as error:
        return TrainedRow(path.stem, size, 0, parts, dict.fromkeys(PLANS, Tried(None, error.message)))
    parts = (3,) if size > LARGE else parts
    cells = {plan: _tried(case, plan, parts, (False,) if size > LARGE else (False, True)) for plan in PLANS}
    return TrainedRow(path.stem, size, len(case.trained), parts, cells)


def _tried(case: TrainingCase, plan: str, numbers: Sequence[int], words: Sequence[bool]) -> Tried:
    axes = case.axes()
    worst = 0.0
    for parts in numbers:
        for recompute in words:
            try:
                emitted = case.cut(plan_of(plan, axes, parts), recompute=recompute)
            except EdgeAttentionError as error:
                return Tried(None, error.message)
            try:
                worst = max(worst, case.worst(run_cut(case, emitted))[0])
            except Exception as error:
                return Tried(None, f"{type(error).__name__}: {str(error)[:160]} ({parts} parts)", True)
    return Tried(worst, "", not worst < 1e-5)


def table(rows: Sequence[TrainedRow]) -> str:
    """In Markdown; reasons of refusals below it."""
    reasons: dict[str, int] = {}
    lines = [f"| model | MB | weights | {' | '.join(PLANS)} |", f"|---|---|---|{'---|' * len(PLANS)}"]
    for one in rows:
        shown = []
        for name in PLANS:
            cell = one.cells[name]
            if cell.error is not None:
                shown.append(f"**{cell.said}**" if cell.fault else cell.said)
            else:
                number = reasons.setdefault(cell.why, len(reasons) + 1)
                shown.append(f"{'**fault**' if cell.fault else 'no'} ({number})")
        tried = "" if one.parts == PARTS else f" (of {', '.join(map(str, one.parts))})"
        lines.append(f"| {one.name}{tried} | {one.megabytes:.1f} | {one.weights} | {' | '.join(shown)} |")
    lines.append("")
    lines += [f"{number}. {why}" for why, number in reasons.items()]
    counts = ", ".join(
        f"{name} {sum(one.cells[name].error is not None and not one.cells[name].fault for one in rows)}"
        for name in PLANS
    )
    return "\n".join([*lines, "", f"Exact, of {len(rows)} models: {counts}.", ""])


if __name__ == "__main__":
    sys.exit(main())
