"""A Softmax or Sigmoid in front of a loss: found, also as exporters take it apart, and cut off.

Standard losses are of logits, because they are stable only so. Where a file's output is probabilities, the
loss is of what the Softmax or Sigmoid takes: the same number, without the logarithm of a rounded zero. The
output itself stays as it is for whoever uses it besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["LossFront", "cut_off", "find_front"]

_SAME = frozenset({"Identity", "Cast", "Clip", "Dropout"})
"""What leaves every element at its place. Clip keeps probabilities off 0 and 1, which logits do not need; a
Dropout that is on is refused elsewhere."""
_FOLDS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MOVES = frozenset({"Transpose", "Slice", "Gather", "Split", "Concat", "Mul", "Where", "Expand"})
"""What may lie between too, and is not followed: that there is a Softmax is said, and no more."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_STEPS = 32
"""Operators between an output and its Softmax, at most."""


@dataclass(frozen=True)
class LossFront:
    """What makes a model's output.

    Attributes:
        kind: "Softmax", "LogSoftmax" or "Sigmoid".
        name: of the node, or of its output where it has none.
        logits: the value it takes.
        axis: that a Softmax normalises, counted from the last axis of the output (-1 is the last).
        behind: the nodes between it and the output, in the order in which they run.
        sure: it can be cut off; where not, what lies between could not be followed, and no axis is known.
    """

    kind: str
    name: str
    logits: str
    axis: int
    behind: tuple[NodeProto, ...]
    sure: bool = True

    @property
    def folded(self) -> bool:
        """Whether axes are joined or cut behind it: then `axis` holds only if the last one is as it was."""
        return any(node.op_type in _FOLDS for node in self.behind)


def find_front(graph: GraphProto, output: str, rank: int) -> LossFront | None:
    """The Softmax, LogSoftmax or Sigmoid that makes `output`, of `rank` axes; None: nothing of the kind.

    Seen through Identity, Cast, Clip, Dropout, Transpose, and Reshape where it is elementwise or over the
    last axis.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = _constants(graph)
    behind: list[NodeProto] = []
    value, folded, logarithm, sure = output, False, False, True
    axes = list(range(rank))  # where each axis of `value` is in the output
    for _ in range(_STEPS):
        node = makers.get(value)
        if node is None:
            return None
        found = _activation(node, makers, constants)
        if found is not None:
            kind, logits, axis = found
            if logarithm and kind != "Softmax":
                return None  # the logarithm of a probability is no logit
            kind = "LogSoftmax" if logarithm else kind
            if kind != "Sigmoid":
                # Past a Reshape only the last axis is known to be the last still.
                sure = sure and axis is not None and (axis == -1 if folded else -rank <= axis < rank)
                axis = -1 if folded or not sure or axis is None else axes[axis] - rank
            name = node.name or node.output[0]
            return LossFront(kind, name, logits, -1 if axis is None else axis, tuple(reversed(behind)), sure)
        if node.op_type == "Log" and not logarithm:
            logarithm = True
        elif node.op_type in _SAME:
            if node.op_type == "Cast" and _attribute(node, "to", 0) not in _FLOATS:
                return None
            behind += [node] if node.op_type == "Cast" else []
        elif node.op_type == "Transpose" and not folded:
            order = _attribute(node, "perm", list(reversed(range(rank))))
            inner = [0] * rank
            for place, axis in enumerate(order):
                inner[axis] = axes[place]
            axes = inner
            behind.append(node)
        elif node.op_type in _FOLDS:
            sure = sure and axes[-1] == rank - 1
            folded = True
            behind.append(node)
        elif node.op_type in _MOVES:
            sure = False
        else:
            return None
        value = node.input[0]
    return None


def cut_off(graph: GraphProto, front: LossFront, prefix: str) -> str:
    """Append what is behind the front once more, on its logits; the name of the result."""
    value = front.logits
    for i, node in enumerate(front.behind):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}front_{i}"
        copy.input[0] = value
        value = f"{prefix}front/{i}"
        copy.output[0] = value
        graph.node.append(copy)
    return value


def _activation(
    node: NodeProto, makers: Mapping[str, NodeProto], constants: Mapping[str, Any]
) -> tuple[str, str, int | None] | None:
    """Kind, logits and axis, if `node` is a Softmax or Sigmoid, whole or in parts."""
    if node.op_type in ("Softmax", "LogSoftmax"):
        return node.op_type, node.input[0], int(_attribute(node, "axis", -1))
    if node.op_type == "Sigmoid":
        return "Sigmoid", node.input[0], None
    if node.op_type == "Reciprocal":
        return _sigmoid(node.input[0], makers, constants)
    if node.op_type != "Div":
        return None
    above, below = node.input
    if _is(above, 1.0, constants):
        return _sigmoid(below, makers, constants)
    exponent, (total, spread) = makers.get(above), _behind(below, makers)
    if exponent is None or total is None or exponent.op_type != "Exp" or total.op_type != "ReduceSum":
        return None
    if total.input[0] != above or not (spread or _attribute(total, "keepdims", 1)):
        return None
    axes = constants.get(total.input[1]) if len(total.input) > 1 else _attribute(total, "axes", None)
    if axes is None or np.size(axes) != 1:
        return None
    logits = exponent.input[0]
    shifted = makers.get(logits)
    if shifted is not None and shifted.op_type == "Sub":
        largest, _ = _behind(shifted.input[1], makers)
        if largest is not None and largest.op_type == "ReduceMax" and largest.input[0] == shifted.input[0]:
            logits = shifted.input[0]
    return "Softmax", logits, int(np.ravel(axes)[0])


def _behind(value: str, makers: Mapping[str, NodeProto]) -> tuple[NodeProto | None, bool]:
    """What makes `value`, but for what gives it back the axis it was reduced by; and whether that is there.

    JAX writes a Reshape and an Expand, and bounds the largest from below.
    """
    node, spread = makers.get(value), False
    for _ in range(_STEPS):
        if node is None or node.op_type not in ("Identity", "Reshape", "Expand", "Unsqueeze", "Max"):
            break
        spread = spread or node.op_type in ("Reshape", "Unsqueeze")
        inputs = node.input if node.op_type == "Max" else node.input[:1]
        node = next((makers[name] for name in reversed(inputs) if name in makers), None)
    return node, spread


def _sigmoid(
    below: str, makers: Mapping[str, NodeProto], constants: Mapping[str, Any]
) -> tuple[str, str, int | None] | None:
    """Of 1 / (1 + exp(-x))."""
    total = makers.get(below)
    if total is None or total.op_type != "Add":
        return None
    for one, other in (total.input, tuple(reversed(total.input))):
        exponent = makers.get(other)
        if _is(one, 1.0, constants) and exponent is not None and exponent.op_type == "Exp":
            minus = makers.get(exponent.input[0])
            if minus is not None and minus.op_type == "Neg":
                return "Sigmoid", minus.input[0], None
    return None


def _is(name: str, value: float, constants: Mapping[str, Any]) -> bool:
    array = constants.get(name)
    return array is not None and np.size(array) == 1 and float(np.ravel(array)[0]) == value


def _constants(graph: GraphProto) -> dict[str, Any]:
    """Small initializers and the values of Constant nodes, by name."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) <= 8 and (tensor.raw_data or tensor.ByteSize() < 512)
    }
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and np.prod(attribute.t.dims, dtype=np.int64) <= 8:
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
                elif attribute.name in ("value_float", "value_int", "value_ints"):
                    found[node.output[0]] = np.asarray(helper.get_attribute_value(attribute))
    return found


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
