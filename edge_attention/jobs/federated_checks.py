"""Checks of a federated job's parts: each returns the part as it travels, or says what is wrong with it.

What depends on the aggregator (which strategies there are, whether the model has that output) it says itself.
Every function raises InvalidArgument, naming the field as it is called from the job.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    PushSpec,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.jobs.checks import require_number, require_whole

Named = TypeVar("Named", OptimizerSpec, StrategySpec, EncodingSpec)

LOSSES = ("output", "cross_entropy", "binary_cross_entropy", "mse", "l1")
MOST = 1e12


def text(value: Any, what: str) -> str:
    """`value` if it is a string and not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{what} is {value!r}; it must be a string and not empty")
    return value


def texts(values: Any, what: str) -> tuple[str, ...]:
    """`values` if they are a list of strings, each there once."""
    if not isinstance(values, tuple | list):
        raise InvalidArgument(f"{what} is {values!r}; it must be a list of strings")
    if len(set(found := tuple(text(value, f"an entry of {what}") for value in values))) < len(found):
        raise InvalidArgument(f"{what} names one twice; name each once")
    return found


def mapping(values: Any, what: str) -> dict[str, str]:
    """`values` if they are text by name."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"{what} is {values!r}; it must map names to names")
    return {text(key, f"a name in {what}"): text(value, f"{what}.{key}") for key, value in values.items()}


def choice(value: Any, what: str, known: Collection[str]) -> str:
    """`value` if it is one of `known`."""
    if value not in known:
        raise InvalidArgument(f"{what} is {value!r}; it must be one of {', '.join(known)}")
    return str(value)


def number(value: Any, what: str, least: float = 0.0) -> float:
    """`value` as a float, if it is a finite number and at least `least`."""
    usable = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not usable or not least <= value <= MOST:
        raise InvalidArgument(f"{what} is {value!r}; it must be a number, {least:g} or above")
    return float(value)


def above(value: Any, what: str, most: float = MOST) -> float:
    """`value` as a float, if it is a number above 0 and at most `most`."""
    require_number(value, what, 0, most)
    return float(value)


def optional(value: Any, what: str) -> float | None:
    """`value` if it is None or a number above 0."""
    return None if value is None else above(value, what)


def share_below_one(value: Any, what: str) -> float:
    """`value` as a float in [0, 1)."""
    if (found := number(value, what)) >= 1:
        raise InvalidArgument(f"{what} is {value!r}; it must be 0 or above, and below 1")
    return found


def named(value: Any, what: str, spec: type[Named]) -> Named:
    """A name or a spec as a spec with finite numbers as options."""
    if isinstance(value, str):
        value = spec(value)
    if not isinstance(value, spec):
        raise InvalidArgument(f"{what} is {value!r}; give a name or a {spec.__name__}")
    text(value.name, f"{what}.name")
    for option, given in value.options.items():
        if not isinstance(given, int | float | np.number) or not math.isfinite(given):
            raise InvalidArgument(f"{what}.{option} is {given!r}; it must be a finite number, true or false")
    return spec(value.name, {option: float(given) for option, given in value.options.items()})


def loss(spec: Any) -> LossSpec:
    if isinstance(spec, str):
        spec = LossSpec(spec)
    if not isinstance(spec, LossSpec):
        raise InvalidArgument(f"model.loss is {spec!r}; give a name or a LossSpec")
    choice(spec.name, "model.loss.name", LOSSES)
    return spec


def local(spec: LocalSpec) -> LocalSpec:
    if spec.steps and spec.epochs:
        raise InvalidArgument(
            f"local.steps is {spec.steps} and local.epochs {spec.epochs:g}; give one, leave out the other"
        )
    return LocalSpec(
        optimizer=named(spec.optimizer, "local.optimizer", OptimizerSpec),
        batch=require_whole(spec.batch, "local.batch", 1, 65_536),
        steps=require_whole(spec.steps, "local.steps", 0, 1_000_000),
        epochs=number(spec.epochs, "local.epochs"),
        clip=number(spec.clip, "local.clip"),
    )


def selection(spec: SelectionSpec) -> SelectionSpec:
    if spec.adaptive is not None:
        number(spec.adaptive, "selection.adaptive")
    return SelectionSpec(
        fraction=above(spec.fraction, "selection.fraction", 1.0),
        minimum=require_whole(spec.minimum, "selection.minimum", 1),
        quorum=above(spec.quorum, "selection.quorum", 1.0),
        deadline_seconds=optional(spec.deadline_seconds, "selection.deadline_seconds"),
        adaptive=spec.adaptive,
    )


def push(spec: PushSpec) -> PushSpec:
    return PushSpec(bool(spec.difference), named(spec.encoding, "push.encoding", EncodingSpec))


def consensus(spec: ConsensusSpec) -> ConsensusSpec:
    for name, array in spec.probe.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise InvalidTensor(f"consensus.probe.{name} is no array; give one of [batch, ...]")
    if len({len(array) for array in spec.probe.values()}) > 1:
        raise InvalidTensor("the arrays of consensus.probe differ in length; give the same samples in each")
    if spec.attention and not spec.probe:
        raise InvalidArgument(
            "consensus.attention is compared on a probe batch; give consensus.probe, arrays of the model's "
            "inputs"
        )
    weight = number(spec.attention_weight, "consensus.attention_weight")
    if weight and not spec.attention:
        raise InvalidArgument("consensus.attention_weight needs consensus.attention, an output of the model")
    return replace(
        spec,
        probe=dict(spec.probe),
        attention_weight=weight,
        parameter_weight=number(spec.parameter_weight, "consensus.parameter_weight"),
    )


def stop(spec: StopSpec) -> StopSpec:
    return StopSpec(
        None if spec.loss is None else number(spec.loss, "stop.loss", -MOST),
        {name: number(value, f"stop.metrics.{name}") for name, value in spec.metrics.items()},
        optional(spec.seconds, "stop.seconds"),
    )
