"""The daemons' event loops, watched: no step of theirs in any test here takes over 20 ms (`watcher`)."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WATCHER = Path(__file__).parent / "watcher"

EXCUSED = {
    "aggregator/server.py running": "it starts: state and modules are loaded, and it serves nobody yet",
    "base_events.py shutdown_default_executor": "it has ended, and nobody is served any more",
    "subprocess.py _execute_child": "a process begins, and until it has its program, for which it may wait "
    "for a processor, Python keeps the interpreter, in whatever thread: 1 to 2 ms on a quiet machine",
}
"""Functions by file and name in whose steps a loop may be held, and why."""

MOST_MS = 20.0
LONG_WAIT_MS = 100.0
"""A step that waited and did not compute is none of ours where it is shorter and the only one of its place:
a host that runs other machines has processors wait without a word. What code waits for it waits for again."""


@dataclass(frozen=True)
class Step:
    """One that took too long. `held` and `cpu` in ms; `stacks` where it was, the innermost frame last."""

    time: float  # seconds since 1970
    pid: int
    daemon: list[str]
    wall: float
    held: float
    cpu: float
    step: str
    stacks: list[list[str]]
    beside: list[str]
    garbage: float

    @property
    def place(self) -> str:
        """What was being called, without numbers of tasks."""
        return f"{re.sub('[0-9]+', '', self.step)} {self.stacks[-1][-1] if self.stacks else ''}"

    def __str__(self) -> str:
        stack = "".join(f"\n        {line}" for lines in self.stacks[-1:] for line in lines)
        stack += "\n        beside it: " + ", ".join(self.beside)
        ms = f"{self.held:.0f} ms held, {self.cpu:.0f} ms of processors, {self.garbage:.0f} for garbage"
        return f"{' '.join(self.daemon[-12:])[:160]}: {self.step}: {ms}{stack}"


class Steps:
    """Of the daemons that were started within `watched`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, int] = {}
        self._waited: Counter[str] = Counter()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Daemons started meanwhile are watched: this process's environment says so."""
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "EDGE_LOOP_WATCH")}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(WATCHER), before["PYTHONPATH"])))
        os.environ["EDGE_LOOP_WATCH"] = str(self.folder)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def watches(self, pid: int) -> bool:
        """Whether that process has been watched."""
        return (self.folder / str(pid)).exists()

    def new(self) -> list[Step]:
        """Those told since the last call."""
        found = []
        for file in self.folder.glob("*[0-9]"):
            lines = file.read_text().splitlines()
            new = lines[self._read.get(file.name, 0) :]
            found += [Step(pid=int(file.name), **json.loads(line)) for line in new]
            self._read[file.name] = len(lines)
        return found

    def wrong(self, steps: list[Step]) -> list[Step]:
        """Those of them that nothing excuses."""
        found = []
        for step in steps:
            if excused(step):
                continue
            self._waited[step.place] += 1
            if max(step.cpu, step.held - LONG_WAIT_MS + MOST_MS) > MOST_MS or self._waited[step.place] > 1:
                found.append(step)
        return found


def excused(step: Step) -> bool:
    """Whether one of EXCUSED was being called, by the loop's thread or beside it."""
    lines = [line for lines in (*step.stacks, step.beside) for line in lines if ":" in line]
    frames = [line.split(" ", 1) for line in lines]
    called = [f"{where.rpartition(':')[0]} {name}" for where, name in frames]
    return any(one.endswith(name) for name in EXCUSED for one in called)
