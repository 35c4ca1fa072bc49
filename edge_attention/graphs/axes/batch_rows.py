"""Whether rows of a batch meet in a model: if not, requests may run together, and each has its answer.

The model is bound to a batch of several rows, and every operator that touches the batch axis must carry it:
one that sums, normalises, sorts or takes a minimum over it (DynamicQuantizeLinear finds one scale for all)
makes one request's answer depend on another's.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np
from onnx import NodeProto

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.inference import ANY_RANK, ModelTensor
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, sizes_of
from edge_attention.graphs.axes.model_axes import Axes, Dim
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.axes.rule import Does

__all__ = ["rows_meet", "rows_meet_in"]

ROWS = 3
"""Rows of the batch that the model is bound to."""
LENGTHS = (16, 8, 32, 64)
"""Sizes of its other open dimensions, the first that fits."""

_WORDS = {
    Does.SUM: "sums over rows of the batch",
    Does.MEAN: "averages rows of the batch",
    Does.MAX: "takes the largest over rows of the batch",
    Does.MIN: "takes the least over rows of the batch",
    Does.SOFTMAX: "normalises over rows of the batch",
    Does.MOMENTS: "normalises over rows of the batch",
    Does.RANGE: "finds one scale for all rows of the batch",
    Does.WHOLE: "looks at all rows of the batch",
    Does.PICK: "picks rows of the batch",
}


def rows_meet(model: OpenModel, inputs: Sequence[ModelTensor]) -> str:
    """Why rows of the first axis of all inputs meet, in words; "": they do not; results have them, too."""
    for one in inputs:
        if not one.shape or one.shape == (ANY_RANK,) or one.shape[0].isdigit():
            return f"input {one.name!r} has no first dimension that is left open"
    if not inputs:
        return "the model has no inputs"
    first = {one.shape[0] for one in inputs}
    if others := {name for one in inputs for name in one.shape[1:]} & first - {"?"}:
        return f"dimension {min(others)!r} is not the batch's alone"
    why = "it cannot be bound to a batch of several rows"
    for length in LENGTHS:
        feeds = {
            one.name: TensorForm(
                one.data_type.value,
                (ROWS, *(int(name) if name.isdigit() else length for name in one.shape[1:])),
            )
            for one in inputs
        }
        try:
            return rows_meet_in(analyse(model, sizes_of(model, feeds)))
        except EdgeAttentionError as error:
            why = error.message
    return why


def rows_meet_in(axes: Axes, but: Container[str] = ()) -> str:
    """Why rows of a bound model's inputs meet, in words; "": they do not.

    `but`: operators that look at all rows and are known to keep them apart.
    """
    bound = axes.bound
    if bound.unknown:
        return next(iter(bound.unknown.values()))
    rows = set[int]()
    for name in bound.inputs:
        dims = axes.dims.get(name, ())
        if not dims or len(dims[0]) != 1:
            return f"rows of input {name!r} are no axis of the model"
        rows.add(dims[0][0][0])
    own: set[int] = set()
    """Nodes that pick of each row for itself."""
    for number, (node, rule) in enumerate(zip(bound.nodes, axes.rules, strict=True)):
        found = [
            factor.does
            for factor, made_of in zip(rule.factors, axes.factors[number], strict=True)
            if rows.intersection(made_of)
        ]
        where = f"{node.op_type} {(node.name or node.output[0])[:80]!r}"
        if node.op_type in but:
            continue
        if Does.PICK in found and _picks_own(axes, node, rows):
            own.add(number)
            continue
        for does in found:
            if does is not Does.CARRY:
                return f"{where} {_WORDS[does]}"
        if len(found) > 1:
            return f"{where} has rows of the batch twice"
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
            return f"{where} is random"
    for name, value in bound.derived.items():
        alike = all(_alike(value, axis, parts, rows) for axis, parts in enumerate(axes.dims.get(name, ())))
        if not alike and not own.issuperset(bound.readers.get(name, ())):
            return f"{name[:80]!r}, which follows from the batch's size, is another one in each row"
    for name in bound.outputs:
        dims = axes.dims.get(name, ())
        if not dims or len(dims[0]) != 1 or dims[0][0][0] not in rows:
            return f"the first axis of output {name!r} is not the batch's rows"
        if any(axis in rows for dim in dims[1:] for axis, _ in dim):
            return f"output {name!r} has rows of the batch twice"
    return ""


def _alike(value: Array, axis: int, parts: Dim, rows: Container[int]) -> bool:
    """Whether a constant is the same in each row, as far as this dimension of it is made of rows."""
    for at, (number, size) in enumerate(parts):
        if number in rows:
            inner = math.prod(size for _, size in parts[at + 1 :])
            whole = np.moveaxis(value, axis, 0).reshape(-1, size, inner, value.size // value.shape[axis])
            if not (whole == whole[:, :1]).all():
                return False
    return True


def _picks_own(axes: Axes, node: NodeProto, rows: Container[int]) -> bool:
    """Whether a Gather or GatherND takes for each row of its result what is of the same row of its data: its
    indices follow from sizes, as an exporter writes `mask[arange(batch)[:, None], positions]`."""
    index = axes.bound.derived.get(node.input[1]) if len(node.input) > 1 else None
    data, dims = axes.dims.get(node.input[0]), axes.dims.get(node.input[1], ())
    if index is None or data is None or node.domain or node.op_type not in ("Gather", "GatherND"):
        return False
    said = {one.name: one.i for one in node.attribute}
    if node.op_type == "Gather":
        picked = {said.get("axis", 0) % len(data): index}
    elif said.get("batch_dims", 0):
        return False
    else:
        picked, dims = {d: index[..., d] for d in range(index.shape[-1])}, dims[:-1]
    along = [d for d, parts in enumerate(dims) if any(number in rows for number, _ in parts)]
    if len(along) != 1 or len(dims[along[0]]) != 1:
        return False
    expected = np.arange(index.shape[along[0]]).reshape(
        [-1 if d == along[0] else 1 for d in range(len(dims))]
    )
    for dim, found in picked.items():
        elements = math.prod(size for _, size in data[dim])
        for at, (number, size) in enumerate(data[dim]):
            inner = math.prod(size for _, size in data[dim][at + 1 :])
            if number in rows and not (found % elements // inner % size == expected).all():
                return False
    return True
