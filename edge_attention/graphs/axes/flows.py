"""Which inputs each output of a graph is computed from, and which are tables that rows are looked up in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto

from edge_attention.graphs.reading import read_graph

__all__ = ["flows_of", "tables_of"]


def flows_of(data: bytes) -> Mapping[str, frozenset[str]]:
    """Output -> the inputs that it depends on, of an ONNX file.

    Raises:
        InvalidGraph: it cannot be read.
    """
    model = ModelProto.FromString(read_graph(data, "a segment").data)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    found = {value.name: frozenset({value.name}) for value in graph.input if value.name not in weights}
    nothing = frozenset[str]()
    for node in graph.node:
        flow = nothing.union(*(found.get(name, nothing) for name in _read(node)))
        found |= dict.fromkeys(filter(None, node.output), flow)
    return {value.name: found.get(value.name, nothing) for value in graph.output}


def tables_of(data: bytes) -> frozenset[str]:
    """The inputs of which an ONNX file does nothing but look up rows: Gather's first.

    Raises:
        InvalidGraph: it cannot be read.
    """
    graph = ModelProto.FromString(read_graph(data, "a segment").data).graph
    looked_up: set[str] = set()
    otherwise = {value.name for value in graph.output}
    for node in graph.node:
        table = node.op_type == "Gather" and node.domain == ""
        looked_up |= set(node.input[:1]) if table else set()
        otherwise |= set(list(_read(node))[1 if table else 0 :])
    return frozenset({value.name for value in graph.input} & looked_up - otherwise)


def _read(node: NodeProto) -> Iterator[str]:
    """The names a node reads, those that graphs inside of it read included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _inside(graph)


def _inside(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from _read(node)
