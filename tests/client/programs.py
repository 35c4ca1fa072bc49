"""Programs run to their end in a process group of their own, which a deadline ends with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

DEADLINE = 300.0
"""Seconds: far more than any of them takes; one that hangs is ended, and its test fails."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def complaints(self) -> list[str]:
        """What it wrote to stderr, but for what gRPC's core says of a fork."""
        return [line for line in self.err.splitlines() if "fork_posix.cc" not in line]


def run(source: str, *arguments: str, flags: tuple[str, ...] = (), deadline: float = DEADLINE) -> Ended:
    """What became of the program `source` with these arguments, under these flags of the interpreter."""
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", textwrap.dedent(source), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"it hung; it said\n{out}\n{err}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, out, err)
