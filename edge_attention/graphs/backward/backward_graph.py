"""The graph of one segment's backward pass: from the gradients of what it gave to those of what it was given.

    forward    x, w ──> t0 ──> t1 ──> y             keeps what the backward pass needs of t0, t1
    back       dy, t1, w ──> dx, dw

The segment is differentiated with its forward pass, and then parted: what the backward pass reads of the
forward one is kept on the node, or computed again. What costs next to nothing is computed again in any case:
views, casts, and arithmetic with numbers and vectors, so that of `gelu(x)` x and erf are kept, and not the
four steps between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.axes.stock import HEAVY
from edge_attention.graphs.backward.fixed_graph import FixedGraph, reached
from edge_attention.graphs.backward.merged_softmax import MergedSoftmax, find_merged, joined, taken_out
from edge_attention.graphs.backward.ordered_names import name_in_order
from edge_attention.graphs.gradients.gradients import MAX_ELEMENTS, differentiate
from edge_attention.graphs.onnx_file import (
    fixed_shapes,
    infer_shapes,
    ints,
    keep,
    made_in,
)
from edge_attention.graphs.reading.needed import graphs_in, reads

__all__ = ["Asked", "BackwardGraph", "BackwardInput", "Comes", "backward_graph"]

_CHEAP = frozenset(
    {
        *("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        *("IsNaN", "Neg", "Not", "Relu"),
    }
)
"""Of one tensor, which is no larger than what they make."""
_SCALED = frozenset({"Add", "Div", "Mul", "Pow", "Sub", "Where"})
"""Of one tensor, and others of which it is `_SMALLER` times as large; Where of a condition, too."""
_SMALLER = 8
_NOT_LIGHT = HEAVY | {"Softmax", "LogSoftmax", "LayerNormalization"}


class Comes(Enum):
    """What an input of the backward pass is."""

    INPUT = "input"
    """An input of the segment, by name."""
    VALUE = "value"
    """A value that the forward pass has computed, by name."""
    SEED = "seed"
    """A gradient of an output of the segment; of several that are added, by number."""
    LSE = "lse"
    """The merged lse, for a partial: the output that is it."""
    DELTA = "delta"
    """Of a partial, by its output: the sum over each row of dO * out."""
    BEFORE = "before"
    """A gradient of a weight that the part has of other segments already, by input of this one."""


@dataclass(frozen=True)
class BackwardInput:
    """An input of the backward pass."""

    comes: Comes
    name: str
    number: int = 0


@dataclass(frozen=True)
class Asked:
    """What is asked of a segment's backward pass.

    Attributes:
        moving: inputs of the segment that a gradient is wanted of.
        seeds: output -> how many gradients come to it, which are added; 0: it is the loss, whose is 1.
        partials: outputs that were merged with other parts' -> the output that has the lse.
        merged: inputs that are of a merge: their delta is wanted beside the gradient.
        before: inputs whose gradient is added to one that the part has already.
        again: everything is computed again.
    """

    moving: frozenset[str]
    seeds: tuple[tuple[str, int], ...]
    partials: tuple[tuple[str, str], ...] = ()
    merged: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    again: bool = False


@dataclass(frozen=True, eq=False)
class BackwardGraph:
    """A segment's backward pass.

    Attributes:
        model: its graph.
        inputs: of the graph, what they are.
        gradients: input of the segment -> output that is its gradient.
        deltas: input of the segment -> output, of those in `Asked.merged`.
    """

    model: ModelProto
    inputs: Mapping[str, BackwardInput]
    gradients: Mapping[str, str]
    deltas: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> list[str]:
        """Values of the forward pass that it needs."""
        return [one.name for one in self.inputs.values() if one.comes is Comes.VALUE]


def backward_graph(fixed: FixedGraph, asked: Asked, place: str) -> BackwardGraph | None:
    """The backward pass; None: nothing of what is asked for reaches what a gradient comes to.

    Raises:
        InvalidGraph: an operator has no gradient, with its name.
    """
    merged = find_merged(fixed, dict(asked.partials))
    moved = reached(fixed, asked.moving)
    model = taken_out(fixed, merged) if merged else fixed.model
    # Softmaxes to whose scores a gradient comes.
    towards = [one for one in merged if one.scores in moved]
    moving = set(asked.moving) | {one.shares for one in towards}
    seeds = {name for name, _ in asked.seeds} | {one.scores for one in towards}
    wrt, outputs = _connected(model, fixed, moving, seeds, place)
    if not set(wrt) & asked.moving:
        return None
    ones = {name for name, count in asked.seeds if not count}
    source = ModelProto()
    source.CopyFrom(model)
    kept = [name for one in merged for name in (one.weights, one.lse)]
    keep(source.graph.output, {*outputs, *kept})
    graph = ModelProto.FromString(
        differentiate(
            source,
            1,
            wrt={name: f"d/{name}" for name in wrt},
            seeds={name: None if name in ones else f"s/{name}" for name in outputs},
            keep=kept,
            place=place,
        )
    )
    return _Parting(fixed, asked, merged, graph, wrt, moved).parted(towards)


def _connected(
    model: ModelProto, fixed: FixedGraph, moving: Collection[str], seeds: Collection[str], place: str
) -> tuple[list[str], list[str]]:
    """Which of `moving` lead to which of `seeds`, by floats."""
    made = set(moving)
    for node in model.graph.node:
        if reads(node) & made:
            made.update(name for name in node.output if name and fixed.is_float(name))
    outputs = [value.name for value in model.graph.output if value.name in seeds and value.name in made]
    leads = set(outputs)
    for node in reversed(model.graph.node):
        if leads.intersection(node.output):
            before = {name for name in reads(node) if name in made}
            if before and node.domain not in ("", "ai.onnx"):
                raise InvalidGraph(
                    f"{place}: {node.op_type} of domain '{node.domain}' has no gradient: export the model "
                    "without fused operators, or train only what comes after it"
                )
            leads |= before
    return [
        value.name for value in model.graph.input if value.name in moving and value.name in leads
    ], outputs


class _Parting:
    """Takes the backward pass out of a graph that has both."""

    def __init__(
        self,
        fixed: FixedGraph,
        asked: Asked,
        merged: Sequence[MergedSoftmax],
        both: ModelProto,
        wrt: Sequence[str],
        moved: set[str],
    ) -> None:
        self._fixed, self._asked, self._merged, self._both, self._wrt = fixed, asked, merged, both, wrt
        self._moved = moved
        self._late = {one.shares for one in merged}
        for node in both.graph.node:
            if reads(node) & self._late:
                self._late.update(name for name in node.output if name)
        self._tensors = {tensor.name: tensor for tensor in both.graph.initializer}
        self._nodes: list[NodeProto] = []
        self._inputs: dict[str, BackwardInput] = {}
        self._light = _light(fixed, moved)
        self._held = fixed_shapes(infer_shapes(both))
        self._tensors |= self._sizes()

    def parted(self, towards: Sequence[MergedSoftmax]) -> BackwardGraph:
        gradients, deltas, ends = self._ends()
        self._makers = {
            name: node
            for node in (*self._both.graph.node, *self._starts(towards), *ends)
            for name in node.output
            if name
        }
        self._collect([*gradients.values(), *deltas.values()])
        return self._named(gradients, deltas)

    def _sizes(self) -> dict[str, TensorProto]:
        """What Shape and Size make: nothing is kept for its size."""
        found: dict[str, TensorProto] = {}
        for node in self._both.graph.node:
            shape = self._held.get(node.input[0]) if node.input else None
            if shape is None or node.attribute or node.op_type not in ("Shape", "Size"):
                continue
            value = np.array(shape if node.op_type == "Shape" else prod(shape), np.int64)
            found[node.output[0]] = numpy_helper.from_array(value, node.output[0])
        return found

    def _starts(self, towards: Sequence[MergedSoftmax]) -> list[NodeProto]:
        """Nodes before the backward pass: gradients that are added, and shares of merged attention."""
        made: list[NodeProto] = []
        for name, count in self._asked.seeds:
            if count > 1:
                several = [self._input(BackwardInput(Comes.SEED, name, n)) for n in range(count)]
                made.append(helper.make_node("Sum", several, [f"s/{name}"]))
        for one in self._merged:
            lse = one.outs[0][1]
            mine = [self._input(BackwardInput(Comes.DELTA, name)) for name, _ in one.outs]
            back = f"d/{one.shares}" if one in towards else None
            there = self._input(BackwardInput(Comes.LSE, lse))
            nodes, tensors = joined(one, self._fixed, back, there, mine, f"s/{one.scores}")
            made += nodes
            self._tensors |= {tensor.name: tensor for tensor in tensors}
        return made

    def _ends(self) -> tuple[dict[str, str], dict[str, str], list[NodeProto]]:
        """Nodes behind it: what is added to what was there, and deltas."""
        gradients: dict[str, str] = {}
        deltas: dict[str, str] = {}
        made: list[NodeProto] = []
        for name in self._wrt:
            if name not in self._asked.moving:
                continue
            gradients[name] = f"d/{name}"
            if name in self._asked.before:
                before = self._input(BackwardInput(Comes.BEFORE, name))
                gradients[name] = f"d/{name}/all"
                made.append(helper.make_node("Add", [before, f"d/{name}"], [gradients[name]]))
            if name in self._asked.merged:
                deltas[name] = f"d/{name}/delta"
                last = "merged/last"
                self._tensors[last] = ints(last, [-1])
                made.append(helper.make_node("Mul", [f"d/{name}", name], [f"d/{name}/times"]))
                made.append(
                    helper.make_node("ReduceSum", [f"d/{name}/times", last], [deltas[name]], keepdims=1)
                )
        return gradients, deltas, made

    def _input(self, one: BackwardInput) -> str:
        name = f"back/{one.comes.value}/{one.name}/{one.number}"
        self._inputs[name] = one
        return name

    # What the backward pass is made of

    def _collect(self, wanted: Sequence[str]) -> None:
        """The nodes that make `wanted`, each after what it reads."""
        done: set[str] = set()
        used: set[str] = set()
        rest: list[tuple[str, NodeProto | None]] = [(name, None) for name in reversed(wanted)]
        while rest:
            name, node = rest.pop()
            if node is not None:
                self._nodes.append(node)
                continue
            if name in done:
                continue
            done.add(name)
            used.add(name)
            found = self._brought(name)
            if found is None:
                continue
            done.update(found.output)
            rest.append((name, found))
            own = {name for inner in graphs_in(found) for name in made_in(inner)}
            rest += [(other, None) for other in sorted(reads(found) - own, reverse=True)]
        self._inputs = {name: one for name, one in self._inputs.items() if name in used}
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if name in used}

    def _brought(self, name: str) -> NodeProto | None:
        """The node that makes a value; None: it is given."""
        if name in self._tensors or name in self._inputs:
            return None
        if name in self._fixed.inputs:
            self._inputs[name] = BackwardInput(Comes.INPUT, name)
            return None
        if name.startswith("s/") and name not in self._makers:
            self._inputs[name] = BackwardInput(Comes.SEED, name[2:])
            return None
        node = self._makers[name]
        if name in self._late or name not in self._fixed.makers or self._again(name, node):
            return node
        # As the forward pass has it, its shape is with ones that are left out here.
        form, held = self._fixed.forms[name], self._held.get(name)
        if held is None or held == form.shape:
            self._inputs[name] = BackwardInput(Comes.VALUE, name)
            return None
        given, shape = f"back/value/{name}", f"back/value/{name}/shape"
        self._inputs[given] = BackwardInput(Comes.VALUE, name)
        self._tensors[shape] = ints(shape, held)
        return helper.make_node("Reshape", [given, shape], [name])

    def _again(self, name: str, node: NodeProto) -> bool:
        """Whether a value of the forward pass is computed again."""
        if self._asked.again or name in self._light or node.op_type in _CHEAP:
            return True
        if node.op_type not in _SCALED:
            return False
        size = prod(self._fixed.forms[name].shape)
        others = node.input[1:] if node.op_type == "Where" else node.input
        large = [other for other in others if self._size(other) * _SMALLER > size]
        # Instead of a product and its bias the product would be kept: as much.
        return len(large) == 1 and not self._is_product(large[0])

    def _size(self, name: str) -> int:
        """Elements; of what is not known, more than there are."""
        tensor, form = self._tensors.get(name), self._fixed.forms.get(name)
        if tensor is not None:
            return prod(tensor.dims)
        shape = self._held.get(name) if form is None else form.shape
        return prod(shape) if shape is not None else MAX_ELEMENTS

    def _is_product(self, name: str) -> bool:
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in _CHEAP:
            name = maker.input[0]
            maker = self._makers.get(name)
        return maker is not None and maker.op_type in HEAVY

    # Names

    def _named(self, gradients: Mapping[str, str], deltas: Mapping[str, str]) -> BackwardGraph:
        """The graph, under names by order alone, so that layers alike give the same bytes."""
        model = ModelProto()
        model.CopyFrom(self._both)
        graph = model.graph
        for name in ("node", "input", "output", "initializer", "value_info"):
            graph.ClearField(name)
        graph.name = "segment"
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._tensors.values())
        letters = {}
        for name, one in self._inputs.items():
            letters[name] = one.name[0] if one.comes is Comes.INPUT else "x"
            graph.input.append(helper.make_tensor_value_info(name, *self._form(one)))
        for name in (*gradients.values(), *deltas.values()):
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        renamed = name_in_order(model, letters)
        return BackwardGraph(
            model,
            {renamed[name]: one for name, one in self._inputs.items()},
            {name: renamed[made] for name, made in gradients.items()},
            {name: renamed[made] for name, made in deltas.items()},
        )

    def _form(self, one: BackwardInput) -> tuple[int, tuple[int, ...]]:
        """Type and shape of an input."""
        form = self._fixed.forms[one.name]
        shape = form.shape if one.comes is not Comes.DELTA else (*form.shape[:-1], 1)
        return helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype)), shape


def _light(fixed: FixedGraph, moved: Collection[str]) -> set[str]:
    """What follows from weights alone; or, without products, from inputs that no gradient comes to."""
    written = {tensor.name for tensor in fixed.graph.initializer}
    weights = {name for name in fixed.inputs if name.startswith("w")}
    constant = written | weights | {name for name in fixed.inputs if name.startswith("c")}
    found = constant | {name for name in fixed.inputs if name not in moved}
    for node in fixed.graph.node:
        read = reads(node)
        if read <= constant:
            constant.update(node.output)
            found.update(node.output)
        elif read <= found and not read & weights and node.op_type not in _NOT_LIGHT:
            found.update(node.output)
    return found
