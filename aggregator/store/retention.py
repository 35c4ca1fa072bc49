"""What is kept of runs that have ended, and of files that nobody names: settings, and a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DAY", "EndedRun", "Retention", "surplus"]

DAY = 86400.0


@dataclass(frozen=True)
class Retention:
    """What `edge-aggregator --keep-...` says. 0 of a setting of runs: it holds nobody back.

    Attributes:
        runs: how many runs that have ended are kept; the oldest go first.
        run_seconds: how long after its last commit a run that has ended is kept.
        run_bytes: of the files of all runs that have ended; the oldest go first.
        blob_seconds: how long a file that clients sent, and that no run names, is kept after its last use.
    """

    runs: int = 0
    run_seconds: float = 0.0
    run_bytes: int = 0
    blob_seconds: float = 30 * DAY


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended. `last`: its last commit, or its start, in seconds since 1970; `size` in bytes."""

    id: str
    last: float
    size: int


def surplus(ended: Sequence[EndedRun], kept: Retention, now: float) -> tuple[tuple[str, str], ...]:
    """Runs that are to go, the oldest first, each with the setting that says so. `now`: seconds since 1970.

    Example: `surplus([EndedRun("a", 1.0, 10), EndedRun("b", 2.0, 10)], Retention(runs=1), 3.0)` is
    `(("a", "--keep-runs"),)`.
    """
    oldest_first = sorted(ended, key=lambda run: (run.last, run.id))
    count, size = len(ended), sum(run.size for run in ended)
    found = []
    for run in oldest_first:
        if kept.run_seconds and run.last < now - kept.run_seconds:
            why = "--keep-run-days"
        elif kept.runs and count > kept.runs:
            why = "--keep-runs"
        elif kept.run_bytes and size > kept.run_bytes:
            why = "--keep-run-bytes"
        else:
            break
        found.append((run.id, why))
        count, size = count - 1, size - run.size
    return tuple(found)
