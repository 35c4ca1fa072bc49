"""Cuts off what a model's wanted values do not need, before anything of it is judged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from edge_attention.graphs.reading.operators import standard

__all__ = ["CutOff", "cut_off", "graphs_in", "inputs_by_output", "keep_needed", "open_sizes", "reads"]


_NO_NAMES = frozenset({"?", "-1", "*", "None", "none"})


@dataclass(frozen=True)
class CutOff:
    """What of a model's outputs, of its constants, and of the values that its nodes make, was not needed."""

    outputs: tuple[str, ...]
    constants: frozenset[str]
    values: tuple[str, ...]


def graphs_in(node: Any) -> Iterator[Any]:
    """The graphs inside a node: bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> set[str]:
    """What a node depends on; for its graphs inside a superset, as a local name may equal an outer one."""
    names = set(node.input)
    for graph in graphs_in(node):
        for inner in graph.node:
            names |= reads(inner)
        names |= {value.name for value in graph.output}
    return names - {""}


def keep_needed(graph: Any, wanted: Collection[str]) -> None:
    """Drop, in place, every node, initializer and input that no value of `wanted` depends on."""
    needed = set(wanted)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= reads(node)
    kept.reverse()
    _keep(graph.node, kept)
    for field in (graph.initializer, graph.input):
        _keep(field, [item for item in field if item.name in needed])


def inputs_by_output(graph: Any) -> dict[str, frozenset[str]]:
    """Of each output the inputs that it depends on."""
    inputs = {value.name for value in graph.input}
    found = {}
    for output in graph.output:
        needed = {output.name}
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                needed |= reads(node)
        found[output.name] = frozenset(needed & inputs)
    return found


def cut_off(model: Any, wanted: Collection[str]) -> CutOff:
    """Leave of `model` what the values `wanted` need, functions included; returns what is gone.

    A wanted value that is no output is no output afterwards either: it has no type that could be declared.
    """
    graph = model.graph
    before = tuple(value.name for value in graph.output)
    _unmap(graph, wanted)
    constants = _constants(graph)
    values = [name for node in graph.node for name in node.output if name]
    keep_needed(graph, wanted)
    _keep(graph.output, [value for value in graph.output if value.name in wanted])
    there = {name for node in graph.node for name in node.output}
    there |= {item.name for field in (graph.initializer, graph.input, graph.output) for item in field}
    _keep(graph.value_info, [value for value in graph.value_info if value.name in there])
    _keep_called(model)
    gone = constants - _constants(graph)
    lost = tuple(name for name in values if name not in there and name not in constants)
    return CutOff(tuple(name for name in before if name not in wanted), gone, lost)


def open_sizes(graph: Any) -> None:
    """Leave out, in place, sizes of -1 and names like "?": some exporters write so what is open.

    A name that says nothing is no name: two dimensions that have it need not be of one size.
    """
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value == -1:
                dim.ClearField("dim_value")
            if dim.dim_param in _NO_NAMES:
                dim.ClearField("dim_param")
    for node in graph.node:
        for inner in graphs_in(node):
            open_sizes(inner)


def _unmap(graph: Any, wanted: Collection[str]) -> None:
    """Let what scikit-learn's converter gives as a map of each row be the tensor that it was made of."""
    for node in graph.node:
        if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml" and set(node.output) & set(wanted):
            node.op_type = "Identity"
            node.domain = ""
            del node.attribute[:]
            _keep(graph.output, [value for value in graph.output if value.name not in node.output])


def _constants(graph: Any) -> frozenset[str]:
    made = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return frozenset(made | {tensor.name for tensor in graph.initializer})


def _keep_called(model: Any) -> None:
    """Drop functions that nothing calls."""
    functions: dict[tuple[str, str], list[Any]] = {}
    for function in model.functions:
        functions.setdefault((standard(function.domain), function.name), []).append(function)
    called: set[tuple[str, str]] = set()
    waiting = list(model.graph.node)
    while waiting:
        node = waiting.pop()
        waiting += [inner for graph in graphs_in(node) for inner in graph.node]
        key = (standard(node.domain), node.op_type)
        if key in functions and key not in called:
            called.add(key)
            waiting += [inner for function in functions[key] for inner in function.node]
    _keep(model.functions, [f for f in model.functions if (standard(f.domain), f.name) in called])


def _keep(field: Any, kept: list[Any]) -> None:
    if len(kept) < len(field):
        del field[:]
        field.extend(kept)
