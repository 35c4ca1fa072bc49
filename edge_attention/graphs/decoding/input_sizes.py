"""Sizes that a file takes of what layers have made, though they are those of an input.

TorchScript writes the shape of a layer's keys of an encoder's states as `[batch of the layer's tokens, -1,
heads, width]`, and so has all layers before it needed for one number, which is the states' own batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.decoding.step_graph import StepGraph
from edge_attention.graphs.reading.needed import reads

__all__ = ["read_sizes_off"]

_TRIED = ((2, 3, 5), (7, 11, 13))
"""Of the batch, the tokens and the states: two of each, so that a number of the file is told from a size."""
_BENT = frozenset(
    {"Clip", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Relu"}
)
"""What may be the same of both, and another number of larger ones: how far tokens are past a window, say."""


def read_sizes_off(
    graph: StepGraph, source: str, wanted: Collection[str], kept: Collection[str] = ()
) -> None:
    """Have what `wanted` needs of shapes read off the input `source`, of tokens or of an encoder's states,
    wherever it is the first or the second size of that.

    Args:
        kept: inputs; what is read off these stays as it is.
    """
    asked = _of_shapes(graph, {source, *kept}, graph.before(wanted))
    if not asked:
        return
    places = (0, 2) if _of_states(graph, source) else (0, 1)
    try:
        values = [_values(graph, asked, sizes) for sizes in _TRIED]
    except EdgeAttentionError:
        return  # what does not hold together at these sizes stays as it is
    sizes: dict[int, str] = {}
    made: list[NodeProto] = []
    instead: dict[str, list[NodeProto]] = {}
    bent = _bent(graph, asked, values)
    for name in asked:
        one, two = (found.get(name) for found in values)
        if one is None or two is None or one.dtype != np.int64 or one.shape != two.shape or one.ndim > 1:
            continue
        if name in bent:
            continue
        parts = [_told(places, a, b) for a, b in zip(one.ravel(), two.ravel(), strict=True)]
        if not parts or None in parts:
            continue
        nodes: list[NodeProto] = []
        pieces = []
        for number, part in enumerate(parts):
            if isinstance(part, np.ndarray):
                pieces.append(graph.constant(part))
                continue
            if not sizes:
                sizes[0] = graph.name(source)
                made.append(helper.make_node("Shape", [source], [sizes[0]], name=sizes[0]))
            pieces.append(graph.name(f"{name}.{number}"))
            at = graph.constant(np.array([part], np.int64))
            nodes.append(helper.make_node("Gather", [sizes[0], at], [pieces[-1]], name=pieces[-1]))
        if one.ndim:
            nodes.append(helper.make_node("Concat", pieces, [name], name=name, axis=0))
        else:
            shape = graph.constant(np.array([], np.int64))
            nodes.append(helper.make_node("Reshape", [pieces[0], shape], [name], name=name))
        instead[name] = nodes
    graph.nodes = [*made, *(new for node in graph.nodes for new in instead.get(_only(node), [node]))]


def _bent(
    graph: StepGraph, asked: Sequence[str], values: Sequence[Mapping[str, Array | None]]
) -> Collection[str]:
    """Of `asked` what two choices do not tell: what an operator that bends made of sizes that differ, and
    what is computed of that."""
    makers = {name: node for node in graph.nodes if (name := _only(node))}
    same = graph.initializers | {name for name, node in makers.items() if node.op_type == "Constant"}
    found: set[str] = set()
    for name in asked:
        one, two = (each.get(name) for each in values)
        if one is not None and two is not None and np.array_equal(one, two):
            same.add(name)
        node = makers[name]
        read = reads(node)
        if node.op_type != "Shape" and (read & found or (node.op_type in _BENT and read - same)):
            found.add(name)
    return found


def _told(places: tuple[int, int], one: int, two: int) -> int | Array | None:
    """The source's axis that has these sizes, or the number that both are; None: neither."""
    for axis, place in enumerate(places):
        if (one, two) == (_TRIED[0][place], _TRIED[1][place]):
            return axis
    return np.array([one], np.int64) if one == two else None


def _of_states(graph: StepGraph, name: str) -> bool:
    """Whether an input is of an encoder's states: those of three dimensions, their mask, their keys."""
    return len(graph.shape(name)) == 3 or "encoder" in name.replace("decoder", "")


def _of_shapes(graph: StepGraph, kept: Collection[str], nodes: Sequence[NodeProto]) -> list[str]:
    """What is computed of shapes alone, and of others than the inputs' in `kept`."""
    known = graph.initializers | {n.output[0] for n in nodes if n.op_type == "Constant"}
    sized: set[str] = set()
    own: set[str] = set()
    for node in nodes:
        read = reads(node)
        if node.op_type == "Shape" or (read <= sized | known and read & sized):
            sized.update(node.output)
            if (node.op_type == "Shape" and read <= {*kept}) or read <= own | known:
                own.update(node.output)
    return [name for node in nodes if (name := _only(node)) in sized - own]


def _only(node: NodeProto) -> str:
    return str(node.output[0]) if len(node.output) == 1 else ""


def _values(
    graph: StepGraph, names: Collection[str], sizes: tuple[int, int, int]
) -> Mapping[str, Array | None]:
    """What these are for a batch, tokens and states of such sizes."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(graph.before(names))
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names)
    dimensions = {}
    for name, value in graph.inputs.items():
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                dimensions[f"{name}.{axis}"] = _size(graph, name, axis, sizes)
    bound = bind(model, dimensions, graph.opened.read)
    # An output that is a constant is made by an Identity of it. What nothing folds is not known.
    made = {name: bound.nodes[bound.makers[name]] for name in names}
    return {
        name: bound.constant(node.input[0]) if node.op_type == "Identity" else None
        for name, node in made.items()
    }


def _size(graph: StepGraph, name: str, axis: int, sizes: tuple[int, int, int]) -> int:
    """Of what an input leaves open; a past has as many tokens as the batch and the states together."""
    batch, tokens, states = sizes
    along = states if _of_states(graph, name) else tokens
    if "mask" in name and not _of_states(graph, name) and axis == len(graph.shape(name)) - 1:
        return (
            graph.places(batch + states) if graph.written else tokens + batch + states
        )  # of earlier ones, too
    if len(graph.shape(name)) == 4 and "mask" in name:
        return (batch, 1, tokens)[axis]
    if len(graph.shape(name)) == 4:
        tokens_at = graph.tokens_at().get(name, 2)
        of_past = along if _of_states(graph, name) else batch + states
        return batch if axis == 0 else of_past if axis == tokens_at else 1
    return (batch, along, 1)[axis]
