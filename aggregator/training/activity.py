"""What training has done lately, for a person who looks: rounds, losses, attention mass by node.

Everything is bounded, and no clock is read here: `now` is seconds since 1970.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.training.curve import Curve
from edge_attention.core.messages.training import COUNTED, Evaluation, TrainingRound

ROUNDS = 50
POINTS_OF_MASS = 60
NODES = 256
"""Nodes whose attention mass is remembered."""
RUNS = 32
"""Runs whose curves are remembered; the one that has been quiet longest goes first."""


@dataclass(frozen=True)
class RoundLine:
    """One committed round, as a line to read. `time`: None: in an earlier life of the aggregator."""

    time: float | None
    run: str
    number: int
    version: int
    loss: float
    seconds: float
    nodes: int
    left_out: Mapping[str, str]


@dataclass
class RunCurves:
    """The curves of one run: its loss, its evaluations, and the mass of its nodes, by round."""

    loss: Curve = field(default_factory=Curve)
    evaluation: Curve = field(default_factory=Curve)
    mass: Curve = field(default_factory=lambda: Curve(POINTS_OF_MASS, NODES))
    revision: int = 0
    """Changes with the curves: what was drawn of another revision no longer holds."""


class RunActivity:
    """Told by runs what they did; asked by the page."""

    def __init__(self) -> None:
        self.rounds: deque[RoundLine] = deque(maxlen=ROUNDS)
        self.runs: OrderedDict[str, RunCurves] = OrderedDict()

    def round(self, run: str, record: TrainingRound, now: float) -> None:
        self._line(run, record, now)
        self.recall(run, record)

    def earlier(self, run: str, record: TrainingRound) -> None:
        """A round of an earlier life as a line to read; `recall` has it in the curves."""
        self._line(run, record, None)

    def _line(self, run: str, record: TrainingRound, time: float | None) -> None:
        nodes = len(record.nodes or record.mass)
        seconds = record.seconds.get("all", 0.0)
        self.rounds.append(
            RoundLine(
                time, run, record.number, record.version, record.loss, seconds, nodes, dict(record.left_out)
            )
        )

    def evaluated(self, run: str, number: int, evaluation: Evaluation) -> None:
        curves = self._run(run)
        shares = {name: evaluation.share(name) for name in evaluation.metrics if name not in COUNTED}
        curves.evaluation.add(number, {**shares, "loss": evaluation.loss})

    def recall(self, run: str, record: TrainingRound) -> None:
        """A round into the run's curves: one just committed, or of an earlier life of the aggregator."""
        curves = self._run(run)
        curves.loss.add(record.number, {"loss": record.loss})
        if record.mass:
            curves.mass.add(record.number, record.mass)
        if record.evaluation is not None:
            self.evaluated(run, record.number, record.evaluation)

    def forget(self, run: str) -> None:
        """Nothing is known of the run any more."""
        self.runs.pop(run, None)
        kept = [line for line in self.rounds if line.run != run]
        self.rounds.clear()
        self.rounds.extend(kept)

    def _run(self, run: str) -> RunCurves:
        curves = self.runs.setdefault(run, RunCurves())
        self.runs.move_to_end(run)
        while len(self.runs) > RUNS:
            self.runs.popitem(last=False)
        curves.revision += 1
        return curves
