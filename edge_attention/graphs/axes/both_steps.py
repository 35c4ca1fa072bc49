"""A file with both steps of a decoder, which an If on an input chooses between, as `optimum` merges them.

    use_cache_branch [1] -- false: the first step, without a past    (a past is brought, and not looked at)
                         `- true:  a later step, which joins its past with what is new

A later step behind nothing is the first one. So where such a file is cut, the input is taken to be what
chooses the later step; a file that is not cut is run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, ValueInfoProto

from edge_attention.graphs.onnx_file import all_nodes, rename_values, values_of
from edge_attention.graphs.reading.needed import reads

__all__ = ["PAST_RANK", "known_inputs", "lift_weights", "loosen_mask", "step_with_past"]

PAST_RANK = 4
"""Dimensions of keys and values of earlier tokens."""
_IDS_RANK = 2
"""The same of token ids."""
_FEW = 64
"""Elements of what stays in a branch: sizes, axes, single numbers."""


def known_inputs(model: ModelProto) -> dict[str, int]:
    """Inputs of one element -> what they are wherever the model is cut: which step it is, if the file has
    both; and, where it takes how many tokens' logits are wanted (`num_logits_to_keep`), 0, which is all."""
    kept = {
        name: 0
        for name, value in _given(model.graph).items()
        if "logits_to_keep" in name and len(_dims(value)) < _IDS_RANK
    }
    return {**step_with_past(model), **kept}


def step_with_past(model: ModelProto) -> dict[str, bool]:
    """The input that chooses between two steps, and what it is for the one with a past; {}: there is none."""
    graph = model.graph
    inputs = _given(graph)
    pasts = {name for name, value in inputs.items() if len(_dims(value)) == PAST_RANK}
    on_inputs = [node for node in graph.node if node.op_type == "If" and node.input[0] in inputs]
    if len(on_inputs) != 1 or on_inputs[0].domain not in ("", "ai.onnx"):
        return {}
    branches = {attribute.name: attribute.g for attribute in on_inputs[0].attribute}
    with_past = [name for name, branch in branches.items() if _read_inside(branch) & pasts]
    if with_past not in (["then_branch"], ["else_branch"]):
        return {}
    return {on_inputs[0].input[0]: with_past == ["then_branch"]}


def lift_weights(model: ModelProto) -> None:
    """Have what both steps hold for themselves in the graph around them, in place: weights of equal name and
    value once. A branch's constants are its own; parts share weights alone."""
    graph = model.graph
    (node,) = (one for one in graph.node if one.op_type == "If" and one.input[0] in step_with_past(model))
    held = {tensor.name: tensor.SerializeToString() for tensor in graph.initializer}
    names, made = values_of(graph), {name for one in all_nodes(graph) for name in one.output}
    for attribute in node.attribute:
        branch, renamed, kept = attribute.g, dict[str, str](), list[TensorProto]()
        for tensor in branch.initializer:
            if prod(tensor.dims) <= _FEW:
                kept.append(tensor)
                continue
            data, name = tensor.SerializeToString(), tensor.name
            if name in made or held.get(name, data) != data:
                while name in names:
                    name += "'"
                renamed[tensor.name] = name
                names.add(name)
            if name not in held:
                held[name] = data
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = name
        copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del branch.initializer[:]
        branch.initializer.extend(copies)
        rename_values(branch, renamed)


def loosen_mask(model: ModelProto) -> None:
    """Where a file with a past says by the name of a dimension that its mask has as many tokens as there are
    new ones, have it say otherwise, in place: a later step's mask has those of the past, too.

    Of two steps that were merged the first one's mask is declared so; another file may mean what it says.
    """
    merged = bool(step_with_past(model))
    inputs = _given(model.graph)
    tokens = {_dims(v)[1].dim_param for n, v in inputs.items() if len(_dims(v)) == 2 and "mask" not in n}
    pasts = [_dims(v) for n, v in inputs.items() if len(_dims(v)) == PAST_RANK and (merged or "past" in n)]
    before = {dim.dim_param for dims in pasts for dim in dims[1:] if dim.dim_param} - tokens
    for name, value in inputs.items():
        if "mask" not in name or len(_dims(value)) != 2 or not pasts:
            continue
        last = _dims(value)[1]
        if last.dim_param and last.dim_param in tokens:
            last.dim_param = f"{min(before)} + {last.dim_param}" if merged and len(before) == 1 else ""


def _given(graph: GraphProto) -> Mapping[str, ValueInfoProto]:
    held = {tensor.name for tensor in graph.initializer}
    return {value.name: value for value in graph.input if value.name not in held}


def _dims(value: ValueInfoProto) -> Sequence[TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _read_inside(branch: GraphProto) -> set[str]:
    """What a branch reads of the graph around it, or passes on."""
    names = {name for node in branch.node for name in reads(node)}
    return names | {value.name for value in branch.output}
