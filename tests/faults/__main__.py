"""`make test-faults`: the table of docs/reliability.md, cell by cell, on real processes.

    python -m tests.faults [PATTERN ...] [--quick] [--jobs N] [--json FILE] [--keep DIR]
    python -m tests.faults --list | --page | --check

PATTERN is FAULT/OPERATION/VICTIM, each a name, a pattern or left out: `kill`, `*/append`,
`half-open/attend/client`. Ends with 0 if every cell that was run holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults import page
from tests.faults.injectors import FAULTS
from tests.faults.promises import OPERATIONS, VICTIMS, Cell, chosen

LIMIT = 600.0
"""Seconds of one cell; then it is ended and has failed."""

_running: set[subprocess.Popen[str]] = set()
console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="FAULT/OPERATION/VICTIM; parts may be left out"
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="the same")
    parser.add_argument("--quick", action="store_true", help="the choice that CI runs")
    parser.add_argument("--jobs", type=int, default=3, help="cells at a time")
    parser.add_argument("--json", type=Path, help="where to write what came of every cell")
    parser.add_argument("--keep", type=Path, help="keep every cell's files in this folder")
    parser.add_argument("--list", action="store_true", help="the cells and what they promise")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/reliability.md anew")
    parser.add_argument("--check", action="store_true", help="fail if they are stale")
    options = parser.parse_args()
    if options.page or options.check:
        return page.write(check=options.check)
    cells = chosen((*options.patterns, *options.only), options.quick)
    if options.list:
        for cell in cells:
            print(f"{cell!s:36} {cell.promise.text}")
        return 0
    if not cells:
        print("no cell has such a name; `--list` shows them", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        results = _run_all(cells, options.keep or Path(folder), options.jobs)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return _summary(results)


def _run_all(cells: list[Cell], folder: Path, jobs: int) -> list[dict[str, Any]]:
    undisturbed: dict[str, Path] = {}
    for operation in sorted({cell.operation for cell in cells} & {"fusion", "federated"}):
        where = folder / f"undisturbed-{operation}"
        where.mkdir(parents=True)
        console.print(f"training without a fault: {operation}")
        done = _process(["undisturbed", operation, str(where)], mounts=False)
        if done.returncode:
            console.print(done.stderr[-3000:], markup=False)
            raise SystemExit(f"the undisturbed {operation} run failed")
        undisturbed[operation] = where / "parameters.npz"
    results = []
    # The longest first, so that none is left alone at the end.
    order = sorted(cells, key=lambda cell: -FAULTS[cell.fault].seconds)
    pool = ThreadPoolExecutor(jobs)
    tasks = {pool.submit(_run, cell, folder, undisturbed.get(cell.operation)): cell for cell in order}
    try:
        for number, task in enumerate(as_completed(tasks), start=1):
            result = task.result()
            results.append(result)
            mark = {"held": "[green]held   [/]", "skipped": "[yellow]skipped[/]"}.get(
                result["state"], "[red]FAILED [/]"
            )
            took = f"{result['seconds']:5.0f} s"
            console.print(f"{number:3}/{len(cells)} {mark} {result['cell']:34} {took}  {_remark(result)}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_running):
            os.killpg(process.pid, signal.SIGKILL)  # what it started sees its pipes close, and ends
        pool.shutdown()
    place = {str(cell): at for at, cell in enumerate(cells)}
    return sorted(results, key=lambda result: place[result["cell"]])


def _run(cell: Cell, folder: Path, undisturbed: Path | None) -> dict[str, Any]:
    began = time.monotonic()
    fault = FAULTS[cell.fault]
    if why := fault.lacking():
        return {"cell": str(cell), "state": "skipped", "why": why, "seconds": 0.0}
    where = folder / str(cell).replace("/", "-")
    where.mkdir(parents=True)
    words = [str(cell), str(where), *([str(undisturbed)] if undisturbed else [])]
    try:
        done = _process(words, mounts=fault.disk)
        result = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        result = {"cell": str(cell), "wrong": [f"it had not ended after {LIMIT:g} s"]}
    except (IndexError, ValueError):
        result = {"cell": str(cell), "wrong": [f"it ended with {done.returncode}: {done.stderr[-2000:]}"]}
    if not result["wrong"]:
        shutil.rmtree(where, ignore_errors=True)
    result["state"] = "failed" if result["wrong"] else "held"
    result["seconds"] = round(time.monotonic() - began, 1)
    return result


def _process(words: list[str], mounts: bool) -> subprocess.CompletedProcess[str]:
    """A cell's process; with `mounts` what it mounts ends with it. Whatever it started ends with it, too."""
    command = [sys.executable, "-m", "tests.faults.cell", *words]
    if mounts:
        command = ["unshare", "--mount", "--propagation", "private", *command]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        _running.add(process)
        try:
            out, err = process.communicate(timeout=LIMIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _remark(result: dict[str, Any]) -> str:
    if result["state"] == "skipped":
        return str(result["why"])
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(result.get("outcomes", {}).items()))
    apart = result.get("apart")
    parts = [f"well after {result['recovered']} s" if "recovered" in result else "", outcomes]
    parts += [] if apart is None else ["the same bits" if apart == 0.0 else f"{apart:.1g} apart"]
    parts += [f"\n      {text}" for text in result.get("wrong", [])]
    return "; ".join(part for part in parts if part).replace("[", "\\[")


def _summary(results: list[dict[str, Any]]) -> int:
    state = {result["cell"]: result["state"] for result in results}
    marks = {"held": "[green]✓[/]", "failed": "[red]✗[/]", "skipped": "[yellow]–[/]"}
    table = Table(title="faults by operations; in each cell: node, aggregator, client")
    table.add_column("fault")
    for operation in OPERATIONS:
        table.add_column(operation, justify="center")
    for fault in FAULTS:
        row = [
            " ".join(marks.get(state.get(str(Cell(fault, operation, victim)), ""), "·") for victim in VICTIMS)
            for operation in OPERATIONS
        ]
        table.add_row(fault, *row)
    console.print(table)
    failed = [result for result in results if result["state"] == "failed"]
    for result in failed:
        console.print(f"\n{result['cell']}", style="red")
        for text in result["wrong"]:
            console.print(f"  {text}", markup=False)
        for name, lines in result.get("said", {}).items():
            console.print(f"  --- {name}, its last lines", markup=False)
            for line in lines[-12:]:
                console.print(f"    {line}", markup=False)
    counts = [sum(result["state"] == name for result in results) for name in ("held", "failed", "skipped")]
    print("{} passed, {} failed, {} skipped".format(*counts))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
