"""The cut itself: each node is done by every part on its own share, and what must meet in between is a move.

Nodes are taken in order. For each one its rule says the ways it can be cut, each way asks for its operands
in certain forms, and a form that is not there costs bytes: moved through the aggregator, or made anew from
what comes before it where that is less (a mask from the model's own input; keys before grouped heads are
expanded). The cheapest way is taken. What stages cut nothing by, and what no way fits, every part does alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_attention.core.schedule.plan import Crossing, Cut
from edge_attention.core.schedule.schedule import Collective, TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.crossings import ELEMENTWISE, find_crossings
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

__all__ = ["Partitioner"]

MAX_REMADE = 10
"""How many operators in a row are made anew, rather than their result moved."""
SMALL_WEIGHT = 256 << 10
"""Bytes of a weight that a part may need once more to make something anew."""

_HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
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
        "MatMulNBits",
        "MultiHeadAttention",
        "PackedMultiHeadAttention",
        "QLinearConv",
        "QLinearMatMul",
        "QAttention",
        "RNN",
        "Scan",
    }
)
_QUANTISES = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
FLOOR = -256.0
"""What stands for the largest score of a row all of whose keys a finite mask hides from a part.

A mask of -1e9 or less takes the scores with it: such a row is a plain mean of the values, of as many keys as
the part has. Beside -1e9 the logarithm of their number is lost in float32; beside this it is right to 8e-6.
Nothing of such a row is left, e^-100, beside a part that sees a key, as long as that one's lse is above -150.
"""
_HIDDEN, _HIDDEN_HALF = -1e8, -6e4
_SUMS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "Gemm", "Einsum", "MatMulNBits", "ReduceSum"})
_FOLDS = {
    Does.SUM: Collective.SUM,
    Does.MEAN: Collective.SUM,
    Does.MAX: Collective.MAX,
    Does.MIN: Collective.MIN,
}


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


class Partitioner:
    """Cuts one bound graph by stages.

    Args:
        axes: of the graph.
        stage_of: by node, the number of its stage.
    """

    def __init__(self, axes: Axes, stages: Sequence[StageCut], stage_of: Sequence[int]) -> None:
        bound = axes.bound
        self.bound = bound
        self.specs = dict(bound.specs)
        self.literals = dict(bound.literals)
        self.derived = dict(bound.derived)
        self.dims: dict[str, Dims] = dict(axes.dims)
        self.partition = Partition(tuple(stages))
        self._axes = axes
        self._stage_of = stage_of
        self._forms: dict[tuple[int, str], dict[FormState, Form]] = {}
        self._homes: dict[str, Form] = {}
        self._makers = bound.makers
        self._crossings = find_crossings(bound)
        self._fixed = set(axes.static)
        # Partials merge to within rounding; a model that quantises what follows is to answer to the bit.
        if any(node.op_type in _QUANTISES for node in bound.nodes):
            self._crossings.merged.clear()

    def run(self) -> Partition:
        """The whole of it."""
        for number, node in enumerate(self.bound.nodes):
            if not all(name in self._fixed for name in node.output if name):
                self._place(self.partition.stages[self._stage_of[number]], number, node)
        for name in self.bound.outputs:
            self.partition.results[name] = self._result(name)
        return self.partition

    # What a node becomes.

    def _place(self, stage: StageCut, number: int, node: NodeProto) -> None:
        whole = sum(self._price(stage, name, None) for name in _data(node))
        best: Way | None = None
        best_key: tuple[float, ...] = (math.inf,)
        for way in self._ways(stage, number, node):
            asked = sum(self._price(stage, n, s) for n, s in zip(node.input, way.operands, strict=True) if n)
            cost = asked + self._fold_price(stage, node, way)
            if way.does is not Does.CARRY and not self._is_there(stage, node, way):
                continue
            if way.does in _FOLDS and cost > whole and not (node.op_type in _HEAVY and asked < whole):
                continue
            key = (cost, way.does is not Does.CARRY, way.axis not in stage.home, way.factor)
            if cost < math.inf and key < best_key:
                best, best_key = way, key
        if (
            best is not None
            and best.does is Does.CARRY
            and best_key[0] > whole
            and node.op_type not in _HEAVY
        ):
            best = None
        if best is None:
            self._keep(stage, self._operation(stage, number, None))
        elif best.does is Does.RANGE:
            self._quantise(stage, node, best)
        elif best.does is Does.SOFTMAX:
            self._soften(stage, node, best)
        elif best.does in _FOLDS:
            self._sum(stage, number, best)
        else:
            self._keep(stage, self._operation(stage, number, best))

    def _ways(self, stage: StageCut, number: int, node: NodeProto) -> list[Way]:
        """The ways that give what the whole node gives."""
        rule = self._axes.rules[number]
        if not stage.ranges or not can_be_local(node, rule):
            return []
        found = []
        for way in ways_of(node, rule, self._axes.factors[number], frozenset(stage.ranges)):
            match way.does:
                case Does.CARRY:
                    if all(r is not None for r, name in zip(way.results, node.output, strict=True) if name):
                        found.append(way)
                case Does.SUM:
                    if node.op_type in _SUMS:
                        found.append(way)
                case Does.MEAN | Does.MAX | Does.MIN:
                    if node.op_type.startswith("Reduce"):
                        found.append(way)
                case Does.RANGE:
                    if node.op_type == "DynamicQuantizeLinear":
                        found.append(way)
                case Does.SOFTMAX:
                    if stage.crossing is Crossing.MERGE and number in self._crossings.merged:
                        found.append(way)
        return self._across(stage, number, node, found)

    def _across(self, stage: StageCut, number: int, node: NodeProto, ways: list[Way]) -> list[Way]:
        """Of a product that makes scores of tokens by tokens, the ways of the stage's crossing."""
        dim = self._crossings.scores.get(number)
        if dim is None or stage.cut is not Cut.TOKENS:
            return ways
        normalised = len(self.bound.shape(node.output[0])) + dim
        along = [
            w
            for w in ways
            if w.results[0] is not None and w.results[0].dim == normalised and w.axis in stage.home
        ]
        others = [w for w in ways if w not in along]
        if stage.crossing is Crossing.MERGE and along and self._leads_to_merge(node.output[0]):
            return along
        if stage.crossing is Crossing.SWITCH and along:
            heads = [w for w in others if w.axis not in stage.home and w.does is Does.CARRY]
            return heads or others
        return others

    def _leads_to_merge(self, scores: str) -> bool:
        """Whether each softmax that `scores` goes to can be merged."""
        rest, seen, found = [scores], {scores}, False
        while rest:
            name = rest.pop()
            for number, node in enumerate(self.bound.nodes):
                if name not in node.input:
                    continue
                if node.op_type == "Softmax":
                    if number not in self._crossings.merged:
                        return False
                    found = True
                elif node.op_type in ELEMENTWISE or node.op_type in ("Reshape", "Unsqueeze", "Squeeze"):
                    rest += [out for out in node.output if out not in seen]
                    seen |= set(node.output)
                else:
                    return False
        return found

    def _is_there(self, stage: StageCut, node: NodeProto, way: Way) -> bool:
        """Whether an operand is cut as `way` asks already: nothing is cut only to be folded again."""
        return any(
            state is not None
            and name
            and name not in self._fixed
            and state in self._forms.get((stage.number, name), {})
            for name, state in zip(node.input, way.operands, strict=True)
        )

    def _fold_price(self, stage: StageCut, node: NodeProto, way: Way) -> float:
        if way.does not in _FOLDS or self._merging(stage, node, way):
            return 0
        return 2 * len(stage.parts) * sum(self._bytes(name) for name in node.output if name)

    def _merging(self, stage: StageCut, node: NodeProto, way: Way) -> bool:
        """Whether an operand has the lse of a softmax over what `way` contracts."""
        state = way.operands[0]
        form = self._forms.get((stage.number, node.input[0]), {}).get(state)
        return form is not None and bool(form.lse)

    # Forms, and what they cost.

    def _bytes(self, name: str) -> int:
        spec = self.specs[name]
        return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize

    def _price(self, stage: StageCut, name: str, state: FormState, depth: int = 0) -> float:
        return self._find(stage, name, state, depth).bytes

    def _find(self, stage: StageCut, name: str, state: FormState, depth: int = 0) -> _Got:
        have = self._forms.get((stage.number, name), {})
        if state in have:
            return _Got(0, have=have[state])
        if name not in self._makers and name not in self._homes:
            return _Got(0)
        if isinstance(state, SplitBy) and None in have:
            return _Got(0, slice=True)
        best = _NEVER if name in self._fixed else self._moved(stage, name, state)
        if depth < MAX_REMADE and best.bytes > 0 and name in self._makers:
            again = self._remade(stage, name, state, depth + 1)
            if again.bytes < best.bytes or (again.bytes == best.bytes and self._moved_before(name)):
                best = again
        if best.bytes == math.inf and name in self._fixed:
            return _Got(0, whole=True) if state is None else _Got(0, slice=True)
        return best

    def _moved_before(self, name: str) -> bool:
        """Whether it is moved as what it was before it was laid out otherwise, or scaled.

        A product fuses with both, if they are in its segment: keys are moved as their projection gives them.
        """
        node = self.bound.nodes[self._makers[name]]
        if name in self._fixed or node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return True
        scalars = [n for n in node.input if n in self._fixed and math.prod(self.specs[n].shape) == 1]
        return node.op_type in ("Mul", "Div") and len(scalars) == 1

    def _moved(self, stage: StageCut, name: str, state: FormState) -> _Got:
        home = self._homes[name]
        if (home.lse and not isinstance(home.state, Unfolded)) or isinstance(state, Unfolded):
            return _NEVER
        size, many = self._bytes(name), len(stage.parts)
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
        node, rule = self.bound.nodes[number], self._axes.rules[number]
        fixed = name in self._fixed
        if isinstance(state, Unfolded) or (not fixed and (node.op_type in _HEAVY or self._reads_much(node))):
            return _NEVER
        captured = reads(node) - set(node.input)
        if not captured <= self._fixed:
            return _NEVER
        best = _NEVER
        if state is None:
            cost = sum(self._price(stage, n, None, depth) for n in node.input if n)
            best = _Got(cost, whole=True)
        else:
            at = list(node.output).index(name)
            ways = ways_of(node, rule, self._axes.factors[number], frozenset({state.axis}))
            for way in ways if can_be_local(node, rule) else ():
                if way.does is Does.CARRY and way.results[at] == state:
                    pairs = zip(node.input, way.operands, strict=True)
                    cost = sum(self._price(stage, n, s, depth) for n, s in pairs if n)
                    if cost < best.bytes:
                        best = _Got(cost, way=way)
            if best.bytes > 0 and not fixed:
                cost = sum(self._price(stage, n, None, depth) for n in node.input if n)
                if cost < best.bytes:
                    best = _Got(cost, slice=True)
        return best

    def _reads_much(self, node: NodeProto) -> bool:
        return any(name in self._fixed and self._bytes(name) > SMALL_WEIGHT for name in node.input if name)

    def _obtain(self, stage: StageCut, name: str, state: FormState) -> Form:
        """The form, made or moved as is cheapest if it is not there."""
        found = self._find(stage, name, state)
        if found.bytes == math.inf:
            raise AssertionError(f"no way to {name} as {state}")
        if found.have is not None:
            return found.have
        if name not in self._makers and name not in self._homes:
            return self._add(Form(stage.number, name, state, 0, self._source(name), name in self._fixed))
        if found.slice:
            whole = self._obtain(stage, name, None)
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
            return self._finish(operation, [(name, state)])[0]
        if found.moved is not None:
            source = found.moved
            return self._add(Form(stage.number, name, state, source.level + 1, Move(source)))
        operation = self._operation(stage, self._makers[name], found.way)
        return next(form for form in operation.results if form is not None and form.tensor == name)

    def _source(self, name: str) -> FormSource:
        if name in self.bound.weights:
            return FormSource.WEIGHT
        if name in self.literals:
            return FormSource.LITERAL
        return FormSource.DERIVED if name in self.derived else FormSource.FEED

    def _add(self, form: Form) -> Form:
        self._forms.setdefault((form.stage, form.tensor), {})[form.state] = form
        return form

    # Operations.

    def _operation(self, stage: StageCut, number: int, way: Way | None) -> Operation:
        """A node done in the way, its results' forms known to the stage."""
        node = self.bound.nodes[number]
        asked = way.operands if way is not None else (None,) * len(node.input)
        inputs = tuple(
            self._obtain(stage, n, s) if n else None for n, s in zip(node.input, asked, strict=True)
        )
        captured = {n: self._obtain(stage, n, None) for n in sorted(reads(node) - set(node.input))}
        results = way.results if way is not None else (None,) * len(node.output)
        operation = Operation(
            stage.number,
            _level((*inputs, *captured.values())),
            node,
            inputs,
            captured,
            way.axis if way is not None else None,
            self._axes.rules[number],
        )
        forms = self._finish(operation, list(zip(node.output, results, strict=True)))
        softened = next((form.lse for form in inputs if form is not None and form.lse), ())
        if softened and node.op_type == "Reshape":
            softened = self._reshaped_rows(stage, node.output[0], softened)
        for form in forms:
            form.lse = softened
        return operation

    def _reshaped_rows(self, stage: StageCut, weights: str, rows: tuple[Form, ...]) -> tuple[Form, ...]:
        """What goes with weights whose leading dimensions are put otherwise."""
        shape = (*self.specs[weights].shape[:-1], 1)
        name = f"{weights}#rows"
        self.derived[name] = np.array(shape, np.int64)
        self.specs[name], self.dims[name] = TensorForm("int64", (len(shape),)), ((),)
        said = self._add(Form(stage.number, name, None, 0, FormSource.DERIVED, True))
        dims = (*self.dims[weights][:-1], ())
        made = []
        for n, row in enumerate(rows):
            spec = TensorForm(self.specs[row.tensor].dtype, shape)
            state = row.state
            assert isinstance(state, Unfolded)
            made.append(
                self._made(stage, "Reshape", [row, said], f"{weights}#{n}", spec, state, dims, state.axis)
            )
        return tuple(made)

    def _finish(self, operation: Operation, results: Sequence[tuple[str, FormState]]) -> list[Form]:
        """The operation's results become forms of its stage."""
        fixed = operation.fixed
        operation.results = tuple(
            Form(operation.stage, name, state, operation.level, operation, fixed) if name else None
            for name, state in results
        )
        self.partition.operations.append(operation)
        return [self._add(form) for form in operation.results if form is not None]

    def _keep(self, stage: StageCut, operation: Operation) -> None:
        """What the operation gives is where its tensors are at home."""
        for form in operation.results:
            if form is not None:
                self._homes[form.tensor] = form

    def _made(
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
        operation = Operation(stage.number, _level(inputs), node, tuple(inputs), {}, by)
        return self._finish(operation, [(name, state)])[0]

    def _literal(self, stage: StageCut, name: str, value: Array) -> Form:
        self.literals[name] = value
        self.specs[name] = TensorForm(value.dtype.name, value.shape)
        self.dims[name] = ((),) * value.ndim
        self._fixed.add(name)
        return self._add(Form(stage.number, name, None, 0, FormSource.LITERAL, True))

    def _result(self, name: str) -> Form:
        if name in self._homes:
            return self._homes[name]
        stage = self.partition.stages[-1]
        form = self._obtain(stage, name, None)
        node = helper.make_node("Identity", [name], [f"{name}#out"])
        self.specs[f"{name}#out"], self.dims[f"{name}#out"] = self.specs[name], self.dims.get(name, ())
        operation = Operation(stage.number, form.level, node, (form,), {}, None)
        made = self._finish(operation, [(f"{name}#out", None)])[0]
        made.fixed = False
        return made

    # Folds.

    def _sum(self, stage: StageCut, number: int, way: Way) -> None:
        node = self.bound.nodes[number]
        collective = _FOLDS[way.does]
        if self._merging(stage, node, way):
            self._merge(stage, node, way)
            return
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        if bias:
            self._sum_without_bias(stage, node, way, bias)
            return
        operation = self._operation(stage, number, way)
        if way.does is Does.MEAN:
            operation.scaled = Scaled.SHARE
        self._unfold(operation, collective, way.axis)
        self._keep(stage, operation)

    def _unfold(self, operation: Operation, collective: Collective, axis: int) -> None:
        """The operation's results, known as whole so far, are each part's share of a fold."""
        for form in operation.results:
            if form is not None:
                del self._forms[form.stage, form.tensor][form.state]
                form.state = Unfolded(collective, axis)
                self._add(form)

    def _sum_without_bias(self, stage: StageCut, node: NodeProto, way: Way, bias: str) -> None:
        """A Gemm's product is summed over the parts, and its bias added once to the sum."""
        name = node.output[0]
        plain, scale = f"{name}#sum", next((a.f for a in node.attribute if a.name == "beta"), 1.0)
        self.specs[plain], self.dims[plain] = self.specs[name], self.dims[name]
        product = NodeProto()
        product.CopyFrom(node)
        del product.input[2:]
        product.output[0] = plain
        inputs = tuple(self._obtain(stage, n, s) for n, s in zip(product.input, way.operands, strict=False))
        operation = Operation(stage.number, _level(inputs), product, inputs, {}, way.axis)
        self._finish(operation, [(plain, Unfolded(Collective.SUM, way.axis))])
        self._keep(stage, operation)
        total, added = self._obtain(stage, plain, None), self._obtain(stage, bias, None)
        if scale != 1.0:
            factor = self._literal(stage, f"{name}#beta", np.array(scale, self.specs[bias].dtype))
            added = self._made(
                stage, "Mul", [added, factor], f"{name}#bias", self.specs[bias], None, self.dims.get(bias, ())
            )
        form = self._made(stage, "Add", [total, added], name, self.specs[name], None, self.dims[name])
        self._homes[name] = form

    # Softmax over a cut axis.

    def _soften(self, stage: StageCut, node: NodeProto, way: Way) -> None:
        """A softmax over the part's keys, with the logarithm of its sum and the rows that see any key.

        lse = max(s) - log(max(softmax(s))): no pass over the scores that takes their exponential again.
        """
        state = way.operands[0]
        assert state is not None
        scores = self._obtain(stage, node.input[0], state)
        name, spec = node.output[0], self.specs[node.input[0]]
        dims = (*self.dims[node.input[0]][:-1], ())
        row = TensorForm(spec.dtype, (*spec.shape[:-1], 1))
        seen_spec = TensorForm("bool", row.shape)
        operation = Operation(stage.number, scores.level, node, (scores,), {}, way.axis)
        weights = self._finish(operation, [(name, state)])[0]
        self._homes[name] = weights
        axis = way.axis

        def made(
            kind: str, inputs: Sequence[Form], what: str, spec: TensorForm = row, **attributes: int
        ) -> Form:
            return self._made(
                stage,
                kind,
                inputs,
                f"{name}#{what}",
                spec,
                Unfolded(Collective.MERGE, axis),
                dims,
                axis,
                **attributes,
            )

        def number(what: str, value: float, dtype: str = "float32") -> Form:
            return self._literal(stage, f"{name}#{what}", np.array(value, dtype))

        top = self._most(stage, scores, f"{name}#top", row, dims, axis)
        peak = self._most(stage, weights, f"{name}#peak", row, dims, axis)
        seen = made("Not", [made("IsInf", [top], "unseen", seen_spec, detect_positive=0)], "seen", seen_spec)
        least = _HIDDEN if spec.dtype == "float32" else _HIDDEN_HALF
        hidden = made("Less", [top, number("least", least, spec.dtype)], "hidden", seen_spec)
        if spec.dtype != "float32":
            row = TensorForm("float32", row.shape)
            top = made("Cast", [top], "top32", row, to=TensorProto.FLOAT)
            peak = made("Cast", [peak], "peak32", row, to=TensorProto.FLOAT)
        base = made("Where", [hidden, number("floor", FLOOR), top], "base", row)
        full = made("Sub", [base, made("Log", [peak], "log", row)], "lse_seen", row)
        lse = made("Where", [seen, full, number("nothing", -np.inf)], "lse", row)
        weights.lse = (lse, seen)

    def _most(self, stage: StageCut, of: Form, name: str, spec: TensorForm, dims: Dims, axis: int) -> Form:
        state = Unfolded(Collective.MERGE, axis)
        if self._opset() < 18:
            self.specs[name], self.dims[name] = spec, dims
            node = helper.make_node("ReduceMax", [of.tensor], [name], axes=[-1], keepdims=1)
            operation = Operation(stage.number, of.level, node, (of,), {}, axis)
            return self._finish(operation, [(name, state)])[0]
        last = self._literal(stage, f"{name}#axes", np.array([-1], np.int64))
        return self._made(stage, "ReduceMax", [of, last], name, spec, state, dims, axis, keepdims=1)

    def _opset(self) -> int:
        return self.bound.opsets.get("", self.bound.opsets.get("ai.onnx", 13))

    def _merge(self, stage: StageCut, node: NodeProto, way: Way) -> None:
        """The product of weights over a part's keys and their values: a partial, with its lse."""
        weights = self._obtain(stage, node.input[0], way.operands[0])
        values = self._obtain(stage, node.input[1], way.operands[1])
        lse, seen = weights.lse
        name = node.output[0]
        spec, dims, state = self.specs[name], self.dims[name], Unfolded(Collective.MERGE, way.axis)
        product = NodeProto()
        product.CopyFrom(node)
        product.output[0] = f"{name}#raw"
        self.specs[f"{name}#raw"], self.dims[f"{name}#raw"] = spec, dims
        operation = Operation(
            stage.number, _level((weights, values)), product, (weights, values), {}, way.axis
        )
        raw = self._finish(operation, [(f"{name}#raw", state)])[0]
        zero = self._literal(stage, f"{name}#zero", np.array(0, spec.dtype))
        form = self._made(stage, "Where", [seen, raw, zero], name, spec, state, dims, way.axis)
        form.lse = (lse,)
        self._homes[name] = form

    # int8.

    def _quantise(self, stage: StageCut, node: NodeProto, way: Way) -> None:
        """Quantised by the least and the most of all parts: the same numbers as of the whole, to the bit."""
        state = way.operands[0]
        assert state is not None
        data = self._obtain(stage, node.input[0], state)
        name, scalar, one = node.output[0], TensorForm("float32", ()), TensorForm("float32", (1,))
        ends = []
        for kind, collective in (("ReduceMin", Collective.MIN), ("ReduceMax", Collective.MAX)):
            end = f"{name}#{kind}"
            form = self._made(
                stage, kind, [data], end, scalar, Unfolded(collective, way.axis), (), way.axis, keepdims=0
            )
            self._homes[end] = form
            shape = self._literal(stage, f"{end}#shape", np.array([1], np.int64))
            ends.append(
                self._made(
                    stage, "Reshape", [self._obtain(stage, end, None), shape], f"{end}#1", one, None, ((),)
                )
            )
        both = self._made(
            stage, "Concat", ends, f"{name}#ends", TensorForm("float32", (2,)), None, ((),), axis=0
        )
        made = NodeProto()
        made.CopyFrom(node)
        del made.input[:], made.output[:]
        names = [f"{name}#levels", *(o or f"{name}#{n}" for n, o in enumerate(node.output[1:3]))]
        made.input.append(both.tensor)
        made.output.extend(names)
        self.specs[names[0]], self.dims[names[0]] = TensorForm("uint8", (2,)), ((),)
        for extra, dtype in zip(names[1:], ("float32", "uint8"), strict=True):
            self.specs.setdefault(extra, TensorForm(dtype, ()))
            self.dims.setdefault(extra, ())
        operation = Operation(stage.number, both.level, made, (both,), {}, None)
        self._finish(operation, [(one_name, None) for one_name in names])
        self._keep(stage, operation)
        steps = [form for form in operation.results[1:] if form is not None]
        result = self._made(
            stage, "QuantizeLinear", [data, *steps], name, self.specs[name], state, self.dims[name], way.axis
        )
        self._homes[name] = result


def _data(node: NodeProto) -> list[str]:
    return [name for name in node.input if name]


def _level(forms: Sequence[Form | None]) -> int:
    return max((form.level for form in forms if form is not None and not form.fixed), default=0)
