"""What a client under test did: a line of JSON a call, written at once: kill -9 loses none that ended."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_attention.core.errors import EdgeAttentionError


@dataclass(frozen=True)
class Call:
    """One call. Times are CLOCK_MONOTONIC, which all processes of a machine share.

    Attributes:
        what: the call's name.
        deadline: seconds it was given; 0: it has none.
        lag: seconds of it in which the client itself did not run, whoever's fault that was.
        outcome: `ok`; `partial`, an answer that says it is; or the class of an error.
        wrong: what is wrong with its result; empty if nothing.
        detail: an error's message, or what else a check wants to know.
    """

    what: str
    began: float
    ended: float
    deadline: float
    lag: float
    outcome: str
    wrong: str
    detail: Any

    @property
    def late(self) -> float:
        """Seconds past its deadline in which the client did run."""
        return self.ended - self.began - self.lag - self.deadline if self.deadline else 0.0


def read(file: Path) -> list[Call]:
    """All calls that ended, by all clients that wrote there."""
    if not file.exists():
        return []
    # A client killed in the middle of a line has not seen that call's end.
    lines = file.read_text(errors="replace").split("\n")[:-1]
    return [Call(**json.loads(line)) for line in lines if line]


class Journal:
    """Writes calls to a file."""

    EVERY = 0.05

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)
        self._lags: list[tuple[float, float]] = []
        threading.Thread(target=self._watch, name="lag", daemon=True).start()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(self.EVERY)
            now = time.monotonic()
            if now - last > 2 * self.EVERY:
                self._lags.append((now, now - last - self.EVERY))
            last = now

    def call(self, what: str, deadline: float, do: Any, check: Any = None) -> Any:
        """What `do()` returns, or None after an error of the catalogue.

        `check(result)` gives (outcome, wrong, detail); without it the outcome is ok.
        """
        began = time.monotonic()
        result = None
        try:
            result = do()
            ended = time.monotonic()
            outcome, wrong, detail = check(result) if check else ("ok", "", None)
        except EdgeAttentionError as error:
            ended = time.monotonic()
            outcome, wrong, detail = type(error).__name__, "", error.message
        time.sleep(2 * self.EVERY)  # the watch has seen the call's end
        lag = sum(missed for at, missed in self._lags if began <= at <= ended + 2 * self.EVERY)
        self.write(Call(what, began, ended, deadline, lag, outcome, wrong, detail))
        return result

    def write(self, call: Call) -> None:
        self._file.write(json.dumps(asdict(call)) + "\n")

    def note(self, what: str, outcome: str = "ok", detail: Any = None) -> None:
        """Something that took no time."""
        now = time.monotonic()
        self.write(Call(what, now, now, 0.0, 0.0, outcome, "", detail))
