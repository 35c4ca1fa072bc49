"""Which initializers of an ONNX file train, and which of them an exporter has merged or split.

**Which train.** The ones the caller names; otherwise every float32 initializer that is not plainly a
constant, and every tensor of a `Constant` node that is used as a weight (constant_weights.py). Where a
PyTorch export says which are parameters and which are buffers, that is believed. Without it, constants are:
scalars; a single number in arithmetic other than a bias after a product; running statistics of a batch norm
and bounds of a Clip, Pad or Resize; masks (values that are not finite, or of 1e4 and more).

**Merged.** Exporters store initializers of equal value once: two all-zero biases become one, and training
would tie them for good. One initializer with several uses is therefore taken apart where it is a merger,
kept where it is one weight on purpose, and refused where nothing tells:

- uses the exporter knows by different names (PyTorch's torchscript exporter leaves an `Identity` for each),
  or in different modules (its other exporter notes the module of every node): a merger, unless the uses are
  of different kinds, as an embedding that is also the output projection;
- no such notes, but all values equal (all ones, all zeros): a merger;
- no such notes, different values, uses of different kinds: one weight;
- no such notes, different values, uses of one kind: refused, with the names of the nodes.

The first use keeps the file's name; the others are called as the exporter knew them, or `<name>@<node>`.
Naming an initializer in `parameters`, and not the other uses, keeps it tied. A name with `*` or `?` that no
initializer has stands for those that match it and are no constants.

**Split.** An embedding that is also the output projection comes out of an exporter as two initializers, one
the transpose of the other; and the weights of a layer used twice as two equal ones, noted to come from one
parameter. Both are made one again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import translate

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.constant_weights import lift_constants
from edge_attention.graphs.models.exporter_notes import folded_sources, noted_kinds, scope
from edge_attention.graphs.models.floats import FLOATS
from edge_attention.graphs.models.module_note import module_note
from edge_attention.graphs.onnx_file import all_nodes, keep, prune, values_of

__all__ = ["FileParameters", "find_parameters"]

_COMMUTES = {"Add", "Mul", "Max", "Min", "Sum"}
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators whose inputs, by position, no one trains.
_CONSTANT_INPUTS = {
    "BatchNormalization": {3, 4},
    "Clip": {1, 2},
    "OneHot": {2},
    "Pad": {2},
    "Range": {0, 1, 2},
    "Resize": {1, 2},
    "Upsample": {1},
}
_MASK = 1e4  # no trained weight is that large; what a mask adds to a score is


@dataclass(frozen=True)
class FileParameters:
    """`names`: what trains, in the file's order. `untied`: the new ones, with the initializer they were.

    `padding`: tables of embeddings, with the row that lookups do not train.
    `dropped`: parameters that the exporter notes and that nothing in the file reads: it leaves out what has
    no effect, as a bias that is all zero.
    """

    names: tuple[str, ...]
    untied: dict[str, str]
    dropped: tuple[str, ...]
    padding: Mapping[str, int]


@dataclass(frozen=True)
class _Use:
    node: NodeProto
    slot: int
    alias: str  # the exporter's other name for the initializer; empty: its own

    @property
    def kind(self) -> tuple[str, int]:
        return self.node.op_type, -1 if self.node.op_type in _COMMUTES else self.slot

    @property
    def label(self) -> str:
        return self.node.name or self.node.output[0]


def find_parameters(model: ModelProto, named: Collection[str], place: str) -> FileParameters:
    """Take `model`'s parameters apart and together again, in place, and say which they are.

    `model` is as it came from the file, notes of its exporter included. `named`: the parameters wanted, by
    the file's names or by those this function gives; empty: all.

    Raises InvalidGraph for an initializer that may be one weight or several, and for an unknown name.
    """
    _drop_default_inputs(model.graph)
    named, patterns = _parted(model.graph, named)
    # PyTorch's exporters keep what trains in initializers.
    lift_constants(model.graph, named, by_use=model.producer_name != "pytorch")
    aliases = _look_through_identities(model.graph)
    whole = _tie_folded(model.graph, named)
    kinds, gone = noted_kinds(model)
    whole |= {name for name, trains in kinds.items() if not trains}
    if (own := module_note(model.graph)) is not None:
        whole |= set(own.trained)  # each is one weight, whoever reads it
    untied = _untie(model, aliases, whole, gone, named, patterns, place)
    _tie_transposed(model.graph, named)
    tensors = {t.name: t for t in model.graph.initializer if t.data_type in FLOATS}
    for name in named:
        if name not in tensors:
            raise InvalidGraph(
                f"{place}: parameter '{name}' is no float32 initializer{_what(model.graph, name)}; "
                f"there are {_some(tensors) or 'none'}"
            )
    uses = _uses(model.graph, {})
    producers = {output: node for node in all_nodes(model.graph) for output in node.output}
    names = []
    matched: set[str] = set()
    for name, tensor in tensors.items():
        matching = {text for text, pattern in patterns.items() if pattern.match(name)}
        trains = name in named
        if not trains and (matching or not (named or patterns)):
            note = kinds.get(untied.get(name, name))
            trains = note if note is not None else not _is_constant(tensor, uses[name], producers)
        if trains:
            matched |= matching
            names.append(name)
    if unmatched := sorted(patterns.keys() - matched):
        raise InvalidGraph(f"{place}: no parameter is called '{unmatched[0]}'; there are {_some(tensors)}")
    return FileParameters(
        tuple(names),
        {name: untied[name] for name in names if name in untied},
        tuple(sorted(gone - tensors.keys())),
        own.padding if own is not None else {},
    )


def _parted(graph: GraphProto, named: Collection[str]) -> tuple[list[str], dict[str, re.Pattern[str]]]:
    """The names, and the patterns by their text: `*` and `?` alone mean more than themselves."""
    there = values_of(graph)
    texts = [name for name in named if name not in there and ("*" in name or "?" in name)]
    patterns = {text: re.compile(translate(text.replace("[", "[[]"))) for text in texts}
    return [name for name in named if name not in patterns], patterns


def _what(graph: GraphProto, name: str) -> str:
    """What is so called instead."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return f" but {TensorProto.DataType.Name(tensor.data_type).lower()}"
    return ""


def _drop_default_inputs(graph: GraphProto) -> None:
    """An initializer may also be listed as an input (its default value); here it is one or the other."""
    initialized = {tensor.name for tensor in graph.initializer}
    keep(graph.input, {value.name for value in graph.input} - initialized)


def _look_through_identities(graph: GraphProto) -> dict[tuple[int, int], str]:
    """Let nodes read initializers directly; returns the name that a use, (node's id, slot), had before."""
    initialized = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        source = renamed.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type == "Identity" and source in initialized and node.output[0] not in outputs:
            renamed[node.output[0]] = source
        else:
            nodes.append(node)
    if not renamed:
        return {}
    del graph.node[:]
    graph.node.extend(nodes)
    aliases = {}
    for position, node in enumerate(all_nodes(graph)):
        for slot, name in enumerate(node.input):
            if name in renamed:
                aliases[position, slot] = name
                node.input[slot] = renamed[name]
    return aliases


def _untie(
    model: ModelProto,
    aliases: dict[tuple[int, int], str],
    whole: Collection[str],
    gone: set[str],
    named: Collection[str],
    patterns: dict[str, re.Pattern[str]],
    place: str,
) -> dict[str, str]:
    """Give every use of a merged initializer its own, but those in `whole`; returns new name to old."""
    graph = model.graph
    taken = values_of(graph)
    torchscript = model.producer_name == "pytorch" and not any(scope(node) for node in graph.node)
    every = _uses(graph, aliases)
    untied: dict[str, str] = {}
    for tensor in list(graph.initializer):
        uses = every[tensor.name]
        if tensor.data_type not in FLOATS or len(uses) < 2 or tensor.name in whole:
            continue
        if not tensor.dims:
            continue  # a scalar is a constant: sharing it ties nothing
        constant = _all_equal(tensor)
        if not constant and len({use.kind for use in uses}) == len(uses):
            continue  # one weight in several roles
        groups = _groups(tensor.name, uses, constant, torchscript, gone)
        if groups is None:
            if (named or patterns) and not any(p.match(tensor.name) for p in patterns.values()):
                continue
            nodes = ", ".join(f"{use.node.op_type} '{use.label}'" for use in uses)
            raise InvalidGraph(
                f"{place}: initializer '{tensor.name}' is read by {nodes}: one weight used twice, or two of "
                "equal value that the exporter merged; export with different values, or list the "
                "parameters, this one among them, to train it as one"
            )
        for group in groups[1:]:
            name = group[0].alias or _name_before(tensor.name, group[0], gone - taken)
            while name in taken:
                name += "'"
            if tensor.name in named and name not in named:
                continue
            taken.add(name)
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.name = name
            graph.initializer.append(copy)
            untied[name] = tensor.name
            for use in group:
                use.node.input[use.slot] = name
    return untied


def _groups(
    name: str, uses: list[_Use], constant: bool, torchscript: bool, gone: set[str]
) -> list[list[_Use]] | None:
    """The uses by the parameter they were before the exporter merged; None where nothing tells."""
    called = torchscript or any(use.alias for use in uses)
    groups: dict[object, list[_Use]] = defaultdict(list)
    for position, use in enumerate(uses):
        modules = scope(use.node)
        if called:  # the file's own name counts too: the others had an Identity
            groups[use.alias].append(use)
        elif modules:
            groups[modules].append(use)
        elif constant:
            groups[position].append(use)
        else:
            return None
    if called or not constant:
        return list(groups.values())
    # One module may have had two equal parameters, each with a use of its own.
    parted: list[list[_Use]] = []
    for group in groups.values():
        module = ".".join(scope(group[0].node)[-1:])
        several = len(group) == len(_held_before(name, module, gone)) + (name.rpartition(".")[0] == module)
        parted += [[use] for use in group] if several else [group]
    return parted


def _held_before(name: str, module: str, gone: set[str]) -> list[str]:
    """The parameters of `module` that may have been merged into `name`: of its last part, if there are."""
    held = [other for other in sorted(gone) if other.rpartition(".")[0] == module]
    return [other for other in held if other.rpartition(".")[2] == name.rpartition(".")[2]] or held


def _name_before(name: str, use: _Use, gone: set[str]) -> str:
    """The parameter that `use` read before it was merged into `name`: the module's, by the last part."""
    module = ".".join(scope(use.node)[-1:])
    leaf = name.rpartition(".")[2]
    found = [other for other in gone if other.startswith(f"{module}.") and other.rpartition(".")[2] == leaf]
    return found[0] if module and len(found) == 1 else f"{name}@{use.label}"


def _tie_folded(graph: GraphProto, named: Collection[str]) -> set[str]:
    """Make initializers one that an exporter has computed from the same parameters, with the same result.

    Returns the names of those that are one now.
    """
    sources = {name: source for name, source in folded_sources(graph).items() if name not in named}
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    again: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in sources and tensor.data_type in FLOATS:
            value = numpy_helper.to_array(tensor).tobytes()
            key = (sources[tensor.name], tuple(tensor.dims), value)
            if first.setdefault(key, tensor.name) != tensor.name:
                again[tensor.name] = first[key]
    if again:
        keep(graph.initializer, {tensor.name for tensor in graph.initializer} - set(again))
        for node in all_nodes(graph):
            for slot, name in enumerate(node.input):
                node.input[slot] = again.get(name, name)
    return set(again.values())


def _tie_transposed(graph: GraphProto, named: Collection[str]) -> None:
    """Make a table read by Gather and its transposed copy read by a product one initializer again."""
    uses = _uses(graph, {})
    tables = {}
    products = []
    for tensor in graph.initializer:
        if tensor.data_type not in FLOATS or len(tensor.dims) != 2 or _count(tensor) < 16:
            continue
        ops = {use.node.op_type for use in uses[tensor.name]}
        if "Gather" in ops and not _all_equal(tensor):
            tables[numpy_helper.to_array(tensor).T.tobytes(), tuple(reversed(tensor.dims))] = tensor.name
        elif ops and ops <= {"MatMul", "Gemm"} and tensor.name not in named:
            products.append(tensor)
    if not tables:
        return
    nodes = []
    for tensor in products:
        source = tables.get((numpy_helper.to_array(tensor).tobytes(), tuple(tensor.dims)))
        if source is not None:
            keep(graph.initializer, {t.name for t in graph.initializer} - {tensor.name})
            nodes.append(helper.make_node("Transpose", [source], [tensor.name], perm=[1, 0]))
    if nodes:
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *rest])
        prune(graph)


def _uses(graph: GraphProto, aliases: dict[tuple[int, int], str]) -> dict[str, list[_Use]]:
    found: dict[str, list[_Use]] = defaultdict(list)
    initialized = {tensor.name for tensor in graph.initializer}
    for position, node in enumerate(all_nodes(graph)):
        for slot, name in enumerate(node.input):
            if name in initialized:
                found[name].append(_Use(node, slot, aliases.get((position, slot), "")))
    return found


def _is_constant(tensor: TensorProto, uses: list[_Use], producers: dict[str, NodeProto]) -> bool:
    if not tensor.dims:
        return True
    if uses and all(use.slot in _CONSTANT_INPUTS.get(use.node.op_type, ()) for use in uses):
        return True
    array = numpy_helper.to_array(tensor)
    if not np.isfinite(array).all() or np.abs(array).max(initial=0.0) >= _MASK:
        return True
    return array.size == 1 and not any(_is_weight(use, producers) for use in uses)


def _is_weight(use: _Use, producers: dict[str, NodeProto]) -> bool:
    """Whether a single number is used as a weight: in a product, a norm, or as the bias after a product."""
    if use.node.op_type == "Add":
        others = (producers.get(name) for slot, name in enumerate(use.node.input) if slot != use.slot)
        return any(node is not None and node.op_type in _PRODUCTS for node in others)
    return use.node.op_type in _PRODUCTS or use.node.op_type.endswith(("Normalization", "PRelu"))


def _all_equal(tensor: TensorProto) -> bool:
    array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return bool(array.size and (array == array.flat[0]).all())


def _count(tensor: TensorProto) -> int:
    return int(np.prod(list(tensor.dims), dtype=np.int64))


def _some(names: Collection[str]) -> str:
    shown = list(names)[:20]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
