"""Binds a model to sizes: nothing of it is run on data, and no weight is read.

Node by node, in order: what follows from shapes and literals is computed (`evaluate.py`), an If that this
decides is the branch that is taken, fused operators become plain ones (`lower.py`), and of all else the
shapes of what it makes are found (`infer.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.schedule.extents import Extent
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.evaluate import MAX_COMPUTED, evaluate
from edge_attention.graphs.axes.infer import form_of, infer_types, type_of
from edge_attention.graphs.axes.lower import lowered
from edge_attention.graphs.axes.lowering import Lowering
from edge_attention.graphs.axes.unpack import unpack
from edge_attention.graphs.onnx_file import first_line, rename_values
from edge_attention.graphs.reading.needed import graphs_in, reads

__all__ = ["Read", "bind"]

Read = Callable[[str], Array]
"""The value of an initializer whose data the model at hand does not have; asked for tables of whole numbers
and short vectors only."""

MAX_NODES = 200_000
"""Nodes of a model with its fused operators taken apart."""
MAX_SIZE = 1 << 31
"""Of a dimension."""
_SMALL = 1024
"""Elements of a whole-number initializer up to which it is a literal: axes, shapes, bounds."""
_TABLE = 1 << 22
"""Elements of a table of whole numbers (position ids, a mask of all positions) that is read to be folded."""
_VECTOR = 4096
"""Elements of a vector of floats that is read to be folded, as the frequencies of rotary positions."""
_UNTOLD = 1 << 16
"""Elements of what a node is given, where the size of what it would make is not known before."""
_DISCRETE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def bind(model: ModelProto, dimensions: Mapping[str, int], read: Read | None = None) -> BoundGraph:
    """The model for inputs of fixed shapes.

    Args:
        model: as the strict reader gives it. Initializers may be without their data (left out, or external),
            but scalars and small ones.
        dimensions: sizes of what is symbolic in its inputs, by name; of one without a name `<input>.<axis>`,
            which is taken before the name where both are said.
        read: gives what the model has not the data of. Without it such values count as not known.

    Raises:
        InvalidArgument: a dimension has no size, or is given one it cannot have; says which and what to say.
        InvalidGraph: functions that cannot be inlined, or too many nodes.
    """
    if model.functions:
        try:
            model = inline_local_functions(model)
        except Exception as error:  # whatever its C++ half raises
            raise InvalidGraph(f"the model's functions cannot be inlined: {first_line(error)}") from None
    return _Binding(model, read).bound(dimensions)


def _forms(graph: GraphProto, dimensions: Mapping[str, int]) -> dict[str, TensorForm]:
    """Inputs with all their sizes."""
    weights = {tensor.name for tensor in graph.initializer}
    found: dict[str, TensorForm] = {}
    said: set[str] = set()
    for value in graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise InvalidGraph(
                f"input '{value.name}' is no tensor of a rank that the model says; export it so"
            )
        shape = []
        for axis, dim in enumerate(kind.shape.dim):
            own = f"{value.name}.{axis}"
            said |= {own, dim.dim_param}
            name = own if own in dimensions or not dim.dim_param else dim.dim_param
            fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            size = fixed if fixed is not None else dimensions.get(name)
            if size is None:
                raise InvalidArgument(
                    f"dimension {axis} of input '{value.name}' ({name}) has no fixed size; say one for "
                    f"'{name}', or give an input of the size you mean"
                )
            if not 0 <= size < MAX_SIZE or (fixed is not None and dimensions.get(own, fixed) != fixed):
                raise InvalidArgument(
                    f"dimension {axis} of input '{value.name}' ({name}) is to be "
                    f"{dimensions.get(own, size):,}; "
                    + (f"the model has it at {fixed:,}" if fixed is not None else "a size is below 2^31")
                )
            shape.append(size)
        form = form_of(helper.make_tensor_type_proto(kind.elem_type, shape))
        if form is None:
            raise InvalidGraph(f"input '{value.name}' is no tensor of numbers")
        found[value.name] = form
    if unknown := sorted(set(dimensions) - said):
        have = ", ".join(sorted(name for name in said if name)) or "none"
        raise InvalidArgument(f"no input has a dimension '{unknown[0]}'; there are {have}")
    return found


class _Binding:
    """The state of it: what is known of each value so far."""

    def __init__(self, model: ModelProto, read: Read | None) -> None:
        self._model = model
        self._read = read
        self._opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
        self._files = {tensor.name: tensor for tensor in model.graph.initializer}
        self._types: dict[str, TypeProto] = {}
        self._values: dict[str, Array] = {}
        # Known, but made by a node that stays unless what it makes is computed away: what follows from
        # vectors of the file alone. A bias that is cast stays a weight; frequencies that meet positions are
        # folded.
        self._soft: set[str] = set()
        self._sized: set[str] = set()
        self._alias: dict[str, str] = {}
        self._nodes: list[NodeProto] = []
        self._why: dict[str, str] = {}
        self._pieces: dict[str, tuple[str, Extent]] = {}
        self._count = 0

    def bound(self, dimensions: Mapping[str, int]) -> BoundGraph:
        graph = self._model.graph
        inputs = _forms(graph, dimensions)
        self._types.update((name, type_of(form)) for name, form in inputs.items())
        for name, tensor in self._files.items():
            self._types[name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            if tensor.data_type in _DISCRETE and prod(tensor.dims) <= _SMALL:
                self._value(name)
        outputs = tuple(value.name for value in graph.output)
        self._outputs = frozenset(outputs)
        queue = deque(graph.node)
        taken = 0
        while queue:
            taken += 1
            if taken > MAX_NODES:
                raise InvalidGraph(f"the model has more than {MAX_NODES:,} nodes (MAX_NODES)")
            queue.extendleft(reversed(self._take(queue.popleft())))
        for name in outputs:
            self._make_output(name, inputs)
        nodes = self._unpacked(_needed(self._nodes, outputs))
        return self._classified(nodes, inputs, outputs)

    def _make_output(self, name: str, inputs: Mapping[str, TensorForm]) -> None:
        """An output that is a constant is made by a node, as any other."""
        if name in inputs or name in self._files:
            raise InvalidGraph(
                f"output '{name}' is an input or a constant by itself; put an Identity before it"
            )
        if name in self._values and not any(name in node.output for node in self._nodes):
            value = self._fresh(name)
            self._known(value, self._values.pop(name), name in self._sized)
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))

    # -- one node

    def _take(self, given: NodeProto) -> list[NodeProto]:
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
            return []
        if self._passes(node):
            target = node.input[0]
            name = node.output[0]
            if name not in self._outputs:
                self._alias[name] = target
                return []
            node = helper.make_node("Identity", [target], [name], name=node.name)
        if node.op_type == "If" and not node.domain:
            decided = self._value(node.input[0])
            if decided is not None and decided.size == 1:
                return self._branch(node, bool(decided.reshape(())))
        if node.op_type in ("Shape", "Size") and self._shape(node):
            return []
        if self._fold(node):
            return []
        instead = lowered(node, Lowering(self._form, self._value, self._fresh, self._opsets))
        if instead is not None:
            for name, array in instead.literals.items():
                self._known(name, array, sized=False)
            for name, array in instead.derived.items():
                self._known(name, array, sized=True)
            return list(instead.nodes)
        self._infer(node)
        self._nodes.append(node)
        return []

    def _passes(self, node: NodeProto) -> bool:
        """Whether it gives its first input on: an Identity, a Dropout that is off."""
        if node.domain:
            return False
        if node.op_type == "Identity":
            return True
        if node.op_type != "Dropout" or (len(node.output) > 1 and node.output[1]):
            return False
        ratio = self._value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        training = self._value(node.input[2]) if len(node.input) > 2 else None
        off = len(node.input) < 3 or (training is not None and not training.any())
        return off or (ratio is not None and not ratio.any())

    def _constant(self, node: NodeProto) -> None:
        found = evaluate(node, (), {"": self._opsets.get("", 21)}, self._model.ir_version)
        if found is None and node.attribute and node.attribute[0].HasField("t"):  # too large to be computed
            found = [np.asarray(numpy_helper.to_array(node.attribute[0].t))]
        if found is None:
            self._why[node.output[0]] = f"{_label(node)} is no constant of numbers"
            return
        self._known(node.output[0], found[0], sized=False)

    def _branch(self, node: NodeProto, taken: bool) -> list[NodeProto]:
        name = "then_branch" if taken else "else_branch"
        branch = GraphProto()
        branch.CopyFrom(next(a.g for a in node.attribute if a.name == name))
        made = {o for inner in branch.node for o in inner.output} | {t.name for t in branch.initializer}
        rename_values(branch, {old: self._fresh(old) for old in sorted(made - {""})})
        for tensor in branch.initializer:
            self._known(tensor.name, np.asarray(numpy_helper.to_array(tensor)), sized=False)
        ends = [
            helper.make_node("Identity", [value.name], [output])
            for value, output in zip(branch.output, node.output, strict=False)
            if output
        ]
        return [*branch.node, *ends]

    def _shape(self, node: NodeProto) -> bool:
        form = self._form(node.input[0])
        if form is None:
            return False
        bounds = {a.name: a.i for a in node.attribute}
        shape = form.shape[bounds.get("start", 0) : bounds.get("end", len(form.shape))]
        value = prod(form.shape) if node.op_type == "Size" else shape
        constant = node.input[0] in self._files or node.input[0] in self._values
        self._known(node.output[0], np.array(value, np.int64), not constant or node.input[0] in self._sized)
        return True

    def _fold(self, node: NodeProto) -> bool:
        """Compute what the node makes, if it follows from what is known; whether the node is gone."""
        names = [name for name in node.input if name]
        if not names and node.op_type not in ("ConstantOfShape", "Range"):
            return False
        if any(name not in self._values and not self._readable(name) for name in names):
            return False
        made = infer_types(node, self._types, self._values, self._opsets, self._model.ir_version)
        forms = [form_of(made[name]) if name in made else None for name in node.output if name]
        if any(form is not None and prod(form.shape) > MAX_COMPUTED for form in forms):
            return False
        inputs = [self._value(name) if name else None for name in node.input]
        if any(array is None for array, name in zip(inputs, node.input, strict=True) if name):
            return False
        elements = sum(array.size for array in inputs if array is not None)
        if elements > (_UNTOLD if None in forms else 4 * MAX_COMPUTED):
            return False
        found = evaluate(node, inputs, self._opsets, self._model.ir_version)
        if found is None:
            return False
        many = [
            name
            for name, array in zip(node.input, inputs, strict=True)
            if array is not None and array.size > 1
        ]
        soft = bool(many) and all(name in self._soft for name in many)
        sized = any(name in self._sized for name in names)
        for name, array in zip((name for name in node.output if name), found, strict=False):
            self._known(name, array, sized)
            if soft:
                self._soft.add(name)
        if soft:
            self._nodes.append(node)
        return True

    def _infer(self, node: NodeProto) -> None:
        types = self._types
        made = infer_types(node, types, self._values, self._opsets, self._model.ir_version)
        for name in node.output:
            if not name:
                continue
            if name in made:
                types[name] = made[name]
            if name not in made or form_of(made[name]) is None:
                self._why[name] = self._reason(node)

    def _reason(self, node: NodeProto) -> str:
        before = [self._why[name] for name in sorted(reads(node)) if name in self._why]
        if before:
            return before[0]
        if node.op_type in ("If", "Loop", "Scan", "SequenceMap"):
            return f"{_label(node)} is decided by data"
        return f"{_label(node)} makes something whose size depends on data, or is not known here"

    # -- what is known

    def _known(self, name: str, array: Array, sized: bool) -> None:
        self._values[name] = array
        self._types[name] = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        if sized:
            self._sized.add(name)

    def _form(self, name: str) -> TensorForm | None:
        found = self._types.get(name)
        return form_of(found) if found is not None else None

    def _readable(self, name: str) -> bool:
        """Whether it is an initializer that may be computed with: whole numbers, and vectors of floats."""
        tensor = self._files.get(name)
        if tensor is None:
            return False
        size = prod(tensor.dims)
        if size <= 1:
            return True
        if tensor.data_type in _DISCRETE:
            return size <= _TABLE
        vector = sum(dim > 1 for dim in tensor.dims) == 1
        return tensor.data_type in _FLOATS and vector and size <= _VECTOR

    def _value(self, name: str) -> Array | None:
        """A value that is known, read from the file where it may be."""
        if name in self._values or not self._readable(name):
            return self._values.get(name)
        tensor = self._files[name]
        external = tensor.data_location == TensorProto.EXTERNAL
        there = not external and (any(getattr(tensor, field) for field in _DATA) or not prod(tensor.dims))
        if not there and self._read is None:
            return None
        array = np.asarray(numpy_helper.to_array(tensor) if there or self._read is None else self._read(name))
        if array.shape != tuple(tensor.dims):
            raise InvalidGraph(f"initializer '{name}' was read with the shape {array.shape}, not its own")
        if tensor.data_type in _FLOATS and array.size > 1:
            self._soft.add(name)
        self._values[name] = array
        return array

    def _fresh(self, like: str) -> str:
        self._count += 1
        return f"{like}~{self._count}"

    # -- the result

    def _unpacked(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes with products taken apart that make things of unlike sizes in one."""

        def is_weight(name: str) -> bool:
            return name in self._files and not self._literal(name)

        done = unpack(nodes, self._outputs, self._form, self._value, is_weight, self._fresh)
        for name, (weight, extent, form) in done.pieces.items():
            self._pieces[name] = (weight, extent)
            self._types[name] = type_of(form)
        for name, form in done.forms.items():
            self._types[name] = type_of(form)
        return done.nodes

    def _literal(self, name: str) -> bool:
        """Whether an initializer is no weight: one number, or a few whole ones."""
        tensor = self._files[name]
        size = prod(tensor.dims)
        return size <= 1 or (tensor.data_type in _DISCRETE and size <= _SMALL)

    def _classified(
        self, nodes: list[NodeProto], inputs: Mapping[str, TensorForm], outputs: tuple[str, ...]
    ) -> BoundGraph:
        made = {name for node in nodes for name in node.output}
        weights: dict[str, str] = {}
        literals: dict[str, Array] = {}
        derived: dict[str, Array] = {}
        specs: dict[str, TensorForm] = dict(inputs)
        unknown: dict[str, str] = {}
        pieces: dict[str, Extent] = {}
        used: dict[str, int] = {}

        def constant(name: str, as_name: str) -> None:
            tensor = self._files.get(name)
            form = self._form(name)
            value = self._value(name) if tensor is None or self._literal(name) else None
            if name in self._pieces:
                weights[as_name], pieces[as_name] = self._pieces[name]
            elif tensor is not None and value is None:
                weights[as_name] = name
            elif value is not None and name not in self._sized and value.size <= _SMALL:
                literals[as_name] = value
            elif value is not None:
                derived[as_name] = value
            if form is not None:
                specs[as_name] = form

        for node in nodes:
            for position, name in enumerate(node.input):
                if not name or name in made or name in inputs:
                    continue
                times = used[name] = used.get(name, 0) + 1
                as_name = name if times == 1 else f"{name}#{times}"
                node.input[position] = as_name
                constant(name, as_name)
            for name in sorted(reads(node) - set(node.input)):
                if name in self._types and name not in made and name not in inputs:
                    constant(name, name)
            for name in node.output:
                form = self._form(name) if name else None
                if form is not None:
                    specs[name] = form
                elif name:
                    unknown[name] = self._why.get(name, self._reason(node))
        return BoundGraph(
            tuple(nodes),
            specs,
            weights,
            literals,
            derived,
            tuple(inputs),
            outputs,
            self._opsets,
            self._model.ir_version,
            pieces,
            unknown,
        )


def _label(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


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
