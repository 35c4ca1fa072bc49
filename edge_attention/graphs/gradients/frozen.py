"""A model in two: what no parameter that trains has a part in, and the rest, which is differentiated.

The first is computed as it is, whatever it is made of: int8 products, operators that have no gradient, fused
ones of ONNX Runtime. No gradient is computed through it, and nothing of it has to be understood here but the
shapes of what it hands over, which are measured where they cannot be told.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, shape_inference

from edge_attention.graphs.gradients.runner import Runner, sample
from edge_attention.graphs.onnx_file import (
    bind_batch,
    fixed_shapes,
    keep,
    prune,
    rename_values,
    serialize,
    spec_of,
    values_of,
)
from edge_attention.graphs.reading.needed import reads

__all__ = ["Halves", "declare", "join", "moving_nodes", "split"]

_ABOUT_SHAPES = {"Shape", "Size"}
_WEIGHT = 64  # elements of a constant from which on what reads it is worth parting


@dataclass(frozen=True)
class Halves:
    """`front`: from data to the values `handed`. `back`: from those, and the rest, to the outputs."""

    front: ModelProto
    back: ModelProto
    handed: tuple[str, ...]


def moving_nodes(graph: GraphProto, parameters: Collection[str]) -> list[NodeProto]:
    """The nodes that one of `parameters`, values of the graph, has a part in."""
    moving = set(parameters)
    found = []
    for node in graph.node:
        if reads(node) & moving:
            moving.update(node.output)
            found.append(node)
    return found


def split(model: ModelProto, parameters: Collection[str]) -> Halves | None:
    """Part a model; None where no weights and no other domain's operators would be in the front.

    The types of what is handed over are not declared yet: `declare` does that.
    """
    graph = model.graph
    moving = {name for node in moving_nodes(graph, parameters) for name in node.output} | set(parameters)
    data = {value.name for value in graph.input} - set(parameters)
    computed: set[str] = set()  # from data, not from their shapes alone
    for node in graph.node:
        still = node.op_type not in _ABOUT_SHAPES and not moving.intersection(node.output)
        if still and reads(node) & (data | computed):
            computed.update(node.output)
    read = {name for node in graph.node if moving.intersection(node.output) for name in reads(node)}
    # What is about shapes stays with those who read it, where shapes are followed.
    about = {
        name
        for node in graph.node
        if not (moving | computed).intersection(node.output)
        for name in reads(node)
    }
    outputs = {value.name for value in graph.output}
    handed = tuple(sorted((read | about) & computed))
    if not handed or outputs & computed:
        return None
    weights = {tensor.name for tensor in graph.initializer if _size(tensor) > _WEIGHT}
    weights |= {
        n.output[0]
        for n in graph.node
        if n.op_type == "Constant" and any(_size(a.t) > _WEIGHT for a in n.attribute)
    }
    worth = (node for node in graph.node if computed.intersection(node.output))
    if not any(node.domain not in ("", "ai.onnx") or reads(node) & weights for node in worth):
        return None
    front, back = ModelProto(), ModelProto()
    for half in (front, back):
        half.CopyFrom(model)
        half.graph.ClearField("value_info")
    del front.graph.output[:]
    front.graph.output.extend(ValueInfoProto(name=name) for name in handed)
    prune(front.graph)
    kept = [node for node in back.graph.node if not set(handed).intersection(node.output)]
    del back.graph.node[:]
    back.graph.node.extend(kept)
    back.graph.input.extend(ValueInfoProto(name=name) for name in handed)
    prune(back.graph)
    return Halves(front, back, tuple(value.name for value in back.graph.input if value.name in handed))


def _size(tensor: TensorProto) -> int:
    return int(np.prod(list(tensor.dims), dtype=np.int64))


def declare(halves: Halves, model: ModelProto, batch: int, place: str, symbol: str = "") -> None:
    """Say in the back what it is handed, at this batch; with `symbol`, of any batch, which that stands for.

    `model`: the whole, whose shapes tell it; what they do not tell is measured, on random data.

    Raises InvalidGraph where the front has to be run and cannot be.
    """
    specs = [_inferred(model, size) for size in ((batch, batch + 1) if symbol else (batch,))]
    if any(name not in spec for spec in specs for name in halves.handed):
        specs = [_measured(halves, batch + i, place) for i in range(len(specs))]
    first, last = specs[0], specs[-1]
    for value in halves.back.graph.input:
        if value.name in halves.handed:
            (kind, shape), (_, other) = first[value.name], last[value.name]
            sizes = [size if size == there else symbol for size, there in zip(shape, other, strict=True)]
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, sizes))


_Specs = dict[str, tuple[int, tuple[int, ...]]]


def _inferred(model: ModelProto, batch: int) -> _Specs:
    try:
        bound = bind_batch(model, batch, strict=False)
    except shape_inference.InferenceError:
        return {}
    shapes = fixed_shapes(bound)
    return {
        value.name: (value.type.tensor_type.elem_type, shapes[value.name])
        for value in bound.graph.value_info
        if value.name in shapes
    }


def _measured(halves: Halves, batch: int, place: str) -> _Specs:
    rng = np.random.default_rng(0)
    front = halves.front.graph
    feeds = {value.name: sample(spec_of(value), batch, rng) for value in front.input}
    names = list(halves.handed)
    found = Runner(serialize(halves.front), place)(names, feeds)
    return {
        name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, found, strict=True)
    }


def join(halves: Halves, back: ModelProto) -> ModelProto:
    """One model again of the front and what has become of the back, with the back's outputs."""
    joined, front = ModelProto(), ModelProto()
    joined.CopyFrom(back)
    front.CopyFrom(halves.front)
    graph = joined.graph
    there = values_of(graph)
    data = {value.name for value in front.graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    shared: set[str] = set()
    for tensor in front.graph.initializer:
        if tensor.name in tensors and tensors[tensor.name] == tensor:
            shared.add(tensor.name)
    for name in sorted(values_of(front.graph) - data - set(halves.handed) - shared):
        if name in there:
            renamed[name] = f"front/{name}"
            while renamed[name] in there:
                renamed[name] += "'"
    rename_values(front.graph, renamed)
    keep(front.graph.initializer, {tensor.name for tensor in front.graph.initializer} - shared)
    nodes = [*front.graph.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(front.graph.initializer)
    keep(graph.input, {value.name for value in graph.input} - set(halves.handed))
    given = {value.name for value in graph.input}
    graph.input.extend(value for value in front.graph.input if value.name not in given)
    imported = {opset.domain for opset in joined.opset_import}
    joined.opset_import.extend(opset for opset in front.opset_import if opset.domain not in imported)
    return joined
