"""Round records: one JSON object a round, in the state and beside the run's parameters."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aggregator.store.state import State
from edge_attention.core.messages.training import Evaluation, NodeRound, TrainingRound

log = logging.getLogger(__name__)

PAGE = 256
"""Records read at a time: whoever else needs the state waits no longer than for so many."""
LINE_BYTES = 64 * 1024 * 1024
"""A last line longer than this is not looked for: the file is written anew."""
_TAIL = 64 * 1024


def to_json(record: TrainingRound) -> dict[str, Any]:
    """The record as a JSON object; `record_from` reads it."""
    return dataclasses.asdict(record)


def record_from(data: Mapping[str, Any]) -> TrainingRound:
    """The record that `to_json` made of it, by this release or an earlier one."""
    evaluation = data.get("evaluation")
    return TrainingRound(
        **{
            **data,
            "samples": tuple(data["samples"]),
            # A record of an earlier release names none: such a node is asked once more.
            "quarantined": tuple(data.get("quarantined", ())),
            "evaluation": Evaluation(**evaluation) if evaluation else None,
            "nodes": {node: NodeRound(**part) for node, part in data.get("nodes", {}).items()},
        }
    )


def every_record(state: State, run: str, after: int = 0) -> Iterator[TrainingRound]:
    """The records of rounds above `after`, in order. Blocks; others have the state between two pages."""
    while page := state.records(run, after, count=PAGE):
        for row in page:
            yield record_from(row.record)
        after = page[-1].round


def mark_best(state: State, run: str, version: int | None, loss: float) -> None:
    """Write down, with what the run began with, which of its versions is the best. Blocks."""
    zeroth = state.record(run, 0)
    if zeroth is not None and version is not None:
        state.replace_record(run, 0, {**zeroth, "best": {"version": version, "loss": loss}})


def best_of(zeroth: Mapping[str, Any] | None) -> tuple[int | None, float | None]:
    """The version that `mark_best` has written down, and its loss."""
    best = (zeroth or {}).get("best")
    return (int(best["version"]), float(best["loss"])) if best else (None, None)


class RecordFile:
    """`record.jsonl` beside a run's parameters: a JSON line a round, for people and scripts.

    The state's own records are what counts. Where the file cannot be written the run goes on: that is said
    once, and what is missing is written when it can be. One thread at a time; every call blocks.
    """

    def __init__(self, state: State, run: str, path: Path) -> None:
        self._state = state
        self._run = run
        self._path = path
        self._last: int | None = None
        """The last round in the file; None: to be looked up there."""
        self._said = False

    def write(self, until: int) -> None:
        """Append the rounds up to and with `until` that the file lacks."""
        try:
            if self._last is None:
                self._last = self._found()
            if self._last < until:
                self._append(self._last, until)
        except OSError as error:
            self._last = None  # it may end in the middle of a line
            if not self._said:
                log.warning(
                    "run %s: %s cannot be written: %s; the run goes on, and its records are in the state",
                    self._run, self._path, error.strerror,
                )  # fmt: skip
            self._said = True

    def _append(self, last: int, until: int) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            while last < until:
                page = self._state.record_texts(self._run, last, min(PAGE, until - last))
                page = [(number, text) for number, text in page if number <= until]
                if not page:
                    break
                file.writelines(text + "\n" for _, text in page)
                last = page[-1][0]
        self._last = last

    def _found(self) -> int:
        """The round of the file's last line; what is no line of this run's is cut off."""
        try:
            with self._path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                start, tail = size, b""
                # The last line ends at the file's last newline and begins after the one before.
                while start > 0 and tail.count(b"\n") < 2:
                    step = min(start, _TAIL)
                    start -= step
                    file.seek(start)
                    tail = file.read(step) + tail
                    if len(tail) > LINE_BYTES:
                        break
                whole = tail[: tail.rfind(b"\n") + 1]
                number = _number(whole[:-1].rpartition(b"\n")[2])
                if number is None or number > self._state.get_run(self._run).round:
                    file.truncate(0)
                    return 0
                file.truncate(start + len(whole))
                return number
        except FileNotFoundError:
            return 0


def _number(line: bytes) -> int | None:
    """The round that a line of a record file is of; None: it is none."""
    try:
        number = json.loads(line)["number"]
    except (ValueError, TypeError, KeyError):
        return None
    return number if type(number) is int and number > 0 else None
