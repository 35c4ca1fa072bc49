"""A run's versions on the disk, and the step of the optimizer from one to the next, piece by piece.

p/<i>            parameter i, in the order of the plan
o/<slot>/<i>     the optimizer's state
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
from aggregator.store.tensor_file import Spec, TensorFile
from aggregator.training.federated.updates import pieces
from aggregator.training.split.plan import SplitPlan
from edge_attention.core.errors import InvalidTensor
from edge_attention.core.learning_rates import from_config as schedule_from
from edge_attention.core.messages.training import SplitJob
from edge_attention.core.optimizers import Optimizer
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.schedule import Weight
from edge_attention.core.tensors import Array, Float32

__all__ = ["GradientSum", "SplitVersion", "SplitVersions"]

FLOAT32 = np.dtype(np.float32)


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
            InvalidTensor: a gradient is not finite; names the parameter.
        """
        for name in self._names:
            if not np.isfinite(gradients[name]).all():
                raise InvalidTensor(
                    f"the gradient of {name} is not finite: lower the learning rate, or clip gradients"
                )
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
    """The versions of one run. Every call blocks."""

    def __init__(self, run: str, job: SplitJob, plan: SplitPlan, store: ParameterStore) -> None:
        self._run = run
        self._job = job
        self._plan = plan
        self._store = store
        self._optimizer = optimizer_from(job.optimizer.name, **job.optimizer.options)
        self._rates = schedule_from(job.schedule.name, **job.schedule.options)
        self._index = {name: i for i, name in enumerate(plan.names)}

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
            InvalidTensor: the step overflows; names the parameter.
        """
        number = before.number + 1
        optimizer = self.optimizer_at(number)
        draft = self._store.draft(self._run, number, number, self._specs(), self._state_specs(optimizer))
        with ExitStack() as undo:
            undo.callback(draft.abort)
            with Behind() as behind:
                new = behind.writer(draft.parameters)
                held = behind.writer(draft.state) if draft.state is not None else None
                for index, gradient in enumerate(gradients):
                    flat = gradient.reshape(-1)
                    for start, stop in pieces(flat.size):
                        p = before.parameters.read(f"p/{index}", start, stop)
                        slots = [
                            before.state.read(f"o/{slot}/{index}", start, stop)
                            if before.state is not None
                            else np.zeros(stop - start, np.float32)
                            for slot in optimizer.slots
                        ]
                        with np.errstate(
                            all="ignore"
                        ):  # an overflow is found below, with the name it deserves
                            after = optimizer.update(number, p, flat[start:stop], *slots)
                        if not all(np.isfinite(array).all() for array in after):
                            raise InvalidTensor(
                                f"step {number} of {optimizer.name} makes {self._plan.names[index]} "
                                "overflow; lower the learning rate, or clip gradients"
                            )
                        new.write_at(f"p/{index}", start, np.asarray(after[0], np.float32))
                        for slot, array in zip(optimizer.slots, after[1:], strict=True):
                            assert held is not None
                            held.write_at(f"o/{slot}/{index}", start, np.asarray(array, np.float32))
            self._store.commit_draft(draft, recorded())
            undo.pop_all()
        self._store.prune(self._run, max(2, self._job.keep_versions))
        return self.latest()

    def optimizer_at(self, number: int) -> Optimizer:
        """With the learning rate of step `number`."""
        factor = self._rates.factor(number, self._job.rounds)
        # A rate of 0 is none that an optimizer takes.
        if factor == 1.0:
            return self._optimizer
        options = self._job.optimizer.options
        lr = max(getattr(self._optimizer, "lr") * factor, 1e-30)  # noqa: B009  # each has one of its own
        return optimizer_from(self._job.optimizer.name, **{**options, "lr": lr})

    def piece(self, version: SplitVersion, weight: Weight) -> Array:
        """What of a parameter the extent takes, as a part is given it."""
        index = self._index[weight.name]
        whole = version.parameters.read(f"p/{index}").reshape(self._plan.shapes[index])
        return np.ascontiguousarray(take(whole, weight.extent))

    def _specs(self) -> dict[str, Spec]:
        return {f"p/{i}": (FLOAT32, shape) for i, shape in enumerate(self._plan.shapes)}

    def _state_specs(self, optimizer: Optimizer) -> dict[str, Spec]:
        return {
            f"o/{slot}/{i}": (FLOAT32, shape)
            for i, shape in enumerate(self._plan.shapes)
            for slot in optimizer.slots
        }
