"""Goes through a parsed graph, refuses what is not allowed in it and clears what it does not need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import (
    MAX_ATTRIBUTES,
    MAX_CALLS,
    MAX_DEPTH,
    MAX_NODES,
    MAX_VALUES,
)
from edge_attention.graphs.reading.names import check_name
from edge_attention.graphs.reading.operators import LAYOUTS, OPERATORS, REPLACED, standard
from edge_attention.graphs.reading.tensors import STRING, check_tensor, check_type

__all__ = ["Key", "Walk", "key_of"]

Key = tuple[str, str, str]
"""Domain, name and overload of an operator or a function."""

# Attribute type (onnx.proto, AttributeType) to its field; sparse tensors (11, 12) are refused by name.
_FIELDS = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    13: "tp",
    14: "type_protos",
}
_LISTS = {"floats", "ints", "strings", "tensors", "graphs", "type_protos"}
_MESSAGES = {"t", "g", "tp"}
_INT = 2
# Attributes that say which element type comes out.
_TYPED = {"to", "dtype", "output_dtype", "output_datatype", "out_dtype"}
# Attributes whose values are text that an operator puts out.
_TEXT = {
    "": {"value_string", "value_strings"},
    "ai.onnx.ml": {
        "cats_strings",
        "classes_strings",
        "classlabels_strings",
        "default_string",
        "keys_strings",
        "values_strings",
    },
}


def key_of(function: Any) -> Key:
    """What a function is called by."""
    return standard(function.domain), function.name, function.overload


class Walk:
    """Through one file. `notes`: what exporters note stays in it. `replaced`: it may have operators that
    onnx's converter of versions replaces."""

    def __init__(self, where: str, functions: Mapping[Key, Any], notes: bool, replaced: bool = False) -> None:
        self._where = where
        self._replaced = REPLACED if replaced else frozenset[str]()
        self._functions = functions
        self._notes = notes
        self.used: set[tuple[str, str]] = set()
        """Domain and name of every operator and function that is called."""
        self._sizes: dict[Key, int] = {}
        self._typed: dict[Key, set[str]] = {}
        self._calls: list[Key] = []

    def graph(self, graph: Any, depth: int = 0, typed: set[str] | None = None) -> int:
        """Check a graph, and return its nodes: those of graphs inside and of functions included.

        `typed`, where the graph is within a function: collects the attributes of that which name types.

        Raises:
            InvalidGraph: saying what is not allowed, and in which node.
        """
        where = self._where
        if depth > MAX_DEPTH:
            raise InvalidGraph(f"{where}: graphs within graphs, more than {MAX_DEPTH} deep (MAX_DEPTH)")
        check_name(graph.name, where, "the graph's name")
        graph.ClearField("quantization_annotation")
        if graph.sparse_initializer:
            raise InvalidGraph(f"{where}: sparse initializers are not supported; make them dense")
        if not self._notes:
            for field in ("doc_string", "metadata_props", "value_info"):
                graph.ClearField(field)
        self._count(graph.input, "inputs of a graph")
        self._count(graph.output, "outputs of a graph")
        for kind, values in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
            for value in values:
                self._value(value, kind)
        for tensor in graph.initializer:
            check_tensor(tensor, where, "initializer", self._notes)
        return self._nodes(graph.node, depth, typed)

    def function(self, key: Key) -> int:
        """Check a function, and return how many nodes a call of it is."""
        if key in self._sizes:
            return self._sizes[key]
        where, function = self._where, self._functions[key]
        if key in self._calls:
            raise InvalidGraph(f"{where}: function {key[1]!r} calls itself; ONNX has no recursion")
        if len(self._calls) >= MAX_CALLS:
            raise InvalidGraph(
                f"{where}: functions that call functions, more than {MAX_CALLS} deep (MAX_CALLS)"
            )
        for name in (*key, *function.attribute, *function.input, *function.output):
            check_name(name, where, f"a name in function {key[1][:80]!a}")
        self._count(function.input, "inputs of a function")
        self._count(function.output, "outputs of a function")
        for field in () if self._notes else ("doc_string", "metadata_props", "value_info"):
            function.ClearField(field)
        for value in function.value_info:
            self._value(value, "value")
        typed = self._typed[key] = set[str]()
        self._calls.append(key)
        size = sum(self._attribute(attribute, key[1], 0, None) for attribute in function.attribute_proto)
        size += self._nodes(function.node, 0, typed)
        self._calls.pop()
        # A default counts as if each call had given it.
        for attribute in function.attribute_proto:
            if attribute.name in typed:
                self._element_type(attribute, key[1])
        self._sizes[key] = size
        return size

    def _nodes(self, nodes: Any, depth: int, typed: set[str] | None) -> int:
        """Check nodes and count them. `typed`: collects the attributes of the function that name types."""
        size = 0
        for node in nodes:
            size += self._node(node, depth, typed)
            if size > MAX_NODES:
                raise InvalidGraph(
                    f"{self._where}: more than {MAX_NODES:,} nodes, functions and graphs inside counted as "
                    "often as they are used (MAX_NODES)"
                )
        return size

    def _node(self, node: Any, depth: int, typed: set[str] | None) -> int:
        where, domain, name = self._where, standard(node.domain), node.op_type
        key = (domain, name, node.overload)
        if not domain:
            node.ClearField("domain")
        for text in (node.name, name, node.domain):
            check_name(text, where, "a node's name")
        label = f"operator {name or '(without a name)'} (node {node.name or next(iter(node.output), '')!r})"
        size, inner = 1, set[str]()
        if key in self._functions:
            size += self.function(key)
            inner = self._typed[key]
        elif domain in LAYOUTS:
            raise InvalidGraph(
                f"{where}: {label} is of domain {node.domain!r}: ONNX Runtime wrote the file for its own "
                "processor; bring the file it was made of, or one optimised as ORT_ENABLE_EXTENDED says"
            )
        elif domain not in OPERATORS:
            raise InvalidGraph(
                f"{where}: {label} is of domain {node.domain!r}, which is not allowed; the domains are "
                f"ai.onnx, {', '.join(filter(None, OPERATORS))} and functions of the file"
            )
        elif name not in OPERATORS[domain] and (domain or name not in self._replaced):
            raise InvalidGraph(
                f"{where}: {label} is not among the operators that a graph may have; export it without; "
                "docs/security.md, what a graph can do, says why"
            )
        self.used.add((domain, name))
        for values, what in ((node.input, "inputs"), (node.output, "outputs")):
            self._count(values, f"{what} of {label}")
            for value in values:
                check_name(value, where, f"a value of {label}")
        node.ClearField("device_configurations")
        if not self._notes:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
        if len(node.attribute) > MAX_ATTRIBUTES:
            raise InvalidGraph(f"{where}: {label} has more than {MAX_ATTRIBUTES} attributes (MAX_ATTRIBUTES)")
        if len({attribute.name for attribute in node.attribute}) != len(node.attribute):
            raise InvalidGraph(f"{where}: {label} has an attribute twice; export it again")
        text = _TEXT.get(domain, ())
        for attribute in node.attribute:
            size += self._attribute(attribute, label, depth, typed)
            if attribute.name in text and (attribute.s or attribute.strings or domain == ""):
                raise InvalidGraph(
                    f"{where}: {label} makes text ({attribute.name}); graphs compute with numbers here"
                )
            if (attribute.name in inner) if key in self._functions else attribute.name in _TYPED:
                self._element_type(attribute, label)
                if attribute.ref_attr_name and typed is not None:
                    typed.add(attribute.ref_attr_name)
        return size

    def _attribute(self, attribute: Any, label: str, depth: int, typed: set[str] | None) -> int:
        """Check an attribute, and return how many nodes are in its graphs."""
        where, name = self._where, attribute.name
        check_name(name, where, f"an attribute of {label}")
        check_name(attribute.ref_attr_name, where, f"an attribute of {label}")
        if attribute.type in (11, 12) or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise InvalidGraph(f"{where}: {label} has a sparse constant; make it dense")
        field = _FIELDS.get(attribute.type)
        if field is None:
            raise InvalidGraph(
                f"{where}: attribute {name!r} of {label} has no type that is known; export it again"
            )
        attribute.ClearField("doc_string")
        other = [
            f.name
            for f, _ in attribute.ListFields()
            if f.name not in (field, "name", "type", "ref_attr_name")
        ]
        if other or (attribute.ref_attr_name and (typed is None or _given(attribute, field))):
            raise InvalidGraph(f"{where}: attribute {name!r} of {label} has several values; export it again")
        if attribute.ref_attr_name:
            return 0
        if field in _MESSAGES and not attribute.HasField(field):
            raise InvalidGraph(f"{where}: attribute {name!r} of {label} has no value; export it again")
        if field in ("t", "tensors"):
            for tensor in [attribute.t] if field == "t" else attribute.tensors:
                check_tensor(tensor, where, f"attribute {name!r} of {label}", self._notes)
        elif field in ("g", "graphs"):
            graphs = [attribute.g] if field == "g" else attribute.graphs
            return sum(self.graph(graph, depth + 1, typed) for graph in graphs)
        elif field in ("tp", "type_protos"):
            for given in [attribute.tp] if field == "tp" else attribute.type_protos:
                check_type(given, where, f"attribute {name!r} of {label}")
        return 0

    def _element_type(self, attribute: Any, label: str) -> None:
        if attribute.type == _INT and attribute.i == STRING:
            raise InvalidGraph(
                f"{self._where}: {label} makes text ({attribute.name}=STRING); graphs compute with "
                "numbers here"
            )

    def _value(self, value: Any, kind: str) -> None:
        check_name(value.name, self._where, f"an {kind}'s name" if kind != "value" else "a value's name")
        if value.HasField("type"):
            check_type(value.type, self._where, f"{kind} {value.name!r}")
        if not self._notes:
            value.ClearField("doc_string")
            value.ClearField("metadata_props")

    def _count(self, values: Any, what: str) -> None:
        if len(values) > MAX_VALUES:
            raise InvalidGraph(
                f"{self._where}: {len(values):,} {what}, more than {MAX_VALUES:,} (MAX_VALUES)"
            )


def _given(attribute: Any, field: str) -> bool:
    return bool(getattr(attribute, field)) if field in _LISTS else attribute.HasField(field)
