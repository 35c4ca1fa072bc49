"""Variants of one job, each in a process of its own, that take turns: what else the machine does hits all.

The parent makes a `Worker` for `python -m MODULE ARGUMENTS`, which calls `serve`. They speak JSON by line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Worker", "median_ratio", "serve"]


def serve(turn: Callable[[int], object], first: object = None) -> None:
    """The worker's side: say `first`, then `turn(calls)` for each number of calls asked for."""
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)


class Worker:
    """The parent's side. `first` is what the worker said when it was ready."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.pid = self._process.pid
        self._what = " ".join(command[1:])
        self.first = self._read()

    def turn(self, calls: int) -> Any:
        """What the worker's `turn(calls)` returns."""
        assert self._process.stdin is not None
        print(calls, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker of the benchmark ended early: {self._what}; its error is above")
        return json.loads(line)


def median_ratio(of: Iterable[float], by: Iterable[float]) -> float:
    """The median over turns of one variant's figure by another's in the same turn."""
    return statistics.median(a / b for a, b in zip(of, by, strict=True))
