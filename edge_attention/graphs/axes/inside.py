"""Graphs inside nodes that are put in the nodes' place: the branch of an If that is taken, turns of a Loop.

A Loop over layers, as some write models whose layers are alike, is as many layers in a row where the file
itself says how many turns there are and nothing ends it before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from edge_attention.graphs.axes.known_values import KnownValues
from edge_attention.graphs.onnx_file import rename_values
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["branch_taken", "turns_of"]

MAX_UNROLLED = 20_000
"""Nodes of all turns of a Loop."""

Fresh = Callable[[str], str]


def branch_taken(node: NodeProto, taken: bool, known: KnownValues, fresh: Fresh) -> list[NodeProto]:
    """The nodes of an If's branch, in its place. What they make is called as what the If gives, where it can
    be: by a node behind all others a value would live until there."""
    name = "then_branch" if taken else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == name)
    pairs = [(v.name, output) for v, output in zip(branch.output, node.output, strict=False) if output]
    made = {name for inner in branch.node for name in inner.output}
    called: dict[str, str] = {}
    for name, output in pairs:
        if name in made:
            called.setdefault(name, output)
    copy = _renamed(branch, known, fresh, called)
    ends = [
        helper.make_node("Identity", [value.name], [output])
        for value, output in zip(copy.output, node.output, strict=False)
        if output and value.name != output
    ]
    return [*copy.node, *ends]


def turns_of(node: NodeProto, known: KnownValues, fresh: Fresh) -> list[NodeProto] | None:
    """The nodes of a Loop's turns, one behind the other; None: how many there are is not the file's alone."""
    body = next(graphs_in(node))
    given = [*node.input, "", ""][: max(len(node.input), 2)]
    trips = known.value(given[0]) if given[0] and given[0] not in known.sized else None
    first = known.value(given[1]) if given[1] else np.array(True)
    if trips is None or trips.size != 1 or first is None or not first.all():
        return None
    count, (number, goes, *carried) = int(trips.reshape(())), [value.name for value in body.input]
    if not 0 < count * max(len(body.node), 1) <= MAX_UNROLLED or not _goes_on(body, goes, known):
        return None
    nodes: list[NodeProto] = []
    state = given[2:]
    scanned: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
    for turn in range(count):
        names = {name: fresh(name) for name in (number, goes, *carried)}
        known.add(names[number], np.array(turn, np.int64), sized=False)
        known.add(names[goes], np.array(True), sized=False)
        for name, value in zip(carried, state, strict=True):
            nodes.append(helper.make_node("Identity", [value], [names[name]]))
        copy = _renamed(body, known, fresh, names)
        nodes += copy.node
        ends = [value.name for value in copy.output][1:]
        state = ends[: len(carried)]
        for found, name in zip(scanned, ends[len(carried) :], strict=True):
            found.append(name)
    results = [*state, *scanned]
    for output, result in zip(node.output, results, strict=False):
        if not output:
            continue
        if isinstance(result, str):
            nodes.append(helper.make_node("Identity", [result], [output]))
            continue
        axis = fresh("axis")
        known.add(axis, np.array([0], np.int64), sized=False)
        rows = [fresh(name) for name in result]
        nodes += [
            helper.make_node("Unsqueeze", [one, axis], [row]) for one, row in zip(result, rows, strict=True)
        ]
        nodes.append(helper.make_node("Concat", rows, [output], axis=0))
    return nodes


def _goes_on(body: GraphProto, goes: str, known: KnownValues) -> bool:
    """Whether each turn says that there is another one."""
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in makers and makers[name].op_type in ("Identity", "Cast"):
        name = makers[name].input[0]
    if name == goes:
        return True
    for tensor in body.initializer:
        if tensor.name == name:
            return bool(numpy_helper.to_array(tensor).all())
    if name in makers:
        value = next((a.t for a in makers[name].attribute if a.name == "value"), None)
        if makers[name].op_type != "Constant" or value is None:
            return False
        return bool(numpy_helper.to_array(value).all())
    outer = known.value(name)
    return outer is not None and bool(outer.all())


def _renamed(graph: GraphProto, known: KnownValues, fresh: Fresh, names: Mapping[str, str]) -> GraphProto:
    """A copy whose own values have names of their own, some of them `names`; its constants are known."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    made = {o for inner in copy.node for o in inner.output} | {t.name for t in copy.initializer}
    rename_values(copy, {old: fresh(old) for old in sorted(made - {""})} | dict(names))
    for tensor in copy.initializer:
        known.add(tensor.name, np.asarray(numpy_helper.to_array(tensor)), sized=False)
    return copy
