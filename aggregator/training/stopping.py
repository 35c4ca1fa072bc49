"""When a run ends before its last round, and which of its versions is the best so far: of its records alone.

A run that goes on after a restart is told of the same records, and ends where it would have ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import StopSpec, TrainingRound

__all__ = ["Stopping", "require_seen"]


class Stopping:
    """Told of a run's records, in order; says what is best, and whether it is enough.

    Args:
        stop: when the job wants its run to end.
        held: samples are held out: then losses are those of evaluations, and rounds without one do not count.

    Attributes:
        version: the version with the lowest loss on the held-out samples; None: none was evaluated.
        loss: that loss.
    """

    def __init__(self, stop: StopSpec, held: bool) -> None:
        self.version: int | None = None
        self.loss = math.inf
        self._stop = stop
        self._held = held
        self._heard = 0
        self._mark = math.inf
        """The lowest loss that was below the one before by more than `min_delta`."""
        self._marked = 0
        self._without = 0

    def hear(self, record: TrainingRound) -> bool:
        """Whether `record` makes its version the best. One that was heard before, or has no loss yet, does
        not."""
        loss = self._loss(record)
        if loss is None or record.number <= self._heard:
            return False
        self._heard = record.number
        if loss < self._mark - self._stop.min_delta:
            self._mark, self._marked, self._without = loss, record.number, 0
        else:  # so is NaN
            self._without += 1
        if not self._held or not loss < self.loss:
            return False
        self.version, self.loss = record.version, loss
        return True

    def recall(self, records: Iterable[TrainingRound]) -> None:
        """Hear what an earlier life of the run has left."""
        for record in records:
            self.hear(record)

    def why(self, record: TrainingRound, seconds: float) -> str:
        """Why the run ends after `record`, its last round, after `seconds` of training; empty: it goes on."""
        stop, loss, evaluation = self._stop, self._loss(record), record.evaluation
        if stop.loss is not None and loss is not None and loss <= stop.loss:
            return f"its loss is {loss:.6g}, at most {stop.loss:g} was wanted"
        if evaluation is not None and evaluation.samples and stop.metrics:
            shares = {name: evaluation.share(name) for name in stop.metrics}
            if all(shares[name] >= wanted for name, wanted in stop.metrics.items()):
                return ", ".join(f"{name} is {share:.2%}" for name, share in shares.items())
        if stop.patience and self._without >= stop.patience:
            what = "evaluations" if self._held else "rounds"
            below = f" by more than {stop.min_delta:g}" if stop.min_delta else ""
            best = f"{self._mark:.6g} of round {self._marked}" if self._marked else "any number"
            return f"{self._without} {what} without a loss below {best}{below}"
        if stop.seconds is not None and seconds >= stop.seconds:
            return f"it has trained for {stop.seconds:g} s"
        return ""

    @property
    def looks(self) -> bool:
        """Whether there is anything to be asked after a round."""
        return self._stop != StopSpec()

    def _loss(self, record: TrainingRound) -> float | None:
        if not self._held:
            return record.loss
        evaluation = record.evaluation
        return evaluation.loss if evaluation is not None and evaluation.samples else None


def require_seen(stop: StopSpec, holdout: float, evaluate_every: int) -> None:
    """Refuse a job whose end waits for evaluations that there are not before its last round.

    Raises:
        InvalidArgument: it says what to set.
    """
    if stop.metrics and not holdout:
        raise InvalidArgument(
            "stop.metrics are those of samples that are held out, and there are none: set holdout"
        )
    looks = stop.loss is not None or stop.metrics or stop.patience
    if holdout and looks and not evaluate_every:
        raise InvalidArgument(
            "stop goes by what held-out samples say, and evaluate_every is 0, which is after the last round "
            "alone: set it to a number of rounds"
        )
