"""What models have answered lately, for the page: the last requests, and by model where the time went."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aggregator.inference.feeds import shape_text
from aggregator.inference.traffic import ModelTraffic
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.inference import InferReport
from edge_attention.core.tensors import Array

LATEST = 50
MODELS = 256
_NEW = 0.1
"""How much a request weighs in the means."""


@dataclass(frozen=True)
class AnswerLine:
    """One request. `time`: seconds since 1970. `why`: of one that failed, or is not exact."""

    number: int
    time: float
    model: str
    outcome: str
    shapes: str
    seconds: Mapping[str, float]
    why: str = ""


@dataclass
class ModelTimes:
    """Of a model's requests: mean seconds by stage, in graphs by part, and bytes each way.

    `together`: the share of them that ran with others; `rows`: of the batches of those, the mean.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    part_seconds: dict[str, float] = field(default_factory=dict)
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    together: float | None = None
    rows: float | None = None

    def add(self, report: InferReport) -> None:
        _mean(self.seconds, report.seconds)
        _mean(self.part_seconds, report.part_seconds)
        self.bytes_down += (report.bytes_down - self.bytes_down) * (_NEW if self.bytes_down else 1)
        self.bytes_up += (report.bytes_up - self.bytes_up) * (_NEW if self.bytes_up else 1)
        self.together = _nearer(self.together, float(report.rows > 0))
        if report.rows:
            self.rows = _nearer(self.rows, float(report.rows))


class InferenceActivity:
    """`clock`: seconds since 1970.

    Attributes:
        traffic: what goes on with each model now.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.traffic = ModelTraffic()
        self.latest: deque[AnswerLine] = deque(maxlen=LATEST)
        self.models: dict[str, ModelTimes] = {}
        self._clock = clock
        self._count = 0

    def answered(self, model: str, feeds: Mapping[str, Array], report: InferReport) -> None:
        """A request was answered."""
        shapes = shape_text({name: array.shape for name, array in feeds.items()})[:120]
        outcome = "exact" if report.exact else "partial"
        self._add(model, outcome, shapes, report.seconds, report.lacking)
        self.traffic.add(model, "requests")
        if model in self.models or len(self.models) < MODELS:
            self.models.setdefault(model, ModelTimes()).add(report)

    def failed(self, model: str, seconds: float, error: EdgeAttentionError) -> None:
        """A request ended with an error. Of one that was wrong itself the page tells the kind alone, as the
        words may have numbers of it."""
        own = error.status == "INVALID_ARGUMENT"
        why = f"{type(error).__name__}: who sent it was told what is wrong with it" if own else error.message
        self._add(model, "failed", "", {"all": seconds}, why)
        self.traffic.add(model, "requests")
        self.traffic.add(model, "failures")

    def forget(self, model: str) -> None:
        """The model is no longer deployed."""
        self.models.pop(model, None)
        self.traffic.forget(model)

    def _add(self, model: str, outcome: str, shapes: str, seconds: Mapping[str, float], why: str) -> None:
        self._count += 1
        line = AnswerLine(self._count, self._clock(), model, outcome, shapes, dict(seconds), why[:300])
        self.latest.append(line)


def _nearer(mean: float | None, value: float) -> float:
    return value if mean is None else mean + (value - mean) * _NEW


def _mean(means: dict[str, float], new: Mapping[str, float]) -> None:
    for name, value in new.items():
        if name in means:
            means[name] += (value - means[name]) * _NEW
        elif len(means) < 1024:
            means[name] = value
