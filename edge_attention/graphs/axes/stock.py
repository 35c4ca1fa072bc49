"""The forms of tensors as they come to be while a model is cut, and what a form costs that is not there.

A form is taken as it is, sliced from the whole, moved through the aggregator, or made anew from what comes
before it: whatever is least to move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.schedule import Collective, TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.forms import (
    Form,
    FormSource,
    FormState,
    Move,
    Operation,
    Partition,
    Scaled,
    SplitBy,
    StageCut,
    Unfolded,
)
from edge_attention.graphs.axes.localise import can_be_local
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.ways import Dims, Way, ways_of
from edge_attention.graphs.reading.needed import reads

__all__ = ["HEAVY", "FormStock", "level_of", "size_depends"]

MAX_REMADE = 10
"""How many operators in a row are made anew, rather than their result moved."""
SMALL_WEIGHT = 256 << 10
"""Bytes of a weight that a part may need once more to make something anew."""

HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "FusedConv",
        "DynamicQuantizeMatMul",
        "Einsum",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "If",
        "LSTM",
        "Loop",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulBnb4",
        "MatMulNBits",
        "MultiHeadAttention",
        "PackedMultiHeadAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QAttention",
        "RNN",
        "Scan",
    }
)
"""Operators that are not done twice to save a move."""


@dataclass(frozen=True)
class _Got:
    """How a form comes to be, and the bytes that it costs."""

    bytes: float
    have: Form | None = None
    slice: bool = False
    moved: Form | None = None
    way: Way | None = None
    whole: bool = False


_NEVER = _Got(math.inf)


class FormStock:
    """What is known while a graph is cut.

    Attributes:
        specs, literals, derived, dims: as of the bound graph and its axes, with what the cut makes.
        fixed: tensors that follow from weights and constants alone.
        homes: tensor -> the form that the node which makes it gives.
        partials: the lse of each partial so far.
        partition: what has been decided so far.
    """

    def __init__(self, axes: Axes, stages: Sequence[StageCut]) -> None:
        bound = axes.bound
        self.axes, self.bound = axes, bound
        self.specs = dict(bound.specs)
        self.literals = dict(bound.literals)
        self.derived = dict(bound.derived)
        self.dims: dict[str, Dims] = dict(axes.dims)
        self.fixed = set(axes.static)
        self.homes: dict[str, Form] = {}
        self.partials: set[Form] = set()
        self.partition = Partition(tuple(stages))
        self._forms: dict[tuple[int, str], dict[FormState, Form]] = {}
        self._makers = bound.makers
        self._found: dict[tuple[int, str, FormState], tuple[int, _Got]] = {}

    def form(self, stage: StageCut, name: str, state: FormState) -> Form | None:
        """The form, if it is there."""
        return self._forms.get((stage.number, name), {}).get(state)

    def nbytes(self, name: str) -> int:
        """Of the whole tensor."""
        spec = self.specs[name]
        return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize

    def opset(self) -> int:
        return self.bound.opsets.get("", self.bound.opsets.get("ai.onnx", 13))

    # What a form costs

    def price(self, stage: StageCut, name: str, state: FormState, depth: int = 0) -> float:
        """Bytes that pass the aggregator, both ways, for a stage to have the form; infinite: it cannot."""
        return self._find(stage, name, state, depth).bytes

    def _find(self, stage: StageCut, name: str, state: FormState, depth: int = 0) -> _Got:
        # What was found holds until there is another form; with fewer operators left to make anew, too.
        key = (stage.number, name, state)
        known = self._found.get(key)
        if known is None or known[0] > depth:
            known = self._found[key] = (depth, self._search(stage, name, state, depth))
        return known[1]

    def _search(self, stage: StageCut, name: str, state: FormState, depth: int) -> _Got:
        have = self._forms.get((stage.number, name), {})
        if state in have:
            return _Got(0, have=have[state])
        if name not in self._makers and name not in self.homes:
            return _Got(0)
        if isinstance(state, SplitBy) and None in have:
            return _Got(0, slice=True)
        best = _NEVER if name in self.fixed else self._moved(stage, name, state)
        if depth < MAX_REMADE and best.bytes > 0 and name in self._makers:
            again = self._remade(stage, name, state, depth + 1)
            if again.bytes < best.bytes or (again.bytes == best.bytes and self._moved_before(name)):
                best = again
        if best.bytes == math.inf and name in self.fixed:
            return _Got(0, whole=True) if state is None else _Got(0, slice=True)
        return best

    def _moved_before(self, name: str) -> bool:
        """Whether it is moved as what it was before it was laid out otherwise, or scaled.

        A product fuses with both, if they are in its segment: keys are moved as their projection gives them.
        """
        node = self.bound.nodes[self._makers[name]]
        if name in self.fixed or node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return True
        scalars = [n for n in node.input if n in self.fixed and math.prod(self.specs[n].shape) == 1]
        return node.op_type in ("Mul", "Div") and len(scalars) == 1

    def _moved(self, stage: StageCut, name: str, state: FormState) -> _Got:
        home = self.homes[name]
        if name in self.bound.unknown:  # it stays where it is
            here = home.stage == stage.number and home.state is None and state is None
            return _Got(0, have=home) if here else _NEVER
        if (home.lse and not isinstance(home.state, Unfolded)) or isinstance(state, Unfolded):
            return _NEVER
        size, many = self.nbytes(name), len(stage.parts)
        down = size * (many if state is None else 1)
        up = size * (len(self.partition.stages[home.stage].parts) if isinstance(home.state, Unfolded) else 1)
        if home.stage == stage.number:
            if isinstance(home.state, SplitBy) and isinstance(state, SplitBy):
                return _Got(2 * size * (many - 1) / many, moved=home)
            if home.state is None:  # only of the same stage: every part has it
                return _Got(0, have=home)
        return _Got(up + down, moved=home)

    def _remade(self, stage: StageCut, name: str, state: FormState, depth: int) -> _Got:
        """Made once more by the node that makes it, of forms that are less to move."""
        number = self._makers[name]
        node, rule = self.bound.nodes[number], self.axes.rules[number]
        fixed = name in self.fixed
        if isinstance(state, Unfolded) or (not fixed and (node.op_type in HEAVY or self._reads_much(node))):
            return _NEVER
        captured = reads(node) - set(node.input)
        if not captured <= self.fixed:
            return _NEVER
        best = _NEVER
        if state is None:
            cost = sum(self.price(stage, n, None, depth) for n in node.input if n)
            best = _Got(cost, whole=True)
        else:
            at = list(node.output).index(name)
            ways = ways_of(node, rule, self.axes.factors[number], frozenset({state.axis}))
            for way in ways if can_be_local(node, rule) else ():
                if way.does is Does.CARRY and way.results[at] == state:
                    pairs = zip(node.input, way.operands, strict=True)
                    cost = sum(self.price(stage, n, s, depth) for n, s in pairs if n)
                    if cost < best.bytes:
                        best = _Got(cost, way=way)
            if best.bytes > 0 and not fixed:
                cost = sum(self.price(stage, n, None, depth) for n in node.input if n)
                if cost < best.bytes:
                    best = _Got(cost, slice=True)
        return best

    def _reads_much(self, node: NodeProto) -> bool:
        return any(name in self.fixed and self.nbytes(name) > SMALL_WEIGHT for name in node.input if name)

    def obtain(self, stage: StageCut, name: str, state: FormState) -> Form:
        """The form, made or moved as is cheapest if it is not there.

        Raises:
            InvalidArgument: it would have to pass, and its size depends on data.
        """
        found = self._find(stage, name, state)
        if found.bytes == math.inf:
            if name in self.bound.unknown:
                raise size_depends(name, self.bound.unknown[name])
            raise AssertionError(f"no way to {name} as {state}")
        if found.have is not None:
            return found.have
        if name not in self._makers and name not in self.homes:
            return self._add(Form(stage.number, name, state, 0, self._source(name), name in self.fixed))
        if found.slice:
            whole = self.obtain(stage, name, None)
            node = helper.make_node("Slice", [name], [name])
            operation = Operation(
                stage.number,
                whole.level,
                node,
                (whole,),
                {},
                state.axis if state else None,
                scaled=Scaled.SLICE,
            )
            return self.finish(operation, [(name, state)])[0]
        if found.moved is not None:
            source = found.moved
            return self._add(Form(stage.number, name, state, source.level + 1, Move(source)))
        operation = self.operation(stage, self._makers[name], found.way)
        return next(form for form in operation.results if form is not None and form.tensor == name)

    def _source(self, name: str) -> FormSource:
        if name in self.bound.weights:
            return FormSource.WEIGHT
        if name in self.literals:
            return FormSource.LITERAL
        return FormSource.DERIVED if name in self.derived else FormSource.FEED

    def _add(self, form: Form) -> Form:
        self._found.clear()
        self._forms.setdefault((form.stage, form.tensor), {})[form.state] = form
        return form

    # Operations

    def operation(self, stage: StageCut, number: int, way: Way | None) -> Operation:
        """A node done in the way, its results' forms known to the stage."""
        node = self.bound.nodes[number]
        asked = way.operands if way is not None else (None,) * len(node.input)
        inputs = tuple(
            self.obtain(stage, n, s) if n else None for n, s in zip(node.input, asked, strict=True)
        )
        # Of what graphs inside read, names of their own are none of the outside.
        own = {*node.input, *node.output}  # an If's branch may call what it gives as the If does
        outside = {n for n in reads(node) - own if n in self.specs or n in self.bound.unknown}
        captured = {n: self.obtain(stage, n, None) for n in sorted(outside)}
        results = way.results if way is not None else (None,) * len(node.output)
        operation = Operation(
            stage.number,
            level_of((*inputs, *captured.values())),
            node,
            inputs,
            captured,
            way.axis if way is not None else None,
            self.axes.rules[number],
        )
        self.finish(operation, list(zip(node.output, results, strict=True)))
        return operation

    def finish(self, operation: Operation, results: Sequence[tuple[str, FormState]]) -> list[Form]:
        """The operation's results become forms of its stage."""
        fixed = operation.fixed
        operation.results = tuple(
            Form(operation.stage, name, state, operation.level, operation, fixed) if name else None
            for name, state in results
        )
        self.partition.operations.append(operation)
        return [self._add(form) for form in operation.results if form is not None]

    def settle(self, operation: Operation) -> None:
        """What the operation gives is where its tensors are at home."""
        for form in operation.results:
            if form is not None:
                self.homes[form.tensor] = form

    def made(
        self,
        stage: StageCut,
        kind: str,
        inputs: Sequence[Form],
        name: str,
        spec: TensorForm,
        state: FormState,
        dims: Dims,
        by: int | None = None,
        **attributes: Any,
    ) -> Form:
        """The one result of a node made here."""
        self.specs[name], self.dims[name] = spec, dims
        node = helper.make_node(kind, [form.tensor for form in inputs], [name], **attributes)
        operation = Operation(stage.number, level_of(inputs), node, tuple(inputs), {}, by)
        return self.finish(operation, [(name, state)])[0]

    def constant(self, stage: StageCut, name: str) -> Form:
        """A constant in `derived` that the cut has put there."""
        self.fixed.add(name)
        return self._add(Form(stage.number, name, None, 0, FormSource.DERIVED, True))

    def literal(self, stage: StageCut, name: str, value: Array) -> Form:
        """A constant made here, the same for all lengths."""
        self.literals[name] = value
        self.specs[name] = TensorForm(value.dtype.name, value.shape)
        self.dims[name] = ((),) * value.ndim
        self.fixed.add(name)
        return self._add(Form(stage.number, name, None, 0, FormSource.LITERAL, True))

    def unfold(self, operation: Operation, collective: Collective, axis: int) -> None:
        """The operation's results, known as whole so far, are each part's share of a fold."""
        for form in operation.results:
            if form is not None:
                del self._forms[form.stage, form.tensor][form.state]
                form.state = Unfolded(collective, axis)
                self._add(form)


def size_depends(name: str, why: str) -> InvalidArgument:
    """The error of a tensor that would have to pass, and whose size nobody knows before."""
    return InvalidArgument(
        f"the size of '{name}' depends on data ({why}), so it cannot pass from one part to another: "
        "replicate the model, or cut it by layers elsewhere"
    )


def level_of(forms: Sequence[Form | None]) -> int:
    """The first level at which all of them are there; what is fixed is there always."""
    return max((form.level for form in forms if form is not None and not form.fixed), default=0)
