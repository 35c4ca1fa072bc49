"""The graph of one segment: what a part does between two meetings, written as ONNX.

Names within it are by order alone (`x0`, `w0`, `c0`, `t0`, `y0`), so that layers alike give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.schedule.extents import AxisSpan, Extent, take
from edge_attention.core.schedule.schedule import (
    Contributed,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    TensorForm,
    Weight,
)
from edge_attention.core.schedule.schedule import Source as InputSource
from edge_attention.core.tensors import MAX_RANK, Array
from edge_attention.graphs.axes.emission import Emission, form_of
from edge_attention.graphs.axes.forms import (
    Form,
    FormSource,
    Move,
    Operation,
    Scaled,
    SplitBy,
    Unfolded,
)
from edge_attention.graphs.axes.localise import LocalisedNode, Sizes, localised
from edge_attention.graphs.axes.needs import PartNeeds, own_piece, span_of
from edge_attention.graphs.lookups import padding_mark
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import made_in, rename_values, serialize
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["SegmentGraph"]

_IR = 4
"""The version from which on a constant need not be an input, too: files are older, segments are not."""


@dataclass
class SegmentGraph:
    """One part's segment of one level, while it is written."""

    all: Emission
    part: int
    needs: PartNeeds
    level: int
    nodes: list[NodeProto] = field(default_factory=list)
    names: dict[Form, str] = field(default_factory=dict)
    inputs: dict[str, InputSource] = field(default_factory=dict)
    infos: list[ValueInfoProto] = field(default_factory=list)
    sources: dict[InputSource, str] = field(default_factory=dict)
    literals: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    tables: dict[str, NodeProto] = field(default_factory=dict)
    """By name of its result: what makes a shared table of its weight."""
    initializers: list[TensorProto] = field(default_factory=list)
    made: int = 0

    def built(self, operations: Sequence[Operation]) -> ModelSegment:
        for operation in operations:
            self._operation(operation)
        outputs: dict[str, str] = {}
        """Value in the segment -> its name as an output."""
        kept: dict[str, str] = {}
        contributed: list[Contributed] = []
        specs: list[TensorForm] = []

        def output(value: str, spec: TensorForm) -> str:
            if value in self.inputs:
                value = self._node("Identity", [value])
            if value not in outputs:
                outputs[value] = f"y{len(outputs)}"
                specs.append(spec)
            return outputs[value]

        mine = {f: n for f, n in self.names.items() if self._is_new(f)}
        for form, name in mine.items():
            leaves = self.needs.uses[form][1] > self.level or form in self.needs.contributes
            spec = self.all.spec(form.tensor) if leaves else TensorForm("", ())
            for extent in self.needs.contributes.get(form, ()) if self._contributes_now(form) else ():
                own = self.all.extent(form, self.part)
                value = name
                for span in extent[1:]:
                    value = self._sliced(value, self.all.shape(form, self.part), span)
                assert not own or extent[:1] == own
                contributed.append(Contributed(output(value, spec), self.all.boundary(form), extent))
                if isinstance(form.state, Unfolded) and form.lse:
                    lse = form.lse[0]
                    value = output(self.names[lse], self.all.specs[lse.tensor])
                    contributed.append(Contributed(value, self.all.boundary(lse)))
            if self.needs.uses[form][1] > self.level:
                kept[output(name, spec)] = self.all.kept.setdefault(form, f"k{len(self.all.kept)}")
        graph = self.all.graph(serialize(self._model(outputs, specs)))
        return ModelSegment(self.part, graph, dict(self.inputs), kept, tuple(contributed))

    def _is_new(self, form: Form) -> bool:
        """Whether the form came to be in this segment, and is more than a step on the way."""
        if form.fixed or form not in self.needs.uses:
            return False
        if isinstance(form.origin, Operation):
            return self.needs.levels.get(form.origin) == self.level
        return isinstance(form.origin, Move) and self.needs.uses[form][0] == self.level

    def _contributes_now(self, form: Form) -> bool:
        return isinstance(form.origin, Operation)

    # Values

    def value(self, form: Form) -> str:
        """The name of a form in the segment."""
        if form not in self.names:
            self.names[form] = self._brought(form)
        return self.names[form]

    def _brought(self, form: Form) -> str:
        extent = self.all.extent(form, self.part)
        spec = self.all.specs[form.tensor]
        match form.origin:
            case FormSource.FEED:
                return self._input("x", ModelInput(form.tensor, extent), spec, form)
            case FormSource.WEIGHT:
                return self._input("w", self._weight(form.tensor, extent), spec, form)
            case FormSource.LITERAL if not extent:
                return self._literal(self.all.literals[form.tensor])
            case FormSource.LITERAL | FormSource.DERIVED:
                whole = self.all.literals.get(form.tensor)
                value = self.all.derived[form.tensor] if whole is None else whole
                if value.size == 1 and value.dtype.kind == "f":  # a scale: fusions need to see it
                    return self._literal(value)
                return self._constant(take(value, extent), form)
            case Operation() if form.fixed:
                self._operation(form.origin)
                return self.names[form]
            case Move() if self.needs.uses[form][0] == self.level:
                return self._assembled(form, form.origin.source)
            case _:
                return self._input("x", Kept(self.all.kept[form]), spec, form)

    def _weight(self, tensor: str, extent: Extent) -> Weight:
        piece = self.all.bound.piece(tensor)
        return Weight(self.all.bound.weights[tensor], within(piece, extent))

    def _input(self, letter: str, source: InputSource, spec: TensorForm, form: Form | None = None) -> str:
        """An input of the graph; `form`: what it is, where it is all of a form."""
        if source not in self.sources:
            name = f"{letter}{sum(one.startswith(letter) for one in self.inputs)}"
            self.sources[source] = name
            self.inputs[name] = source
            lengths = self.all.lengths(form, self.part) if form is not None else [None] * len(spec.shape)
            # Lengths have no names: whether ONNX Runtime knew two of them to be equal, and fused (it does so
            # with an addition and a norm behind it), would depend on where the model is cut, and with it the
            # last bits of what is computed.
            sizes = [size if isinstance(size, int) else None for size in lengths]
            self.infos.append(_info(name, spec, sizes))
        return self.sources[source]

    def _constant(self, value: Array, form: Form | None = None) -> str:
        source, spec = self.all.constant(value), form_of(value)
        shape = value.ndim == 1 and value.dtype.kind == "i" and value.size <= MAX_RANK
        if shape and source not in self.sources:
            name = self._input("c", source, spec)
            self.infos[-1] = _info(name, spec, [value.size])  # a shape: its rank is known
        return self._input("c", source, spec, form)

    def _literal(self, value: Array) -> str:
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self.literals:
            self.literals[key] = f"l{len(self.literals)}"
            self.initializers.append(numpy_helper.from_array(np.array(value, order="C"), self.literals[key]))
        return self.literals[key]

    def _assembled(self, form: Form, source: Form) -> str:
        """What the part has of the form itself, and what it is sent of it."""
        stage = self.all.partition.stages[form.stage]
        boundary, spec = self.all.boundary(source), self.all.specs[form.tensor]
        target = self.all.extent(form, self.part)
        state = source.state
        mixed = (
            source.stage == form.stage
            and isinstance(state, SplitBy)
            and own_piece(self.all.partition.stages, source, self.part)
            and all(span.axis != state.dim for span in target)
        )
        if not mixed:
            return self._input("x", Delivery(boundary, target), spec, form)
        assert isinstance(state, SplitBy)
        start, stop = stage.range_of(state.axis, self.part)
        whole = span_of(self.all.dims, form.tensor, state, 0, 0)
        pieces: list[tuple[str, int]] = []
        for first, last in ((0, start), (start, stop), (stop, whole.size)):
            if first == last:
                continue
            span = span_of(self.all.dims, form.tensor, state, first, last)
            if first == start:
                value = self.value(source)
                for other in target:
                    value = self._sliced(value, self.all.shape(source, self.part), other)
            else:
                extent = tuple(sorted((span, *target), key=lambda s: s.axis))
                value = self._input("x", Delivery(boundary, extent), spec)
            pieces.append((value, last - first))
        if len(pieces) == 1:
            return pieces[0][0]
        if whole.outer == 1:
            return self._node("Concat", [value for value, _ in pieces], axis=state.dim)
        shape = list(self.all.shape(form, self.part))
        before, after = shape[: state.dim], shape[state.dim + 1 :]
        apart = []
        for value, count in pieces:
            parted = self._constant(_ints([*before, whole.outer, count * whole.inner, *after]))
            apart.append(self._node("Reshape", [value, parted]))
        joined = self._node("Concat", apart, axis=state.dim + 1)
        return self._node("Reshape", [joined, self._constant(_ints(shape))])

    def _sliced(self, value: str, shape: Sequence[int], span: AxisSpan) -> str:
        """A range of an axis of what the part has whole in that axis."""
        if (span.start, span.stop) == (0, span.size):
            return value
        before, after = list(shape[: span.axis]), list(shape[span.axis + 1 :])
        axis = span.axis
        if span.outer > 1:
            parted = [*before, span.outer, span.size * span.inner, *after]
            value, axis = self._node("Reshape", [value, self._constant(_ints(parted))]), axis + 1
        bounds = [self._constant(_ints([edge * span.inner])) for edge in (span.start, span.stop)]
        value = self._node("Slice", [value, *bounds, self._literal(_ints([axis]))])
        if span.outer > 1:
            joined = [*before, span.elements, *after]
            value = self._node("Reshape", [value, self._constant(_ints(joined))])
        return value

    # Nodes

    def _fresh(self) -> str:
        self.made += 1
        return f"t{self.made - 1}"

    def _node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = self._fresh()
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _operation(self, operation: Operation) -> None:
        if operation.scaled is Scaled.SLICE:
            (form,), result = operation.inputs, operation.results[0]
            assert form is not None
            assert result is not None
            (span,) = self.all.extent(result, self.part)
            self.names[result] = self._sliced(self.value(form), self.all.specs[form.tensor].shape, span)
            return
        local = LocalisedNode(operation.node)
        known = all(f is None or f.tensor in self.all.specs for f in (*operation.inputs, *operation.results))
        if operation.rule is not None and known:
            sizes, opset = self._sizes(operation), self.all.opsets.get("", 1)
            local = localised(operation.node, operation.rule, sizes, self.all.literals_or_derived, opset)
        node = local.node
        copy = NodeProto()
        copy.op_type, copy.domain = node.op_type, node.domain
        copy.name = padding_mark(node)
        copy.attribute.extend(node.attribute)
        for position, _ in enumerate(node.input):
            form = operation.inputs[position] if position < len(operation.inputs) else None
            if position in local.constants:
                copy.input.append(self._constant(local.constants[position]))
            elif position in local.literals:
                copy.input.append(self._literal(local.literals[position]))
            else:
                copy.input.append(self.value(form) if form is not None else "")
        renamed = {name: self.value(form) for name, form in operation.captured.items()}
        for inner in graphs_in(copy):
            # Their own names, too: one may be what something is called in the segment.
            own = {name: self._fresh() for name in made_in(inner) if name not in renamed}
            rename_values(inner, renamed | own)
        for result in operation.results:
            name = self._fresh() if result is not None else ""
            copy.output.append(name)
            if result is not None:
                self.names[result] = name
        self._keep_table(operation, copy)
        if self._is_residual(operation, copy):
            copy.op_type = "Sum"
        self.nodes.append(copy)
        if operation.scaled is Scaled.SHARE:
            self._shared(operation)

    def _is_residual(self, operation: Operation, node: NodeProto) -> bool:
        """Whether it adds two float32 that were computed, of one shape, for a norm: a Sum does the same, to
        the bit.

        ONNX Runtime fuses an addition with the norm behind it where it knows shapes, and then rounds
        otherwise than for the whole file, whose lengths are open; on CPUs that takes many times as long, too.
        """
        first, *others = operation.inputs
        if node.op_type != "Add" or node.domain or len(others) != 1 or first is None or others[0] is None:
            return False
        pair = (first, others[0])
        return operation.node.output[0] in self.all.normed and (
            not any(form.fixed or form.tensor not in self.all.specs for form in pair)
            and all(self.all.specs[form.tensor].dtype == "float32" for form in pair)
            and self.all.shape(first, self.part) == self.all.shape(others[0], self.part)
        )

    def _keep_table(self, operation: Operation, copy: NodeProto) -> None:
        """Of a shared table floats are made, as in the whole model: its scale is given when it runs.

        Its transpose is made of the int8, which ONNX Runtime does once, when it loads the segment.
        """
        if operation.node.output[0] in self.all.shared_tables:
            value = self.all.literals_or_derived(operation.node.input[1])
            assert value is not None
            copy.input[1] = self._constant(value)
            self.tables[copy.output[0]] = copy
        elif copy.op_type == "Transpose" and copy.input[0] in self.tables:
            table = self.tables[copy.input[0]]
            turned = self._fresh()
            self.nodes.append(helper.make_node("Transpose", [table.input[0]], [turned]))
            self.nodes[-1].attribute.extend(copy.attribute)
            result = copy.output[0]
            copy.CopyFrom(table)
            copy.input[0], copy.output[0] = turned, result

    def _shared(self, operation: Operation) -> None:
        """A mean of the part's range, weighted by its share of the axis."""
        assert operation.axis is not None
        stage = self.all.partition.stages[operation.stage]
        start, stop = stage.range_of(operation.axis, self.part)
        form = next(f for f in operation.inputs if f is not None and isinstance(f.state, SplitBy))
        assert isinstance(form.state, SplitBy)
        size = span_of(self.all.dims, form.tensor, form.state, 0, 0).size
        for result in operation.results:
            if result is not None:
                dtype = self.all.specs[result.tensor].dtype
                share = self._constant(np.array((stop - start) / size, dtype))
                self.names[result] = self._node("Mul", [self.names[result], share])

    def _sizes(self, operation: Operation) -> Sizes:
        specs = self.all.specs
        first, result = operation.inputs[0] if operation.inputs else None, operation.results[0]
        before = self.all.lengths(first, self.part) if first is not None else ()
        after = self.all.lengths(result, self.part) if result is not None else ()
        spans = [span for f in operation.results if f is not None for span in self.all.extent(f, self.part)]
        return Sizes(
            [self.all.shape(f, self.part) if f is not None else None for f in operation.inputs],
            [self.all.shape(f, self.part) if f is not None else None for f in operation.results],
            [specs[f.tensor].shape if f is not None else None for f in operation.inputs],
            [specs[f.tensor].shape if f is not None else None for f in operation.results],
            next((s.start * s.inner if s.outer == 1 else None for s in spans), 0),
            [size if isinstance(size, int) else None for size in after],
            [n < len(before) and one == before[n] for n, one in enumerate(after)],
        )

    def _model(self, outputs: Mapping[str, str], specs: Sequence[TensorForm]) -> ModelProto:
        for node in self.nodes:
            for field_ in (node.input, node.output):
                for position, name in enumerate(field_):
                    field_[position] = outputs.get(name, name)
            for inner in graphs_in(node):
                rename_values(inner, outputs)
        graph = helper.make_graph(
            self.nodes,
            "segment",
            self.infos,
            [
                _info(name, spec, [None] * len(spec.shape))
                for name, spec in zip(outputs.values(), specs, strict=True)
            ],
            self.initializers,
        )
        used = {node.domain for node in self.nodes}
        opsets = [
            helper.make_opsetid(domain, version)
            for domain, version in sorted(self.all.opsets.items())
            if domain in used or not domain
        ]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=max(min(self.all.bound.ir_version, IR_VERSION), _IR)
        )


def within(piece: Extent, extent: Extent) -> Extent:
    """An extent of what `piece` takes of a tensor, as an extent of the tensor: its span has `outer` 1.

    Raises ValueError where it is in more places of the axis than a span can say.
    """
    spans = {span.axis: span for span in extent}
    for span in piece:
        inner = spans.get(span.axis)
        offset, length, size = span.start * span.inner, span.elements, span.size * span.inner
        if inner is None:
            spans[span.axis] = span
            continue
        if inner.outer != 1:
            raise ValueError(f"{inner} of {span} is no range")
        assert inner.size * inner.inner == length
        # In elements: what is packed need not be a multiple of what is inside one of its pieces.
        first, last = offset + inner.start * inner.inner, offset + inner.stop * inner.inner
        spans[span.axis] = AxisSpan(span.axis, first, last, size)
    return tuple(spans[axis] for axis in sorted(spans))


def _info(name: str, spec: TensorForm, dims: Sequence[int | None]) -> ValueInfoProto:
    """Type and rank, and the sizes that are the same for all lengths."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), dims)


def _ints(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)
