"""Decides what constants decide: an `If` becomes the branch that is taken, a `Dropout` that is off stays off.

Exporters leave both: a switch of training or inference as a constant, and conditions on shapes that are fixed
once the dimensions are. Only what small constants and shapes tell is followed, and a shape counts only if the
batch, whatever its size, does not change the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_attention.graphs.onnx_file import (
    all_nodes,
    bind_batch,
    fixed_shapes,
    rename_values,
    values_of,
)
from edge_attention.graphs.reading.needed import keep_needed

__all__ = ["decide"]

_FOLLOWED = 1024
"""Elements of the largest value that is followed: a condition is made of sizes and switches."""
_MOST = 4096
"""Nodes that are evaluated for one condition."""
_BATCHES = (1, 2, 10_007)
"""The sizes of the batch at which a condition has to have one answer."""
# Operators that make nothing large of small inputs.
_EVALUATED = {
    *("Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual"),
    *("Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceMax"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    "Xor",
}
_Shapes = Mapping[str, tuple[int, ...]]


def decide(model: ModelProto, shapes: bool = False, keep: Collection[str] = ()) -> None:
    """Replace, in place, every `If` and `Dropout` whose switch is known, and drop what nothing needs then.

    `shapes`: the sizes of all dimensions but the batch are fixed, and may decide, too. `keep`: inputs that
    stay whether they are needed or not.
    """
    while _once(model, ({},)):
        pass
    if shapes:
        while _undecided(model.graph) and _once(model, tuple(_shapes_at(model, b) for b in _BATCHES)):
            pass
    keep_needed(model.graph, {*keep, *(value.name for value in model.graph.output)})


def _undecided(graph: GraphProto) -> bool:
    return any(node.op_type == "If" or _is_on(node) for node in graph.node)


def _is_on(node: NodeProto) -> bool:
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _shapes_at(model: ModelProto, batch: int) -> _Shapes:
    try:
        return fixed_shapes(bind_batch(model, batch, strict=False))
    except Exception:  # whatever contradicts itself is said where the model is checked
        return {}


def _once(model: ModelProto, at: tuple[_Shapes, ...]) -> bool:
    """Decide what can be decided, an `If` at most; whether there was one, so that there may be more."""
    known = [_Known(model, shapes) for shapes in at]
    for node in all_nodes(model.graph):
        if _is_on(node) and (_agreed(known, node.input[2]) == [0] or _agreed(known, node.input[1]) == [0]):
            del node.input[1:]
    for position, node in enumerate(model.graph.node):
        if node.op_type == "If" and not node.domain:
            taken = _agreed(known, node.input[0])
            if taken is not None and len(taken) == 1:
                _inline(model.graph, position, bool(taken[0]))
                return True
    return False


def _agreed(known: list[_Known], name: str) -> list[Any] | None:
    """The elements of a value that is the same in all; None if it is not known, or not the same."""
    found = [each.value(name) for each in known]
    first = found[0]
    if first is None or any(other is None or not np.array_equal(first, other) for other in found):
        return None
    return list(first.reshape(-1).tolist())


def _inline(graph: GraphProto, position: int, taken: bool) -> None:
    """Put the nodes of the branch that is taken in the place of the `If` at `position`."""
    node = NodeProto()
    node.CopyFrom(graph.node[position])
    branch = next(a.g for a in node.attribute if a.name == ("then_branch" if taken else "else_branch"))
    own = {name for inner in branch.node for name in inner.output} | {t.name for t in branch.initializer}
    names = values_of(graph)
    renamed = {}
    for name in sorted(own - {""}):
        renamed[name] = f"{node.name or node.output[0]}/{name}"
        while renamed[name] in names:
            renamed[name] += "'"
        names.add(renamed[name])
    rename_values(branch, renamed)
    ends = [
        helper.make_node("Identity", [value.name], [output])
        for value, output in zip(branch.output, node.output, strict=False)
        if output
    ]
    nodes = [*graph.node[:position], *branch.node, *ends, *graph.node[position + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(branch.initializer)


class _Known:
    """The small values of a model's main graph that depend on no data, at these shapes."""

    def __init__(self, model: ModelProto, shapes: _Shapes) -> None:
        graph = model.graph
        self._opsets = model.opset_import
        self._ir_version = model.ir_version
        self._shapes = shapes
        self._producers = {output: node for node in graph.node for output in node.output}
        given = {value.name for value in graph.input}
        self._constants = {t.name: t for t in graph.initializer if t.name not in given}
        self._values: dict[str, NDArray[Any] | None] = {}
        self._left = _MOST

    def value(self, name: str) -> NDArray[Any] | None:
        """The value, if it is known and no larger than is followed."""
        waiting = [name]
        while waiting and self._left:
            wanted = waiting[-1]
            if wanted in self._values:
                waiting.pop()
                continue
            node = self._producers.get(wanted)
            needs = self._needs(node)
            open_ = [other for other in needs if other not in self._values]
            if open_:
                waiting += open_
                continue
            self._left -= 1
            found = self._constant(wanted) if node is None else self._computed(node, wanted)
            self._values[wanted] = found if found is not None and found.size <= _FOLLOWED else None
            waiting.pop()
        return self._values.get(name)

    def _needs(self, node: NodeProto | None) -> list[str]:
        if node is None or node.domain or node.op_type not in _EVALUATED:
            return []
        return [name for name in node.input if name]

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._constants.get(name)
        if tensor is None or np.prod(list(tensor.dims), dtype=np.int64) > _FOLLOWED:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def _computed(self, node: NodeProto, name: str) -> NDArray[Any] | None:
        if node.domain:
            return None
        if node.op_type in ("Shape", "Size"):
            return self._shape(node)
        if any(
            a.HasField("t") and np.prod(list(a.t.dims), dtype=np.int64) > _FOLLOWED for a in node.attribute
        ):
            return None
        if node.op_type != "Constant" and (
            node.op_type not in _EVALUATED or any(self._values[n] is None for n in node.input if n)
        ):
            return None
        feeds = {n: self._values[n] for n in node.input if n}
        alone = helper.make_model(
            helper.make_graph(
                [node],
                "one",
                [
                    helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                    for n, v in feeds.items()
                    if v is not None
                ],
                [onnx.ValueInfoProto(name=name)],
            ),
            opset_imports=self._opsets,
            ir_version=self._ir_version,
        )
        try:
            found = ReferenceEvaluator(alone).run([name], feeds)
        except Exception:  # what cannot be evaluated decides nothing
            return None
        first = found[0] if isinstance(found, list) else None
        return np.asarray(first) if isinstance(first, np.ndarray | np.generic) else None

    def _shape(self, node: NodeProto) -> NDArray[Any] | None:
        shape = self._shapes.get(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(np.prod(shape, dtype=np.int64))
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)
