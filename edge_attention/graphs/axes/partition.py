"""The cut itself: each node is done by every part on its own share, and what must meet in between is a move.

Nodes are taken in order. For each one its rule says the ways it can be cut, each way asks for its operands
in certain forms, and a form that is not there costs bytes: moved through the aggregator, or made anew from
what comes before it where that is less (a mask from the model's own input; keys before grouped heads are
expanded). The cheapest way is taken. What stages cut nothing by, and what no way fits, every part does alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto, helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut
from edge_attention.core.schedule.schedule import Collective
from edge_attention.graphs.axes.crossings import ELEMENTWISE, find_crossings
from edge_attention.graphs.axes.forms import Form, Operation, Partition, Scaled, StageCut
from edge_attention.graphs.axes.localise import can_be_local
from edge_attention.graphs.axes.merging import carry_lse, merge_parts, soften
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.quantising import quantise
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.stock import HEAVY, FormStock
from edge_attention.graphs.axes.ways import Way, ways_of

__all__ = ["Partitioner"]

_QUANTISES = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
_SUMS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "Gemm", "Einsum", "MatMulNBits", "ReduceSum"})
_FOLDS = {
    Does.SUM: Collective.SUM,
    Does.MEAN: Collective.SUM,
    Does.MAX: Collective.MAX,
    Does.MIN: Collective.MIN,
}


class Partitioner:
    """Cuts one bound graph by stages.

    Args:
        axes: of the graph.
        stage_of: by node, the number of its stage.

    Attributes:
        stock: has the specs, literals and axes of all tensors, those that the cut has made included.
    """

    def __init__(self, axes: Axes, stages: Sequence[StageCut], stage_of: Sequence[int]) -> None:
        self.bound = axes.bound
        self.stock = FormStock(axes, stages)
        self._axes = axes
        self._stages = tuple(stages)
        self._stage_of = stage_of
        self._crossings = find_crossings(axes.bound)
        # Partials merge to within rounding; a model that quantises what follows is to answer to the bit.
        if any(node.op_type in _QUANTISES for node in axes.bound.nodes):
            self._crossings.merged.clear()

    def run(self) -> Partition:
        """The whole of it."""
        partition = self.stock.partition
        for number, node in enumerate(self.bound.nodes):
            if not all(name in self.stock.fixed for name in node.output if name):
                self._place(self._stages[self._stage_of[number]], number, node)
        for name in self.bound.outputs:
            if name in self.bound.unknown:
                raise InvalidArgument(
                    f"the size of output '{name}' depends on data ({self.bound.unknown[name]}): the model "
                    "cannot be cut; replicate it, which serves it as it is"
                )
            partition.results[name] = self._result(name)
        return partition

    # What a node becomes.

    def _place(self, stage: StageCut, number: int, node: NodeProto) -> None:
        whole = sum(self.stock.price(stage, name, None) for name in _data(node))
        best: Way | None = None
        best_key: tuple[float, ...] = (math.inf,)
        for way in self._ways(stage, number, node):
            asked = sum(
                self.stock.price(stage, n, s) for n, s in zip(node.input, way.operands, strict=True) if n
            )
            cost = asked + self._fold_price(stage, node, way)
            if way.does is not Does.CARRY and not self._is_there(stage, node, way):
                continue
            if way.does in _FOLDS and cost > whole and not (node.op_type in HEAVY and asked < whole):
                continue
            key = (cost, way.does is not Does.CARRY, way.axis not in stage.home, way.factor)
            if cost < math.inf and key < best_key:
                best, best_key = way, key
        if best is not None and best.does is Does.CARRY and best_key[0] > whole and node.op_type not in HEAVY:
            best = None
        if best is None:
            self._do(stage, number, None)
        elif best.does is Does.RANGE:
            quantise(self.stock, stage, node, best)
        elif best.does is Does.SOFTMAX:
            soften(self.stock, stage, node, best)
        elif best.does in _FOLDS:
            self._sum(stage, number, best)
        else:
            self._do(stage, number, best)

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
                    if node.op_type in _SUMS and stage.sums:
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
            for number in self.bound.readers.get(rest.pop(), ()):
                node = self.bound.nodes[number]
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
            and name not in self.stock.fixed
            and self.stock.form(stage, name, state) is not None
            for name, state in zip(node.input, way.operands, strict=True)
        )

    def _fold_price(self, stage: StageCut, node: NodeProto, way: Way) -> float:
        if way.does not in _FOLDS or self._merging(stage, node, way):
            return 0
        return 2 * len(stage.parts) * sum(self.stock.nbytes(name) for name in node.output if name)

    def _merging(self, stage: StageCut, node: NodeProto, way: Way) -> bool:
        """Whether an operand has the lse of a softmax over what `way` contracts."""
        form = self.stock.form(stage, node.input[0], way.operands[0])
        return form is not None and bool(form.lse)

    def _do(self, stage: StageCut, number: int, way: Way | None) -> None:
        operation = self.stock.operation(stage, number, way)
        carry_lse(self.stock, stage, operation)
        self.stock.settle(operation)

    def _sum(self, stage: StageCut, number: int, way: Way) -> None:
        node = self.bound.nodes[number]
        collective = _FOLDS[way.does]
        if self._merging(stage, node, way):
            merge_parts(self.stock, stage, node, way)
            return
        operation = self.stock.operation(stage, number, way)
        if way.does is Does.MEAN:
            operation.scaled = Scaled.SHARE
        self.stock.unfold(operation, collective, way.axis)
        self.stock.settle(operation)

    def _result(self, name: str) -> Form:
        if name in self.stock.homes:
            return self.stock.homes[name]
        stage = self._stages[-1]
        form = self.stock.obtain(stage, name, None)
        node = helper.make_node("Identity", [name], [f"{name}#out"])
        self.stock.specs[f"{name}#out"], self.stock.dims[f"{name}#out"] = (
            self.stock.specs[name],
            self.stock.dims.get(name, ()),
        )
        operation = Operation(stage.number, form.level, node, (form,), {}, None, asked=True)
        return self.stock.finish(operation, [(f"{name}#out", None)])[0]


def _data(node: NodeProto) -> list[str]:
    return [name for name in node.input if name]
