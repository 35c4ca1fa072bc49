"""A run's versions on the disk, and the step of the optimizer from one to the next, piece by piece.

p/<i>            parameter i, in the order of the plan
o/<slot>/<i>     the optimizer's state; of groups
s/<slot>/<i>     the server's
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from aggregator.store.behind import Behind
from aggregator.store.parameters import ParameterStore
from aggregator.store.tensor_file import Spec, TensorFile, TensorFileWriter
from aggregator.training.divergence import NotANumber
from aggregator.training.federated.updates import pieces
from aggregator.training.split.plan import SplitPlan
from edge_attention.core.combine import Mean
from edge_attention.core.learning_rates import factor_at
from edge_attention.core.learning_rates import optimizer_at as scheduled
from edge_attention.core.messages.training import SplitJob
from edge_attention.core.optimizers import Optimizer
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.schedule import Weight
from edge_attention.core.strategies import Strategy
from edge_attention.core.strategies import from_config as strategy_from
from edge_attention.core.tensors import Array, Float32

__all__ = [
    "GradientSum",
    "Pull",
    "SplitVersion",
    "SplitVersions",
    "optimizer_at",
    "piece_of_version",
    "state_specs",
    "take_step",
]

FLOAT32 = np.dtype(np.float32)
MEAN = Mean()


@dataclass(frozen=True, eq=False)
class Pull:
    """A proximal term: `by (x - to)` is added to gradients."""

    by: float
    to: TensorFile


@dataclass(frozen=True, eq=False)
class SplitVersion:
    """The version last committed: its parameters and the optimizer's state, on the disk."""

    number: int
    parameters: TensorFile
    state: TensorFile | None


class GradientSum:
    """The gradients of a step's pieces, added in their order: each by what it counts."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sums: list[Float32] = []
        self._loss = 0.0
        self._count = 0.0
        self._alone = True

    def add(self, loss: float, gradients: Mapping[str, Array], count: float) -> None:
        """A piece: its mean loss, the gradients of that by parameter, and what it counts.

        Raises:
            NotANumber: a gradient is not; names the parameter.
        """
        for name in self._names:
            if not np.isfinite(gradients[name]).all():
                raise NotANumber(f"the gradient of {name}")
        if not self._sums:
            self._sums = [np.array(gradients[name], np.float32) for name in self._names]
            self._loss, self._count = loss * count, count
            self._first = count
            return
        if self._alone:
            self._alone = False
            self._scale(self._first)
        weight = np.float32(count)
        for total, name in zip(self._sums, self._names, strict=True):
            total += weight * gradients[name]
        self._loss += loss * count
        self._count += count

    def take(self, loss: float, sums: Mapping[str, Array], count: float) -> None:
        """All pieces at once: the sum of their losses, and of their gradients, each by what it counts; what
        they count."""
        self._sums = [np.array(sums[name], np.float32) for name in self._names]
        self._loss, self._count, self._alone = loss, count, False

    def mean(self, clip: float = 0.0) -> tuple[float, list[Float32], float]:
        """The mean loss, the gradients of that in the names' order, and their norm before it is clipped.

        `clip` above 0: the most that their norm is.
        """
        if not self._alone:
            self._scale(1.0 / self._count if self._count else 0.0)
        loss = self._loss / self._count if self._count else 0.0
        squares = [float(np.square(total, dtype=np.float64).sum()) for total in self._sums]
        norm = math.sqrt(math.fsum(squares))
        if clip and norm > clip:
            self._scale(clip / norm)
        return loss, self._sums, norm

    def _scale(self, by: float) -> None:
        if by != 1.0:
            for total in self._sums:
                total *= np.float32(by)


class SplitVersions:
    """The versions of one run. Every call blocks. `best`: which is kept besides the newest."""

    def __init__(
        self,
        run: str,
        job: SplitJob,
        plan: SplitPlan,
        store: ParameterStore,
        best: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._run = run
        self._best = best
        self._job = job
        self._plan = plan
        self._store = store

    def latest(self) -> SplitVersion:
        """The version last committed; every step commits one."""
        number = self._store.latest(self._run)
        assert number is not None
        return SplitVersion(number, *self._store.open(self._run, number))

    def begin(self, record: Mapping[str, Any]) -> None:
        """Commit version 0: the initial parameters that the plan left."""
        folder = self._store.folder(self._run) / "plan"
        initial = TensorFile(folder / "initial.safetensors")
        draft = self._store.draft(self._run, 0, 0, self._specs(), {})
        try:
            for index, size in enumerate(self._plan.sizes):
                for start, stop in pieces(size):
                    draft.parameters.write_at(f"p/{index}", start, initial.read(f"p/{index}", start, stop))
            self._store.commit_draft(draft, record)
        except BaseException:
            draft.abort()
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def step(
        self, before: SplitVersion, gradients: Sequence[Float32], recorded: Callable[[], Mapping[str, Any]]
    ) -> SplitVersion:
        """Take the optimizer's step from `before`, and commit the next version. All or nothing.

        `recorded` gives the record, once the step is taken.

        Raises:
            NotANumber: the step overflows; names the parameter.
        """
        number = before.number + 1
        optimizer = self.optimizer_at(number)
        draft = self._store.draft(self._run, number, number, self._specs(), self._state_specs(optimizer))
        with ExitStack() as undo:
            undo.callback(draft.abort)
            take_step(
                optimizer, number, self._plan, before.parameters, before.state, gradients, draft.parameters,
                draft.state,
            )  # fmt: skip
            keep = max(2, self._job.keep_versions)
            self._store.commit_draft(draft, recorded(), keep=keep, besides=self._best())
            undo.pop_all()
        return self.latest()

    def merge(
        self,
        before: SplitVersion,
        trained: Sequence[TensorFile],
        samples: Sequence[float],
        recorded: Callable[[], Mapping[str, Any]],
    ) -> SplitVersion:
        """Fold what groups have trained from `before`, in their order, take the server's step, and commit.

        `samples`: what each group's count in the mean.

        Raises:
            NotANumber: the step overflows; names the parameter.
        """
        number = before.number + 1
        strategy = self.strategy
        # Where no label counts, all weigh alike: none of them moves anything.
        counted = samples if any(samples) else [1.0] * len(samples)
        weights = MEAN.weights(np.array([strategy.weight(n, 0) for n in counted], np.float64), None, None)
        slots = {
            f"s/{slot}/{i}": (FLOAT32, shape)
            for i, shape in enumerate(self._plan.shapes)
            for slot in strategy.slots
        }
        draft = self._store.draft(self._run, number, number, self._specs(), slots)
        with ExitStack() as undo:
            undo.callback(draft.abort)
            with Behind() as behind:
                new = behind.writer(draft.parameters)
                kept = behind.writer(draft.state) if draft.state is not None else None
                for index, size in enumerate(self._plan.sizes):
                    for start, stop in pieces(size):
                        p = before.parameters.read(f"p/{index}", start, stop)
                        rows = np.stack([p - file.read(f"p/{index}", start, stop) for file in trained])
                        held = [
                            before.state.read(f"s/{slot}/{index}", start, stop)
                            if before.state is not None
                            else np.full(stop - start, strategy.initial(slot), np.float32)
                            for slot in strategy.slots
                        ]
                        with np.errstate(all="ignore"):  # as in take_step
                            after = strategy.step(number, p, MEAN.fold(rows, weights), *held)
                        if not all(np.isfinite(array).all() for array in after):
                            name = self._plan.names[index]
                            raise NotANumber(f"what {strategy.name} makes of {name}")
                        new.write_at(f"p/{index}", start, after[0])
                        for slot, array in zip(strategy.slots, after[1:], strict=True):
                            assert kept is not None
                            kept.write_at(f"s/{slot}/{index}", start, array)
            keep = max(2, self._job.keep_versions)
            self._store.commit_draft(draft, recorded(), keep=keep, besides=self._best())
            undo.pop_all()
        return self.latest()

    @property
    def strategy(self) -> Strategy:
        """What becomes of what groups have trained."""
        return strategy_from(self._job.strategy.name, **self._job.strategy.options)

    def optimizer_at(self, number: int) -> Optimizer:
        """With the learning rate of step `number`."""
        return optimizer_at(self._job, number)

    def _specs(self) -> dict[str, Spec]:
        return {f"p/{i}": (FLOAT32, shape) for i, shape in enumerate(self._plan.shapes)}

    def _state_specs(self, optimizer: Optimizer) -> dict[str, Spec]:
        return state_specs(self._plan, optimizer)


def optimizer_at(job: SplitJob, number: int) -> Optimizer:
    """With the learning rate of step `number` of all the run's, of a group's local ones."""
    optimizer = optimizer_from(job.optimizer.name, **job.optimizer.options)
    return scheduled(optimizer, factor_at(job.schedule, number, job.rounds * job.local_steps))


def state_specs(plan: SplitPlan, optimizer: Optimizer) -> dict[str, Spec]:
    """Of the optimizer's state, by the names in files."""
    return {
        f"o/{slot}/{i}": (FLOAT32, shape) for i, shape in enumerate(plan.shapes) for slot in optimizer.slots
    }


def take_step(
    optimizer: Optimizer,
    count: int,
    plan: SplitPlan,
    before: TensorFile,
    state: TensorFile | None,
    gradients: Sequence[Float32],
    parameters: TensorFileWriter,
    new_state: TensorFileWriter | None,
    pull: Pull | None = None,
) -> None:
    """Write what step `count` of the optimizer, from 1, makes of `before` and its `state` (None: the first).

    Raises:
        NotANumber: the step overflows; names the parameter.
    """
    with Behind() as behind:
        new = behind.writer(parameters)
        held = behind.writer(new_state) if new_state is not None else None
        for index, gradient in enumerate(gradients):
            flat = gradient.reshape(-1)
            for start, stop in pieces(flat.size):
                p = before.read(f"p/{index}", start, stop)
                down = flat[start:stop]
                if pull is not None:
                    apart = p - pull.to.read(f"p/{index}", start, stop)
                    down = np.asarray(down + np.float32(pull.by) * apart, np.float32)
                slots = [
                    state.read(f"o/{slot}/{index}", start, stop)
                    if state is not None
                    else np.zeros(stop - start, np.float32)
                    for slot in optimizer.slots
                ]
                with np.errstate(all="ignore"):  # an overflow is found below, with the name it deserves
                    after = optimizer.update(count, p, down, *slots)
                if not all(np.isfinite(array).all() for array in after):
                    raise NotANumber(f"what {optimizer.name} makes of {plan.names[index]}")
                new.write_at(f"p/{index}", start, np.asarray(after[0], np.float32))
                for slot, array in zip(optimizer.slots, after[1:], strict=True):
                    assert held is not None
                    held.write_at(f"o/{slot}/{index}", start, np.asarray(array, np.float32))


def piece_of_version(plan: SplitPlan, parameters: TensorFile, weight: Weight) -> Array:
    """What of a parameter the extent takes, as a part is given it."""
    index = plan.names.index(weight.name)
    whole = parameters.read(f"p/{index}").reshape(plan.shapes[index])
    return np.asarray(take(whole, weight.extent), order="C")
