"""A finding: what one check of the doctor came to, in which words, and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Finding", "Grade", "duration", "failed", "ok", "size", "skipped", "warning", "worst"]


class Grade(Enum):
    """skipped: not measured, and the finding says why."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One check of one thing.

    Attributes:
        check: what was checked, one word, as in docs/doctor.md.
        subject: of what: `this box`, `aggregator`, `node a`, `context memory`.
        measured: what was found, with its numbers.
        fix: what to do about it, one sentence; empty where there is nothing to do.
        data: the same numbers for programs, in seconds and bytes.
    """

    check: str
    subject: str
    status: Grade
    measured: str
    fix: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def ok(check: str, subject: str, measured: str, **data: Any) -> Finding:
    return Finding(check, subject, Grade.OK, measured, "", data)


def warning(check: str, subject: str, measured: str, fix: str, **data: Any) -> Finding:
    return Finding(check, subject, Grade.WARNING, measured, fix, data)


def failed(check: str, subject: str, measured: str, fix: str, **data: Any) -> Finding:
    return Finding(check, subject, Grade.FAILED, measured, fix, data)


def skipped(check: str, subject: str, why: str, fix: str = "", /, **data: Any) -> Finding:
    return Finding(check, subject, Grade.SKIPPED, why, fix, data)


def worst(findings: Iterable[Finding]) -> Grade:
    """FAILED if anything failed, else WARNING if there is one, else OK."""
    found = {finding.status for finding in findings}
    return next((s for s in (Grade.FAILED, Grade.WARNING) if s in found), Grade.OK)


def size(count: float) -> str:
    """Bytes for a person: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for a person: `0.6 ms`, `2.3 s`, `14 min`, `3.2 days`."""
    for unit, each, limit in (
        ("ms", 1e-3, 1.0),
        ("s", 1.0, 120.0),
        ("min", 60.0, 7200.0),
        ("h", 3600.0, 172_800.0),
    ):
        if abs(seconds) < limit:
            value = seconds / each
            return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.2g} {unit}"
    return f"{seconds / 86_400:.1f} days"
