"""`make test-year`: 500 runs, 20,000 rounds, 200 contexts created and dropped, nodes coming and going.

    python -m tests.year [--runs 500] [--rounds 40] [--contexts 200]

Ends with 0 if the aggregator is back, with all of it and with what the settings keep, in under 3 s of
processor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from edge_attention.cli.local_fleet import LocalFleet
from tests.year.life import KEEPING, Found, Year, live, restarted, settled, works

START_SECONDS = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.year")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--contexts", type=int, default=200)
    given = parser.parse_args()
    year = Year(given.runs, given.rounds, given.contexts, min(KEEPING, max(1, given.runs // 5)))

    def say(text: str) -> None:
        print(text, flush=True)

    def told(what: str, found: Found) -> None:
        say(
            f"{what}: {found.runs} runs, started with {found.start_processor:.2f} s of processor in "
            f"{found.start_seconds:.2f} s, memory "
            f"{found.memory >> 20} MiB, state {found.state >> 10:,} KiB {found.by_kind}"
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalFleet(folder / "state") as fleet:
            fleet.start_aggregator()
            live(fleet, folder, year, say)
            whole = restarted(fleet, folder)
            told("all of it kept", whole)
            kept = ("--keep-runs", str(year.kept), "--keep-blob-days", "0.1")
            restarted(fleet, folder, *kept)
            settled(fleet, year, 60.0 + 60.0 * year.runs / 100)
            less = restarted(fleet, folder, *kept)
            told(f"--keep-runs {year.kept}", less)
            works(fleet)
    ok = max(whole.start_processor, less.start_processor) < START_SECONDS
    ok = ok and whole.runs == year.runs and less.runs == year.kept and less.state < whole.state
    say("as the settings say" if ok else "NOT as it is to be")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
