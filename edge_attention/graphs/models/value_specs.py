"""dtype and shape of a value inside a model, as its shapes tell it, or as it is measured."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

import numpy as np
from onnx import ModelProto, ValueInfoProto, shape_inference

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.frozen import declare, split
from edge_attention.graphs.gradients.runner import Runner, sample
from edge_attention.graphs.onnx_file import (
    BATCH,
    TensorSpec,
    bind_batch,
    infer_outputs,
    prune,
    serialize,
    spec_of,
)

__all__ = ["no_value", "output_specs", "value_spec"]

_NAME = 80
"""Letters of a name that a message suggests."""

_SMALL, _LARGE = 2, 3
"""Batches at which a value is measured: a dimension that goes along is the batch."""


def no_value(name: str, outputs: Sequence[str], inside: Sequence[str], place: str) -> InvalidGraph:
    """The error of a value that nothing makes. `inside`: what nodes make, in order."""
    inner = [value for value in inside if value not in outputs]
    near = difflib.get_close_matches(name, inner, n=3, cutoff=0.5) or inner[:-4:-1]
    shown = f", such as {', '.join(repr(value[:_NAME]) for value in near)}" if near else ""
    return InvalidGraph(
        f"{place}: no value '{name}' in the file; it may be one of its outputs, {list(outputs)}, or a value "
        f"inside{shown}"
    )


def value_spec(model: ModelProto, name: str, place: str, others: Sequence[str] = ()) -> TensorSpec:
    """Of the value `name`, at a batch of any size; its dimensions that are the batch are None.

    `model`: with its weights, its data inputs' dimension 0 the batch's and the others fixed. `others`:
    outputs that the file had besides, for who has named none of them.

    Raises InvalidGraph if there is no such value, or it has no shape that goes by the batch.
    """
    if all(name not in node.output for node in model.graph.node):
        raise no_value(name, [*(value.name for value in model.graph.output), *others], (), place)
    found = [_inferred(model, name, batch) for batch in (_SMALL, _LARGE)]
    if None in found:
        found = [_measured(model, name, batch, place) for batch in (_SMALL, _LARGE)]
    small, large = found
    assert small is not None
    assert large is not None
    if len(small[1]) != len(large[1]):
        raise InvalidGraph(f"{place}: '{name}' has another number of dimensions for another batch")
    return small[0], tuple(a if a == b else None for a, b in zip(small[1], large[1], strict=True))


def _inferred(model: ModelProto, name: str, batch: int) -> TensorSpec | None:
    try:
        bound = bind_batch(model, batch, strict=False)
    except shape_inference.InferenceError:
        return None
    for value in (*bound.graph.value_info, *bound.graph.output):
        kind = value.type.tensor_type
        if value.name == name and kind.elem_type and kind.HasField("shape"):
            spec = spec_of(value)
            return None if None in spec[1] else spec
    return None


def _measured(model: ModelProto, name: str, batch: int, place: str) -> TensorSpec:
    alone = ModelProto()
    alone.CopyFrom(model)
    alone.graph.ClearField("value_info")
    del alone.graph.output[:]
    alone.graph.output.append(ValueInfoProto(name=name))
    prune(alone.graph)
    rng = np.random.default_rng(0)
    feeds = {value.name: sample(spec_of(value), batch, rng) for value in alone.graph.input}
    (array,) = Runner(serialize(alone), place)([name], feeds)
    return array.dtype, array.shape


def output_specs(model: ModelProto, parameters: Collection[str], place: str) -> dict[str, TensorSpec]:
    """The outputs' dtypes and shapes, which are declared in `model`, too.

    Where shapes alone do not tell, as behind operators of other domains, what no parameter has a part in is
    measured. `parameters`: initializers or inputs; their values need not be there.

    Raises InvalidGraph where nothing tells.
    """
    try:
        found = infer_outputs(model, place)
        if all(None not in shape[1:] for _, shape in found.values()):
            return found
    except InvalidGraph:
        found = {}
    halves = split(model, parameters)
    if halves is None:
        return found or infer_outputs(model, place)
    declare(halves, model, _SMALL, place, symbol=BATCH)
    found = infer_outputs(halves.back, place)
    del model.graph.output[:]
    model.graph.output.extend(halves.back.graph.output)
    return found
