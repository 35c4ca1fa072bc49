"""Things a job chooses by name, with numbers as options; who knows the name checks the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.core.keywords import named_fields


@named_fields
@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer of core/optimizers.py by name, with its options."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


@named_fields
@dataclass(frozen=True)
class StrategySpec:
    """A strategy of core/strategies, or a rule of core/combine, by name, with its options."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


@named_fields
@dataclass(frozen=True)
class ScheduleSpec:
    """A course of the learning rate of core/learning_rates.py by name, with its options."""

    name: str = "constant"
    options: Mapping[str, float] = field(default_factory=dict)


@named_fields
@dataclass(frozen=True)
class EncodingSpec:
    """An encoding of core/encodings.py by name, with its options."""

    name: str = "float32"
    options: Mapping[str, float] = field(default_factory=dict)
