"""The course of the learning rate over a run: by which number that of the optimizer is multiplied at a step.

    schedule = from_config("cosine", warmup=100)
    schedule.factor(step=250, steps=1000)

Pure, and a function of the step's number alone, so that a run goes on at any step bit for bit. To add one,
write a frozen dataclass here: `name`, its options, `course`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from edge_attention.core.optimizers import Optimizer
from edge_attention.core.options import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    SHARE,
    Configured,
    configure,
    option,
)
from edge_attention.core.options import find as find_named
from edge_attention.core.specs import ScheduleSpec

__all__ = ["LearningRates", "factor_at", "from_config", "optimizer_at"]

_BY_NAME: dict[str, type[LearningRates]] = {}
LEAST_RATE = 1e-30
"""Stands for a learning rate of 0."""


@dataclass(frozen=True)
class LearningRates(Configured, ABC):
    """What all courses share: `warmup` steps in which the factor grows evenly to 1.

    Attributes:
        warmup: of step 1 it is 1 / (warmup + 1), and 1 from step warmup + 1 on.
    """

    kind: ClassVar[str] = "schedule"
    warmup: int = option(0, COUNT_OR_ZERO)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _BY_NAME[cls.name] = cls

    def factor(self, step: int, steps: int) -> float:
        """That of step `step` (1, 2, ...) of `steps`: 0 to 1."""
        if step <= self.warmup:
            return step / (self.warmup + 1)
        left = max(steps - self.warmup, 1)
        return self.course(min((step - self.warmup - 1) / left, 1.0), step)

    @abstractmethod
    def course(self, done: float, step: int) -> float:
        """The factor after the warm-up. `done`: the share of the steps after it that lie behind."""


@dataclass(frozen=True)
class ConstantRate(LearningRates):
    """1 throughout."""

    name: ClassVar[str] = "constant"

    def course(self, done: float, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearRate(LearningRates):
    """Evenly from 1 down to `floor`, which it would reach at the step after the last."""

    name: ClassVar[str] = "linear"
    floor: float = option(0.0, SHARE)

    def course(self, done: float, step: int) -> float:
        return 1.0 - (1.0 - self.floor) * done


@dataclass(frozen=True)
class CosineRate(LearningRates):
    """Half a cosine from 1 down to `floor` (Loshchilov and Hutter 2016, arXiv:1608.03983)."""

    name: ClassVar[str] = "cosine"
    floor: float = option(0.0, SHARE)

    def course(self, done: float, step: int) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class StairsRate(LearningRates):
    """Times `gamma` after every `every` steps."""

    name: ClassVar[str] = "stairs"
    every: int = option(1000, COUNT)
    gamma: float = option(0.1, NOT_NEGATIVE)

    def course(self, done: float, step: int) -> float:
        return min(float(self.gamma ** ((step - self.warmup - 1) // self.every)), 1.0)


@dataclass(frozen=True)
class StepRate(StairsRate):
    """The same by the name that PyTorch's `StepLR` has given it."""

    name: ClassVar[str] = "step"


def factor_at(spec: ScheduleSpec, step: int, steps: int) -> float:
    """The factor of step `step` (1, 2, ...) of `steps` by the course that `spec` names."""
    return from_config(spec.name, **spec.options).factor(step, steps)


def optimizer_at(optimizer: Optimizer, factor: float) -> Optimizer:
    """`optimizer` with its learning rate times `factor`; 1 gives the very same."""
    if factor == 1.0:
        return optimizer
    # A rate of 0 is none that an optimizer takes.
    return dataclasses.replace(optimizer, lr=max(optimizer.lr * factor, LEAST_RATE))


def from_config(name: str, /, **options: float) -> LearningRates:
    """The course `name` with these options.

    Raises:
        InvalidArgument: a name or an option that does not exist (it lists those that do), or out of range.
    """
    return configure(find_named(_BY_NAME, "schedule", name), options)
