"""A segment's graph, split where it attends: pieces that nodes run; between them is attention."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.schedule.pieces import AttentionPiece, GraphPiece, SegmentPieces
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.infer import infer_types, type_of
from edge_attention.graphs.decoding.step_graph import ATTENTION, DOMAIN, label
from edge_attention.graphs.onnx_file import serialize
from edge_attention.graphs.reading.needed import reads

__all__ = ["SplitSegment", "made_of_memory", "split", "types_in"]


@dataclass(frozen=True, eq=False)
class SplitSegment:
    """The pieces of a segment's graph, and the files of their graphs, by digest."""

    pieces: SegmentPieces
    graphs: Mapping[str, bytes]


def split(
    model: ModelProto,
    known: Mapping[str, TypeProto],
    with_lse: bool = False,
    memory: frozenset[str] = frozenset(),
) -> SplitSegment | None:
    """A segment in pieces; None: it has to do with no attention, and is one graph as it is.

    Args:
        known: as `types_in` has found.
        with_lse: what attention makes is to be merged, so that its lse is asked for.
        memory: inputs that rows of the memory bring, and no tokens.
    """
    attentions = [node for node in model.graph.node if node.op_type == ATTENTION]
    of_memory = made_of_memory(model, memory) if memory else frozenset()
    ends = [value.name for value in model.graph.output]
    kept = [name for name in ends if name in of_memory]
    if not attentions and not kept:
        return None
    levels = _levels(model)
    types = value_infos(model, known)
    pieces: list[GraphPiece | AttentionPiece] = []
    graphs: dict[str, bytes] = {}

    def add(nodes: Sequence[NodeProto], wanted: Collection[str], of: bool = False) -> None:
        if nodes:
            piece, graph = _graph_piece(model, nodes, wanted, types, of)
            pieces.append(piece)
            graphs[piece.graph] = graph

    add(_before(model, kept), kept, True)
    asked = [name for name in ends if name not in of_memory]
    for node in attentions:
        asked += [name for at, name in enumerate(node.input) if not (_at(node)["memory"] and at in (1, 2))]
    own = [node for node in _before(model, asked, through=True) if node.op_type != ATTENTION]
    for level in range(len(attentions) + 1):
        nodes = [node for node in own if levels[node.output[0]] == level]
        elsewhere = {name for node in own if levels[node.output[0]] != level for name in reads(node)}
        add(nodes, {*asked, *elsewhere})
        if level < len(attentions):
            node, at = attentions[level], _at(attentions[level])
            if at["memory"]:
                if unknown := [name for name in node.input[1:3] if name not in of_memory]:
                    raise FailedPrecondition(f"{label(node)}: {unknown[0]!r} is not of the memory alone")
                add(_before(model, node.input[1:3]), node.input[1:3], True)
            lse = node.output[1] if len(node.output) > 1 else f"{node.output[0]}.lse" if with_lse else ""
            queries, keys, values, *bias = node.input
            scale, window = float(at["scale"]), int(at["window"])
            pieces.append(
                AttentionPiece(
                    queries, keys, values, node.output[0], lse, scale, window, bool(at["memory"]),
                    "".join(bias), _group(known, queries), float(at["cap"]),
                )
            )  # fmt: skip
    return SplitSegment(tuple(pieces), graphs)


def _group(known: Mapping[str, TypeProto], queries: str) -> int:
    """Query heads a key head, of queries [rows, key heads, group, width]; 0: it is not known."""
    if queries not in known:
        return 0
    dims = known[queries].tensor_type.shape.dim
    return int(dims[2].dim_value) if len(dims) == 4 else 0


def _at(node: NodeProto) -> dict[str, Any]:
    return {"memory": 0, "cap": 0.0} | {a.name: helper.get_attribute_value(a) for a in node.attribute}


def made_of_memory(model: ModelProto, names: Collection[str]) -> frozenset[str]:
    """What is made of `names`, these included, without attention."""
    found = set(names)
    for node in model.graph.node:
        if node.op_type != ATTENTION and reads(node) & found:
            found.update(name for name in node.output if name)
    return frozenset(found)


def _before(model: ModelProto, names: Collection[str], through: bool = False) -> list[NodeProto]:
    """The nodes that make `names`; `through`: those before an attention's queries, too, where that is."""
    needed, found = set(names), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            found.append(node)
            if node.op_type != ATTENTION:
                needed |= reads(node)
            elif through:
                needed |= set(node.input[:1] if _at(node)["memory"] else node.input)
    found.reverse()
    return found


def _levels(model: ModelProto) -> dict[str, int]:
    """By value, how many attentions come before it; of what one makes that one included.

    Attentions are done one after the other, in the order of the graph, whether or not one needs another.
    """
    levels: dict[str, int] = {}
    attended = 0
    for node in model.graph.node:
        level = max((levels.get(name, 0) for name in reads(node)), default=0)
        if node.op_type == ATTENTION:
            attended = max(attended + 1, level + 1)
            level = attended
        for name in node.output:
            levels[name] = level
    return levels


def types_in(
    model: ModelProto, forms: Mapping[str, TensorForm], values: Mapping[str, Array]
) -> dict[str, TypeProto]:
    """Of all values of a segment's graph, as far as they are known.

    Args:
        forms: of its inputs.
        values: of those that are constants, small ones.
    """
    known = {name: type_of(form) for name, form in forms.items()}
    held = dict(values)
    for tensor in model.graph.initializer:
        held[tensor.name] = np.asarray(numpy_helper.to_array(tensor))
        known[tensor.name] = type_of(TensorForm(held[tensor.name].dtype.name, held[tensor.name].shape))
    opsets = {one.domain: one.version for one in model.opset_import}
    for node in model.graph.node:
        known |= infer_types(node, known, held, opsets, model.ir_version)
    return known


def value_infos(model: ModelProto, types: Mapping[str, TypeProto]) -> dict[str, ValueInfoProto]:
    """Of all values: the type of their elements and their rank, no sizes."""
    found = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for name, known in types.items():
        tensor = known.tensor_type
        rank = [None] * len(tensor.shape.dim) if tensor.HasField("shape") else None
        found.setdefault(name, helper.make_tensor_value_info(name, tensor.elem_type, rank))
    return found


def _graph_piece(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    wanted: Collection[str],
    types: Mapping[str, ValueInfoProto],
    memory: bool,
) -> tuple[GraphPiece, bytes]:
    """`wanted`: by others."""
    made = {name for node in nodes for name in node.output if name}
    read = [name for node in nodes for name in sorted(reads(node)) if name not in made]
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    ends = {value.name for value in model.graph.output}
    inner = {
        name for node in nodes for name in reads(node) if name not in types and name not in made
    }  # names of graphs inside nodes
    inputs = list(dict.fromkeys(name for name in read if name not in held and name not in inner))
    outputs = [name for node in nodes for name in node.output if name in wanted]
    if unknown := [name for name in (*inputs, *outputs) if name not in types]:
        maker = next((label(node) for node in nodes if unknown[0] in node.output), "attention")
        raise FailedPrecondition(f"the type of what {maker} makes is not known: it cannot leave a piece")
    # Values have names by order, so that layers alike give the same bytes.
    plain = {name for name in inputs if not name.startswith("t")}
    given = {name: name if name in plain else f"v{at}" for at, name in enumerate(inputs)}
    gives = {name: name if name in ends else f"u{at}" for at, name in enumerate(outputs)}
    local = {name: f"n{at}" for at, name in enumerate(sorted(made - set(outputs), key=_order(nodes)))}
    names = {**given, **gives, **local}
    written = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        for field in (copy.input, copy.output):
            for position, name in enumerate(field):
                field[position] = names.get(name, name)
        copy.name = ""
        written.append(copy)
    if any(attribute.HasField("g") or attribute.graphs for node in nodes for attribute in node.attribute):
        # What is read inside keeps its name.
        names = {name: name for name in names}
        written = list(nodes)
    constants = [held[name] for name in dict.fromkeys(read) if name in held]
    graph = helper.make_graph(
        written,
        "segment",
        [_named(types[name], names[name]) for name in inputs],
        [_named(types[name], names[name]) for name in outputs],
        constants,
    )
    domains = {node.domain for node in nodes}
    opsets = [one for one in model.opset_import if one.domain != DOMAIN and one.domain in {"", *domains}]
    data = serialize(helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version))
    digest = hashlib.sha256(data).hexdigest()
    piece = GraphPiece(digest, {names[n]: n for n in inputs}, {names[n]: n for n in outputs}, memory)
    return piece, data


def _order(nodes: Sequence[NodeProto]) -> Callable[[str], int]:
    order = {name: at for at, name in enumerate(n for node in nodes for n in node.output)}
    return order.__getitem__


def _named(value: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy
