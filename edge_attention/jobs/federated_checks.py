"""Checks of a federated job's parts: each returns the part as it travels, or says what is wrong with it.

What depends on the aggregator (which strategies there are, whether the model has that output) it says itself.
Every function raises InvalidArgument, naming the field as it is called from the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from edge_attention.core.arrays import as_numbers
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.losses import LOSSES, loss_of
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    LossSpec,
    NewHead,
    OptimizerSpec,
    PushSpec,
    ScheduleSpec,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.jobs.checks import require_whole
from edge_attention.jobs.values import MOST, above, finite, kind_of, part, said
from edge_attention.jobs.values import choice as choice
from edge_attention.jobs.values import mapping as mapping
from edge_attention.jobs.values import number as number
from edge_attention.jobs.values import optional as optional
from edge_attention.jobs.values import optional_text as optional_text
from edge_attention.jobs.values import path as path
from edge_attention.jobs.values import share_below_one as share_below_one
from edge_attention.jobs.values import switch as switch
from edge_attention.jobs.values import text as text
from edge_attention.jobs.values import texts as texts

Named = TypeVar("Named", OptimizerSpec, StrategySpec, EncodingSpec, ScheduleSpec)

POOLS = ("mean", "max", "first", "last", "flatten", "none")
MAX_OUTPUTS = 1 << 16
"""Of a new head, and of its hidden layer."""


def named(value: Any, what: str, spec: type[Named]) -> Named:
    """A name or a spec as a spec with finite numbers as options."""
    if isinstance(value, str):
        value = spec(value)
    if not isinstance(value, spec):
        raise InvalidArgument(f"{what} is {said(value)}; give a name or {kind_of(spec)}")
    return spec(text(value.name, f"{what}.name"), options(value.options, what))


def options(values: Any, what: str) -> dict[str, float]:
    """`values` as they travel: finite numbers by name."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"{what}.options is {said(values)}; it must map names to numbers")
    return {
        text(name, f"a name in {what}.options"): finite(given, f"{what}.{name}")
        for name, given in values.items()
    }


def loss(spec: Any) -> LossSpec:
    if isinstance(spec, str):
        spec = LossSpec(spec)
    if not isinstance(spec, LossSpec):
        raise InvalidArgument(f"model.loss is {said(spec)}; give a name or a LossSpec")
    choice(spec.name, "model.loss.name", LOSSES)
    checked = LossSpec(
        spec.name,
        optional_text(spec.output, "model.loss.output"),
        optional_text(spec.labels, "model.loss.labels"),
        options(spec.options, "model.loss"),
        _numbers(spec.class_weights, "model.loss.class_weights"),
        _numbers(spec.positive_weights, "model.loss.positive_weights"),
        optional_text(spec.weights, "model.loss.weights"),
    )
    loss_of(checked)
    return checked


def new_head(spec: Any) -> NewHead:
    """A new head; whether the file has what it is on the aggregator says."""
    if not isinstance(spec, NewHead):
        raise InvalidArgument(f"model.head is {said(spec)}; give a NewHead")
    for name in ("of", "pool", "mask"):
        optional_text(getattr(spec, name), f"model.head.{name}")
    choice(spec.pool, "model.head.pool", ("", *POOLS))
    return replace(
        spec,
        outputs=require_whole(spec.outputs, "model.head.outputs", 1, MAX_OUTPUTS),
        hidden=require_whole(spec.hidden, "model.head.hidden", 0, MAX_OUTPUTS),
    )


def _numbers(values: Any, what: str) -> tuple[float, ...]:
    """`values` as floats: a list, a tuple or an array of one axis."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, tuple | list):
        raise InvalidArgument(f"{what} is {said(values)}; it must be a list of numbers")
    return tuple(finite(value, f"{what}, number {i},") for i, value in enumerate(values))


def local(given: Any) -> LocalSpec:
    spec = part(given, "local", LocalSpec, "LocalSpec(OptimizerSpec('sgd', {'lr': 0.1}), batch=32, epochs=1)")
    steps = require_whole(spec.steps, "local.steps", 0, 1_000_000)
    epochs = number(spec.epochs, "local.epochs")
    if steps and epochs:
        raise InvalidArgument(
            f"local.steps is {steps} and local.epochs {epochs:g}; give one, leave out the other"
        )
    return LocalSpec(
        optimizer=named(spec.optimizer, "local.optimizer", OptimizerSpec),
        batch=require_whole(spec.batch, "local.batch", 1, 65_536),
        steps=steps,
        epochs=epochs,
        clip=number(spec.clip, "local.clip"),
        schedule=named(spec.schedule, "local.schedule", ScheduleSpec),
        clip_gradients=number(spec.clip_gradients, "local.clip_gradients"),
    )


def selection(given: Any) -> SelectionSpec:
    spec = part(given, "selection", SelectionSpec, "SelectionSpec(quorum=0.8, deadline_seconds=60)")
    return SelectionSpec(
        fraction=above(spec.fraction, "selection.fraction", 1.0),
        minimum=require_whole(spec.minimum, "selection.minimum", 1),
        quorum=above(spec.quorum, "selection.quorum", 1.0),
        deadline_seconds=optional(spec.deadline_seconds, "selection.deadline_seconds"),
        adaptive=None if spec.adaptive is None else number(spec.adaptive, "selection.adaptive"),
    )


def push(given: Any) -> PushSpec:
    spec = part(given, "push", PushSpec, "PushSpec(difference=True, encoding=EncodingSpec('float16'))")
    return PushSpec(
        switch(spec.difference, "push.difference"), named(spec.encoding, "push.encoding", EncodingSpec)
    )


def consensus(given: Any) -> ConsensusSpec:
    spec = part(given, "consensus", ConsensusSpec, "ConsensusSpec(parameter_weight=0.01)")
    optional_text(spec.attention, "consensus.attention")
    if not isinstance(spec.probe, Mapping):
        raise InvalidArgument(f"consensus.probe is {said(spec.probe)}; it must map names to arrays")
    probe = {
        text(name, "a name in consensus.probe"): as_numbers(array, f"consensus.probe.{name}")
        for name, array in spec.probe.items()
    }
    for name, array in probe.items():
        if not array.ndim:
            raise InvalidTensor(f"consensus.probe.{name} is one number; give an array of [batch, ...]")
    if len({len(array) for array in probe.values()}) > 1:
        raise InvalidTensor("the arrays of consensus.probe differ in length; give the same samples in each")
    if spec.attention and not probe:
        raise InvalidArgument(
            "consensus.attention is compared on a probe batch; give consensus.probe, arrays of the model's "
            "inputs"
        )
    weight = number(spec.attention_weight, "consensus.attention_weight")
    if weight and not spec.attention:
        raise InvalidArgument("consensus.attention_weight needs consensus.attention, an output of the model")
    return replace(
        spec,
        probe=probe,
        attention_weight=weight,
        parameter_weight=number(spec.parameter_weight, "consensus.parameter_weight"),
    )


def stop(given: Any) -> StopSpec:
    spec = part(given, "stop", StopSpec, "StopSpec(loss=0.1)")
    if not isinstance(spec.metrics, Mapping):
        raise InvalidArgument(f"stop.metrics is {said(spec.metrics)}; it must map metrics to shares")
    return StopSpec(
        None if spec.loss is None else number(spec.loss, "stop.loss", -MOST),
        {
            text(name, "a name in stop.metrics"): number(value, f"stop.metrics.{name}")
            for name, value in spec.metrics.items()
        },
        optional(spec.seconds, "stop.seconds"),
        require_whole(spec.patience, "stop.patience", 0, 10_000_000),
        number(spec.min_delta, "stop.min_delta"),
    )
