"""Every benchmark: python -m benchmarks [NAME ...] [--quick] [--json FILE]

Prints a table for each, the bound beside what was measured, and writes it with the machine's description
to benchmarks/results.json, where those not run stay as they are; with --quick only where --json says, as
its figures are not to replace a whole run's. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import partial
from inspect import signature
from pathlib import Path

from benchmarks.report import Report, machine

NAMES = (
    "kernel",
    "attend",
    "round",
    "cell",
    "frozen",
    "idle",
    "torch_parity",
    "torch_operators",
    "federated",
    "federated_slow",
    "bulk",
    "metrics",
    "overload",
    "many",
    "infer",
    "infer_memory",
    "serve",
    "decode",
    "split",
    "simulate",
)
RESULTS = Path(__file__).parent / "results.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed, as ratios with bounds.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; without: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing installed")
    where = "where the figures go, else benchmarks/results.json, or with --quick nowhere"
    parser.add_argument("--json", type=Path, metavar="FILE", help=where)
    args = parser.parse_args()
    target: Path | None = args.json or (None if args.quick else RESULTS)
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    described = machine()
    load = described["load_before"]
    print(f"{described['cpu']}, {described['cores']} cores, load {load:.1f} before the start")
    try:
        found = json.loads(target.read_text()) if target and target.exists() else {}
        found = {name: found[name] for name in NAMES if name in found}
    except (ValueError, TypeError) as error:
        parser.error(f"{target} has no benchmarks' figures ({error}); remove it, or give another --json")
    reports: dict[str, Report] = {}

    def keep(name: str, report: Report) -> None:
        """At once: the next one may take half an hour, or fail."""
        found[name] = {"machine": described, "quick": args.quick} | report.json()
        if target:
            target.write_text(json.dumps(found, indent=1) + "\n")

    for name in args.names or NAMES:
        # Imported one at a time: each needs extras of its own.
        made = importlib.import_module(f"benchmarks.{name}").report
        # One that takes long says what it has by and by, so that a run that is ended keeps it.
        long = {"keep": partial(keep, name)} if "keep" in signature(made).parameters else {}
        reports[name] = made(args.quick, **long)
        print(reports[name].table(), flush=True)
        keep(name, reports[name])
    return 0 if all(report.met for report in reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
