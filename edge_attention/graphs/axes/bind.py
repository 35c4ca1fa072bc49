"""Binds a model to sizes: nothing of it is run on data, and no weight is read.

Node by node, in order: what follows from shapes and literals is computed (`evaluate.py`), an If that this
decides is the branch that is taken, fused operators become plain ones (`lower.py`), and of all else the
shapes of what it makes are found (`infer.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TypeProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.shape_inference import InferenceError

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.schedule.extents import AxisSpan, Extent
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.constant_uses import ConstantUses
from edge_attention.graphs.axes.evaluate import MAX_COMPUTED, can_be_computed, evaluate
from edge_attention.graphs.axes.fit import label, misfit, require_fit, require_reshaped
from edge_attention.graphs.axes.infer import form_of, infer_bodies, infer_types
from edge_attention.graphs.axes.input_forms import input_forms
from edge_attention.graphs.axes.inside import branch_taken, turns_of
from edge_attention.graphs.axes.known_values import KnownValues, Read
from edge_attention.graphs.axes.lower import lowered
from edge_attention.graphs.axes.lowering import Lowering
from edge_attention.graphs.axes.plainer import leave_out_empty, passes, plain_softmax
from edge_attention.graphs.axes.unpack import unpack
from edge_attention.graphs.onnx_file import first_line, rename_values
from edge_attention.graphs.reading.needed import graphs_in, reads

__all__ = ["Read", "bind"]

MAX_NODES = 200_000
"""Nodes of a model with its fused operators taken apart."""
_UNTOLD = 1 << 16
"""Elements of what a node is given, where the size of what it would make is not known before."""
_TOGETHER = frozenset(
    [
        "Add",
        "And",
        "Concat",
        "Div",
        "Equal",
        "Greater",
        "Less",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Or",
        "Pow",
        "Sub",
        "Sum",
        "Where",
    ]
)
"""Operators whose operands have to fit each other: where they do not, the sizes are none the model has."""
_ROUNDS = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear"})
_BODIES = ("If", "Loop", "Scan", "SequenceMap")
_STACKED = 3
"""Dimensions of a weight that is several matrices."""


def bind(
    model: ModelProto,
    dimensions: Mapping[str, int],
    read: Read | None = None,
    *,
    fused: bool = False,
    changing: Collection[str] = (),
    given: Mapping[str, int] = {},
) -> BoundGraph:
    """The model for inputs of fixed shapes.

    Args:
        model: as the strict reader gives it. Initializers may be without their data (left out, or external),
            but scalars and small ones.
        dimensions: sizes of what is symbolic in its inputs, by name; of one without a name `<input>.<axis>`,
            which is taken before the name where both are said.
        read: gives what the model has not the data of. Without it such values count as not known.
        fused: keep fused operators and packed products as they are, for plans that cut nothing within them:
            layers, replicas. They compute what the file does to the bit; what quantises behind them, as int4
            weights do, jumps otherwise.
        changing: initializers whose values will be others, as those that train: nothing is computed of them,
            be they single numbers.
        given: inputs of one element whose value is known.

    Raises:
        InvalidArgument: a dimension has no size, or is given one it cannot have, as a text longer than the
            model has positions; says which and what to say.
        InvalidGraph: functions that cannot be inlined, or too many nodes.
    """
    if model.functions:
        try:
            model = inline_local_functions(model)
        except Exception as error:  # whatever its C++ half raises
            raise InvalidGraph(f"the model's functions cannot be inlined: {first_line(error)}") from None
    return _Binding(model, dimensions, read, fused, changing, given).bound()


class _Binding:
    """The state of it: the nodes so far, and what is known of each value."""

    def __init__(
        self,
        model: ModelProto,
        dimensions: Mapping[str, int],
        read: Read | None,
        fused: bool,
        changing: Collection[str],
        given: Mapping[str, int],
    ) -> None:
        self._fused = fused
        self._graph = model.graph
        self._dimensions = dimensions
        self._inputs = input_forms(model.graph, dimensions)
        self._outputs = tuple(value.name for value in model.graph.output)
        self._opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
        self._ir_version = model.ir_version
        self._known = KnownValues(model, read, changing)
        for name, form in self._inputs.items():
            self._known.declare(name, form)
        for name, value in given.items():
            form = self._inputs[name]
            if prod(form.shape) == 1:
                self._known.add(name, np.full(form.shape, value, form.dtype), sized=False)
        self._alias: dict[str, str] = {}
        self._nodes: list[NodeProto] = []
        self._why: dict[str, str] = {}
        self._pieces: dict[str, tuple[str, Extent]] = {}
        self._rows: dict[str, NodeProto] = {}
        """By what they make: nodes by which an older softmax is written."""
        self._count = 0
        self._loosened = ""
        made = frozenset(name for node in self._graph.node for name in node.output)
        self._unread = made.difference(self._outputs, *map(reads, self._graph.node))
        self._rounds = any(node.op_type in _ROUNDS for node in self._graph.node)

    def bound(self) -> BoundGraph:
        queue = deque(self._graph.node)
        taken = 0
        while queue:
            taken += 1
            if taken > MAX_NODES:
                raise InvalidGraph(f"the model has more than {MAX_NODES:,} nodes (MAX_NODES)")
            queue.extendleft(reversed(self._take(queue.popleft())))
        made = {name for node in self._nodes for name in node.output}
        for name in self._outputs:
            self._make_output(name, made)
        nodes = _needed(self._nodes, self._outputs)
        if not self._fused:
            nodes = self._unpacked(nodes)
        return self._with_own_names(nodes)

    def _make_output(self, name: str, made: set[str]) -> None:
        """An output that is a constant is made by a node, as any other."""
        if name in self._inputs or self._known.is_file(name):
            raise InvalidGraph(f"output '{name}' is an input or a constant itself; put an Identity before it")
        if name in self._known.values and name not in made:
            value = self._fresh(name)
            self._known.add(value, self._known.values.pop(name), name in self._known.sized)
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))

    # -- one node

    def _take(self, given: NodeProto) -> Sequence[NodeProto]:
        """Bind a node; returns the nodes that stand in its place and are to be bound instead."""
        node = NodeProto()
        node.CopyFrom(given)
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        for position, name in enumerate(node.input):
            node.input[position] = self._alias.get(name, name)
        while node.input and not node.input[-1]:
            del node.input[-1]
        for inner in graphs_in(node):
            rename_values(inner, self._alias)
        if node.op_type == "Constant" and not node.domain:
            self._constant(node)
            return ()
        if node.op_type == "Concat" and not node.domain:
            leave_out_empty(node, self._known)
        if node.op_type == "Reshape" and not node.domain:
            node = plain_softmax(node, self._rows, self._known)
        if passes(node, self._known, self._unread):
            if node.output[0] not in self._outputs:
                self._alias[node.output[0]] = node.input[0]
                return ()
            node = helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name)
        if node.op_type == "If" and not node.domain:
            decided = self._known.value(node.input[0])
            if decided is not None and decided.size == 1:
                return branch_taken(node, bool(decided.reshape(())), self._known, self._fresh)
        if node.op_type == "Loop" and not node.domain:
            turns = turns_of(node, self._known, self._fresh)
            if turns is not None:
                return turns
        if node.op_type == "Gather" and not node.domain and self._of_stack(node):
            return ()
        if (node.op_type in ("Shape", "Size") and self._shape(node)) or self._fold(node):
            return ()
        write = Lowering(self._known.form, self._known.value, self._fresh, self._opsets)
        instead = lowered(node, write, self._rounds)
        if instead is not None:
            for name, array in instead.literals.items():
                self._known.add(name, array, sized=False)
            for name, array in instead.derived.items():
                self._known.add(name, array, sized=True)
            if not self._fused:
                if self._rounds and node.op_type == "GroupQueryAttention":
                    self._loosened = self._loosened or label(node)
                return instead.nodes
            self._follow(node, instead.nodes)
            return ()
        self._infer(node)
        self._nodes.append(node)
        if node.op_type in ("Flatten", "Softmax") and not node.domain:
            self._rows[node.output[0]] = node
        return ()

    def _follow(self, node: NodeProto, instead: Sequence[NodeProto]) -> None:
        """Keep a node, of what stands in its place only what is known of its results."""
        before, why = len(self._nodes), dict(self._why)
        queue = deque(instead)
        while queue:
            queue.extendleft(reversed(self._take(queue.popleft())))
        del self._nodes[before:]
        self._nodes.append(node)
        self._why = why
        for name in node.output:
            made = self._alias.pop(name, name)  # what stood for it is gone
            if made != name and made in self._known.types:
                self._known.types[name] = self._known.types[made]
            if name and self._known.form(name) is None:
                self._why[name] = self._reason(node)

    def _constant(self, node: NodeProto) -> None:
        found = evaluate(node, (), {"": self._opsets.get("", 21)}, self._ir_version)
        if found is None and node.attribute and node.attribute[0].HasField("t"):  # too large to be computed
            found = [np.asarray(numpy_helper.to_array(node.attribute[0].t))]
        if found is None:
            self._why[node.output[0]] = f"{label(node)} is no constant of numbers"
            return
        self._known.add(node.output[0], found[0], sized=False)

    def _of_stack(self, node: NodeProto) -> bool:
        """Take one of several weights that the file has as one: a range of it, and no more is read."""
        data, index = node.input
        form, at = self._known.form(data), self._known.value(index)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if form is None or at is None or at.ndim or len(form.shape) < _STACKED or axis:
            return False
        if not self._known.is_weight(data) or not -form.shape[0] <= int(at) < form.shape[0]:
            return False
        start, own = int(at) % form.shape[0], self._fresh(f"{data}[{int(at)}]")
        self._pieces[own] = data, (AxisSpan(0, start, start + 1, form.shape[0]),)
        self._known.declare(own, TensorForm(form.dtype, (1, *form.shape[1:])))
        axes = self._fresh("axes")
        self._known.add(axes, np.array([0], np.int64), sized=False)
        squeezed = helper.make_node("Squeeze", [own, axes], node.output[:1], name=node.name)
        self._infer(squeezed)
        self._nodes.append(squeezed)
        return True

    def _shape(self, node: NodeProto) -> bool:
        form = self._known.form(node.input[0])
        if form is None:
            return False
        bounds = {a.name: a.i for a in node.attribute}
        shape = form.shape[bounds.get("start", 0) : bounds.get("end", len(form.shape))]
        value = prod(form.shape) if node.op_type == "Size" else shape
        fixed = self._known.is_constant(node.input[0]) and node.input[0] not in self._known.sized
        self._known.add(node.output[0], np.array(value, np.int64), sized=not fixed)
        return True

    def _fold(self, node: NodeProto) -> bool:
        """Compute what the node makes, if it follows from what is known; whether the node is done with."""
        known = self._known
        names = [name for name in node.input if name]
        if not names or not all(known.can_be_known(name) for name in names):
            return False
        made = self._inferred(node)
        forms = [form_of(made[name]) if name in made else None for name in node.output if name]
        if any(form is not None and prod(form.shape) > MAX_COMPUTED for form in forms):
            return False
        inputs = [known.value(name) if name else None for name in node.input]
        if any(array is None for array, name in zip(inputs, node.input, strict=True) if name):
            return False
        elements = sum(array.size for array in inputs if array is not None)
        if elements > (_UNTOLD if None in forms else 4 * MAX_COMPUTED):
            return False
        if not can_be_computed(node, inputs, None not in forms):
            return False
        found = evaluate(node, inputs, self._opsets, self._ir_version)
        if found is None:
            return False
        several = [name for name in names if known.values[name].size > 1]
        soft = bool(several) and known.soft.issuperset(several)
        sized = any(name in known.sized for name in names)
        for name, array in zip((name for name in node.output if name), found, strict=False):
            known.add(name, array, sized)
            if soft:
                known.soft.add(name)
        if soft:
            self._nodes.append(node)
        return True

    def _inferred(self, node: NodeProto) -> Mapping[str, TypeProto]:
        if node.op_type == "Resize" and not node.domain:
            self._known.value(
                (*node.input, "", "")[2]
            )  # by how much, which the file may have as an initializer
        if node.op_type in _BODIES and not node.domain:
            return infer_bodies(node, self._known.types, self._known.values, self._opsets, self._ir_version)
        try:
            return infer_types(node, self._known.types, self._known.values, self._opsets, self._ir_version)
        except InferenceError:
            forms = [self._known.form(name) for name in node.input if name]
            if node.op_type not in _TOGETHER or node.domain or None in forms:
                return {}  # an operator that onnx knows otherwise than ONNX Runtime does
        shapes = " and ".join(str(list(form.shape)) for form in forms if form is not None)
        raise misfit(self._dimensions, f"{label(node)} is given {shapes}")

    def _infer(self, node: NodeProto) -> None:
        require_fit(node, self._known, self._dimensions)
        made = self._inferred(node)
        require_reshaped(node, made, self._known, self._dimensions)
        for name in node.output:
            if not name:
                continue
            if name in made:
                self._known.types[name] = made[name]
            if name not in made or form_of(made[name]) is None:
                self._why[name] = self._reason(node)

    def _reason(self, node: NodeProto) -> str:
        before = [self._why[name] for name in sorted(reads(node)) if name in self._why]
        if before:
            return before[0]
        if node.op_type in _BODIES:
            return f"{label(node)} is decided by data"
        return f"{label(node)} makes something whose size depends on data, or is not known here"

    def _fresh(self, like: str) -> str:
        self._count += 1
        return f"{like}~{self._count}"

    # -- the result

    def _unpacked(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes with products taken apart that make things of unlike sizes in one."""
        known = self._known
        done = unpack(nodes, frozenset(self._outputs), known.form, known.value, known.is_weight, self._fresh)
        for name, (weight, extent, form) in done.pieces.items():
            self._pieces[name] = (weight, extent)
            known.declare(name, form)
        for name, form in done.forms.items():
            known.declare(name, form)
        return done.nodes

    def _with_own_names(self, nodes: list[NodeProto]) -> BoundGraph:
        """The graph, in which each use of a constant has a name of its own."""
        uses = ConstantUses(self._known, self._pieces)
        made = {name for node in nodes for name in node.output}
        specs: dict[str, TensorForm] = dict(self._inputs)
        unknown: dict[str, str] = {}
        for node in nodes:
            for position, name in enumerate(node.input):
                if name and name not in made and name not in self._inputs:
                    node.input[position] = uses.named(name)
            for name in sorted(reads(node) - {*node.input} - made - {*self._inputs}):
                if name in self._known.types:  # of a graph inside the node
                    uses.keep(name, name)
            for name in node.output:
                form = self._known.form(name) if name else None
                if form is not None:
                    specs[name] = form
                elif name:
                    unknown[name] = self._why.get(name, self._reason(node))
        return BoundGraph(
            tuple(nodes),
            {**specs, **uses.specs},
            uses.weights,
            uses.literals,
            uses.derived,
            tuple(self._inputs),
            self._outputs,
            self._opsets,
            self._ir_version,
            uses.pieces,
            unknown,
            self._loosened,
        )


def _needed(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Those that an output depends on, in order."""
    needed = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= reads(node)
    kept.reverse()
    return kept
