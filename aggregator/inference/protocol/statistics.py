"""What is counted of requests to models, as the protocol's statistics extension has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_attention.core.messages.inference import InferReport
from edge_attention.core.messages.open_inference import (
    InferBatchStatistics,
    InferStatistics,
    ModelStatistics,
    StatisticDuration,
)

__all__ = ["InferenceCounts"]

BATCH_SIZES = 64
"""Sizes of batches of one version that are counted by themselves: the first that come."""
VERSIONS = 1024
"""Versions of models that are counted; those that have gone are forgotten (`forget`)."""


@dataclass
class _Sum:
    count: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, share: float = 1.0) -> None:
        self.count += share
        self.seconds += share * max(seconds, 0.0)

    def told(self) -> StatisticDuration:
        return StatisticDuration(round(self.count), round(self.seconds * 1e9))


@dataclass
class _Stages:
    """Where a request's time goes: reading its inputs, running, writing its outputs."""

    input: _Sum = field(default_factory=_Sum)
    infer: _Sum = field(default_factory=_Sum)
    output: _Sum = field(default_factory=_Sum)

    def add(self, infer: float, output: float, share: float = 1.0) -> None:
        self.input.add(0.0, share)  # what comes is what runs
        self.infer.add(infer, share)
        self.output.add(output, share)


@dataclass
class _Version:
    last: int = 0
    rows: int = 0
    runs: float = 0.0
    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    queue: _Sum = field(default_factory=_Sum)
    stages: _Stages = field(default_factory=_Stages)
    batches: dict[int, _Stages] = field(default_factory=dict)


class InferenceCounts:
    """By name and version of models. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._of: dict[tuple[str, int], _Version] = {}

    def answered(self, name: str, version: int, rows: int, report: InferReport) -> None:
        """A request of so many rows was answered. Where it ran in a batch with others, it has a share of that
        run, by rows."""
        if (found := self._version(name, version)) is None:
            return
        stages = report.seconds
        whole = stages.get("all", 0.0)
        queue = stages.get("ready", 0.0) + stages.get("queue", 0.0) + stages.get("turn", 0.0)
        batch = max(report.rows, rows)
        share = rows / batch
        fold = stages.get("fold", 0.0)
        found.last = round(1000 * self._clock())
        found.rows += rows
        found.runs += share
        found.success.add(whole)
        found.queue.add(queue)
        found.stages.add(whole - queue - fold, fold)
        if batch in found.batches or len(found.batches) < BATCH_SIZES:
            found.batches.setdefault(batch, _Stages()).add(whole - queue - fold, fold, share)

    def failed(self, name: str, version: int, seconds: float) -> None:
        """A request ended with an error after so many seconds."""
        if (found := self._version(name, version)) is not None:
            found.fail.add(seconds)

    def forget(self, name: str, version: int) -> None:
        """The version has gone."""
        self._of.pop((name, version), None)

    def of(self, name: str, version: int) -> ModelStatistics:
        """What was counted of it; zeros where nothing was."""
        found = self._of.get((name, version)) or _Version()
        return ModelStatistics(
            name,
            str(version),
            found.last,
            found.rows,
            round(found.runs),
            InferStatistics(
                found.success.told(),
                found.fail.told(),
                found.queue.told(),
                found.stages.input.told(),
                found.stages.infer.told(),
                found.stages.output.told(),
            ),
            tuple(
                InferBatchStatistics(rows, one.input.told(), one.infer.told(), one.output.told())
                for rows, one in sorted(found.batches.items())
            ),
        )

    def _version(self, name: str, version: int) -> _Version | None:
        key = name, version
        if key not in self._of and len(self._of) >= VERSIONS:
            return None
        return self._of.setdefault(key, _Version())
