"""Which inputs look up rows of a stored table, and of how many: token ids, as a rule.

A number beyond them fails a whole run, with everybody whose rows are in it: whoever knows the bound refuses
the one request before.
"""

from __future__ import annotations

from onnx import NodeProto

from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.reading.needed import reads

__all__ = ["rows_looked_up"]

_SAME = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""What gives all of its first input's numbers, and no others."""


def rows_looked_up(opened: OpenModel) -> dict[str, int]:
    """By input the rows of the smallest table that all of its numbers look up, in every run: from -rows to
    rows - 1. Of tables that are computed nothing is known."""
    graph = opened.model.graph
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output if name}
    given = {value.name for value in graph.input if value.name not in tables}
    found: dict[str, int] = {}
    for node in _needed([value.name for value in graph.output], makers):
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
            continue
        dims = tables.get(node.input[0])
        name = node.input[1]
        passed: set[str] = set()  # a file may have a circle of them, which is refused by whoever binds it
        while (maker := makers.get(name)) is not None and maker.op_type in _SAME and name not in passed:
            passed.add(name)
            name = maker.input[0]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if dims and name in given and -len(dims) <= axis < len(dims):
            found[name] = min(dims[axis], found.get(name, dims[axis]))
    return found


def _needed(names: list[str], makers: dict[str, NodeProto]) -> list[NodeProto]:
    """The nodes without which one of `names` is not made."""
    seen: set[str] = set()
    nodes: dict[int, NodeProto] = {}
    while names:
        name = names.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        nodes[id(makers[name])] = makers[name]
        names.extend(reads(makers[name]))
    return list(nodes.values())
