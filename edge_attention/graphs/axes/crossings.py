"""Where attention crosses an axis: products that make scores, their softmax, products with the values.

Found by what follows from what, not by patterns: from each softmax back over operators that work element
by element to the products its scores are of, and on to the products that its weights go into.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from edge_attention.graphs.axes.bound import BoundGraph

__all__ = ["ELEMENTWISE", "Crossings", "attribute", "find_crossings"]

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "BiasGelu",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "FastGelu",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "QLinearAdd",
        "QLinearMul",
        "QuantizeLinear",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "Where",
        "Xor",
    }
)
"""Operators that work element by element."""

_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Einsum", "MatMulInteger", "QLinearMatMul"})
_SOFTMAXES = {("", "Softmax"), ("ai.onnx", "Softmax"), ("com.microsoft", "QLinearSoftmax")}


@dataclass
class Crossings:
    """Attention in a graph.

    Attributes:
        scores: number of a product's node -> which dimension of its result, from the last (-1), a softmax
            normalises over.
        merged: numbers of softmax nodes whose parts can be merged: over the last dimension, and all that
            becomes of their weights is linear and ends in products with values.
    """

    scores: dict[int, int] = field(default_factory=dict)
    merged: set[int] = field(default_factory=set)


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An attribute that is a number."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def find_crossings(bound: BoundGraph) -> Crossings:
    """Every softmax, with what leads to it and from it."""
    found = Crossings()
    makers = {name: n for n, node in enumerate(bound.nodes) for name in node.output if name}
    users: dict[str, list[int]] = {}
    for n, node in enumerate(bound.nodes):
        for name in set(node.input) - {""}:
            users.setdefault(name, []).append(n)
    for n, node in enumerate(bound.nodes):
        if (node.domain, node.op_type) not in _SOFTMAXES or node.input[0] not in bound.specs:
            continue
        rank = len(bound.shape(node.input[0]))
        if (
            bound.opsets.get("", bound.opsets.get("ai.onnx", 13)) < 13
            and attribute(node, "axis", 1) % rank != rank - 1
        ):
            continue
        dim = attribute(node, "axis", -1) % rank - rank
        products = _products_before(bound, makers, node.input[0], dim)
        found.scores |= dict.fromkeys(products, dim)
        single = bound.specs[node.output[0]].dtype == "float32"
        if dim == -1 and products and single and _linear_after(bound, users, node.output[0]):
            found.merged.add(n)
    return found


def _products_before(bound: BoundGraph, makers: dict[str, int], scores: str, dim: int) -> set[int]:
    """The products that `scores` is a sum of, or made of element by element; same size along `dim`."""
    size = bound.shape(scores)[dim]
    found: set[int] = set()
    seen: set[str] = set()
    rest = [scores]
    while rest:
        name = rest.pop()
        if name in seen or name not in makers or name not in bound.specs:
            continue
        shape = bound.shape(name)
        if len(shape) < -dim or shape[dim] != size:
            continue
        seen.add(name)
        number = makers[name]
        node = bound.nodes[number]
        if node.op_type in _PRODUCTS:
            found.add(number)
        elif node.op_type in ELEMENTWISE:
            rest += [one for one in node.input if one]
        elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze") and _ends_alike(bound, node, 2):
            rest.append(node.input[0])
    return found


def _ends_alike(bound: BoundGraph, node: NodeProto, count: int) -> bool:
    before, after = bound.shape(node.input[0]), bound.shape(node.output[0])
    return min(len(before), len(after)) >= count and before[-count:] == after[-count:]


def _linear_after(bound: BoundGraph, users: dict[str, list[int]], weights: str) -> bool:
    """Whether all that becomes of `weights` is linear in them and ends as the first factor of products.

    Of products in float32, in which partials are merged.
    """
    rest, seen = [weights], {weights}
    while rest:
        name = rest.pop()
        if name in bound.outputs or name not in users:
            return False
        for number in users[name]:
            node = bound.nodes[number]
            kind, output = node.op_type, node.output[0]
            if output not in bound.specs:
                return False
            if kind == "MatMul" and node.input[0] == name and node.input[1] != name:
                if bound.specs[output].dtype != "float32":  # partials are
                    return False
                continue
            if kind == "IsNaN":
                if (
                    any(
                        bound.nodes[u].op_type != "Where" or bound.nodes[u].input[0] != output
                        for u in users.get(output, [])
                    )
                    or output in bound.outputs
                ):
                    return False
                continue
            if kind == "Where" and node.input[0] != name:
                other = node.input[1] if node.input[2] == name else node.input[2]
                value = bound.constant(other)
                linear = value is not None and not np.any(value)
            elif kind == "Reshape":
                linear = _ends_alike(bound, node, 2)
            else:
                linear = kind in ("Cast", "Identity") or (kind == "Dropout" and len(node.output) == 1)
            if not linear:
                return False
            if output not in seen:
                seen.add(output)
                rest.append(output)
    return True
