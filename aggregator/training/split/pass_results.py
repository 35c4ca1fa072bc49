"""What passes of samples through a split model come to, and the record of the round they make. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aggregator.inference.model_answer import ModelAnswer
from aggregator.training.divergence import NotANumber
from aggregator.training.split.plan import LOSS, LOSS_WEIGHT, METRIC, SplitPlan, grad
from aggregator.training.split.versions import GradientSum, SplitVersion
from edge_attention.core.errors import InvalidTensor
from edge_attention.core.losses import sound_count
from edge_attention.core.messages.training import Evaluation, NodeRound, TrainingRound
from edge_attention.core.tensors import Array, Int64

__all__ = ["MadeRound", "PassOfSamples", "counted", "evaluated", "round_record"]


class PassOfSamples:
    """What comes of some samples, piece by piece."""

    def __init__(
        self, plan: SplitPlan, gradients: bool, most: float, seconds: Mapping[str, float] | None = None
    ) -> None:
        """`gradients`: they come piece by piece. `most`: what the labels of a piece count at most.
        `seconds`: of what was tried before."""
        self._plan = plan
        self._most = most
        self._wants = gradients
        self.sum = GradientSum(plan.names)
        self.metrics = dict.fromkeys(plan.metrics, 0.0)
        self.seconds = dict(seconds or {})
        self._loss = self._count = 0.0
        self._runs: defaultdict[str, float] = defaultdict(float)

    def add(self, answer: ModelAnswer) -> None:
        """Fold the next piece in. Blocks for as long as adding takes.

        Raises:
            NotANumber: what came is none.
            InvalidTensor: its labels count less than nothing, or more than they can.
        """
        results, plan = answer.results, self._plan
        loss = _number(results, LOSS)
        count = counted(results, self._most) if plan.weighted else 1.0
        self._loss += loss * count
        self._count += count
        for name in plan.metrics:
            self.metrics[name] += _number(results, METRIC + name)
        if self._wants:
            self.sum.add(loss, {name: results[grad(name)] for name in plan.names}, count)
        for run in answer.segments:
            self._runs[run.node] += run.run
            self.seconds["graphs"] = self.seconds.get("graphs", 0.0) + run.run

    def have(self, sums: Mapping[str, Array]) -> None:
        """The sums that nodes have made of all pieces' gradients, by result. Blocks as `add` does."""
        self.sum.take(self._loss, {name: sums[grad(name)] for name in self._plan.names}, self._count)

    def lap(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that ran something."""
        return tuple(sorted(self._runs))

    @property
    def count(self) -> float:
        """What its pieces count in a mean: by their labels, or one each."""
        return self._count

    @property
    def loss(self) -> float:
        """The sum of the pieces' losses, each by what it counts."""
        return self._loss

    def nodes_of(self, samples: int, steps: int, loss: float, norm: float) -> dict[str, NodeRound]:
        """What each node that ran something did of it, without its bytes."""
        return {
            node: NodeRound(samples, steps, loss, run, 0, norm) for node, run in sorted(self._runs.items())
        }


def evaluated(passes: Sequence[PassOfSamples], samples: int) -> Evaluation:
    """What the held-out samples of all groups come to."""
    count = sum(one.count for one in passes)
    loss = sum(one.loss for one in passes) / count if count else 0.0
    names = passes[0].metrics if passes else ()
    return Evaluation(samples, loss, {name: sum(one.metrics[name] for one in passes) for name in names})


@dataclass(frozen=True, eq=False)
class MadeRound:
    """A round up to its commit: its record without bytes and times of that, and what commits it.

    `commit` is given what makes the record once the step is taken; it blocks.
    """

    record: TrainingRound
    commit: Callable[[Callable[[], Mapping[str, Any]]], SplitVersion]


def round_record(
    number: int,
    loss: float,
    positions: Int64 | None,
    seconds: Mapping[str, float],
    nodes: Mapping[str, NodeRound],
) -> TrainingRound:
    """The record of round `number`, without its bytes. `positions`: of its samples, if they have one list."""
    return TrainingRound(
        number=number,
        version=number,
        loss=loss,
        samples=() if positions is None else tuple(positions.tolist()),
        seconds=dict(seconds),
        bytes_sent={},
        bytes_received={},
        mass={},
        nodes=nodes,
    )


def _number(results: Mapping[str, Array], name: str) -> float:
    value = float(np.asarray(results[name]).reshape(-1)[0])
    if not np.isfinite(value):
        named = {LOSS: "the loss", LOSS_WEIGHT: "what labels count"}.get(name, name)
        raise NotANumber(named)
    return value


def counted(results: Mapping[str, Array], most: float) -> float:
    """What the labels of a piece with these `results` count: a group's share of the mean of all goes by it.

    Raises:
        NotANumber, InvalidTensor: it is none, or not within 0 to `most`.
    """
    count = _number(results, LOSS_WEIGHT)
    if not sound_count(count, most):
        raise InvalidTensor(
            f"the node that has the loss says that a piece's labels count {count:g}; they can count 0 to "
            f"{most:g}"
        )
    return count
