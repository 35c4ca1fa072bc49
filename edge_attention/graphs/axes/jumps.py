"""What rounds coarsely within a model: a difference of 1e-7 before it may be 1e-2 behind it.

Parts add in another order than one box, which is 1e-7. Where that is rounded to int8 or float16 afterwards,
it is the same number or the one beside it, a step of 255, or of 2,048, away.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.rules_moves import MOVES

__all__ = ["coarse", "exact_only", "jumps"]

_INT8 = 4
"""`accuracy_level` of a product that rounds its activations to int8, a scale to each block."""
_PACKED = "products of packed weights (MatMulNBits) round activations to int8 (accuracy_level 4)"
_WITHIN = (Cut.BATCH, Cut.TOKENS, Cut.HEADS)
_MOVES = frozenset((*MOVES, "Identity", "Cast"))
"""Operators that round nothing; or, a Cast, what somebody asks to be rounded."""
_QUANTISE = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear"})


def jumps(axes: Axes, cuts: Collection[Cut], merged: bool = False) -> str:
    """Why a plan that cuts so does not answer what the file does to 1e-5; empty: it does.

    As replicas nothing is added or rounded otherwise, nor by layers, but in float16: ONNX Runtime computes it
    in float32 on processors, and rounds less where operators follow each other. Whole numbers are added
    exactly, in any order.

    Args:
        merged: parts of an attention's keys are merged, which are floats.
    """
    if narrow := _narrow(axes):
        return (
            f"the file computes in {narrow}, so that parts agree with the whole to about 1e-3 only; "
            "replicate answers to the bit"
        )
    if not {*_WITHIN}.isdisjoint(cuts) and (why := _packed(axes) or _loosened(axes)):
        return why
    return _quantised(axes, merged) if merged or Cut.HEADS in cuts else ""


def _packed(axes: Axes) -> str:
    for node in axes.bound.nodes:
        level = next((one.i for one in node.attribute if one.name == "accuracy_level"), 0)
        if node.op_type == "MatMulNBits" and level == _INT8:
            return (
                f"the file's {_PACKED}, so that parts of a layer agree with the whole to about 1e-2 only; "
                "layers and replicate answer to the bit"
            )
    return ""


def _loosened(axes: Axes) -> str:
    """Of a file that rounds to int8: a fused operator whose place plain ones have taken, to 1e-7."""
    if not axes.bound.loosened:
        return ""
    return (
        f"the file's {axes.bound.loosened} is plain operators where it is cut, which round otherwise, and "
        "what follows is rounded to int8, so that parts of a layer agree with the whole to about 1e-2 only; "
        "layers and replicate answer to the bit"
    )


def coarse(axes: Axes) -> tuple[str, str]:
    """What a file rounds coarsely whose attention is computed by other operators, by any plan; and to how
    much it then agrees. Empty: nothing."""
    if narrow := _narrow(axes):
        return f"the file computes in {narrow}", "1e-3"
    if _packed(axes):
        return f"the file's {_PACKED}", "1e-2"
    for number, node in enumerate(axes.bound.nodes):
        if node.op_type in _QUANTISE and _moves(axes, number):
            return f"the file rounds to int8 ({node.op_type} '{node.name or node.output[0]}')", "1e-2"
    return "", ""


def _narrow(axes: Axes) -> str:
    """In what a file computes that computes in float16, and where: what ONNX Runtime makes of each operator
    is rounded to it. Empty: it does not."""
    bound = axes.bound
    for node in bound.nodes:
        name = node.output[0] if node.output else ""
        kind = bound.specs[name].dtype if name in bound.specs else ""
        if kind in ("float16", "bfloat16") and name not in axes.static and node.op_type not in _MOVES:
            return f"{kind} (as {node.op_type} '{node.name or name}')"
    return ""


def _quantised(axes: Axes, merged: bool) -> str:
    """Of a file that adds floats over heads, or over a feed-forward layer, and quantises afterwards; or over
    keys, where they are merged."""
    bound = axes.bound
    last = max(
        (n for n, node in enumerate(bound.nodes) if node.op_type in _QUANTISE and _moves(axes, n)), default=-1
    )
    shared = {found[0] for name, found in axes.named.items() if name.startswith(("heads", "feedforward"))}
    for number, node in enumerate(bound.nodes[: last + 1]):
        adds = any(
            (factor.does is Does.SUM and shared.intersection(made_of))
            or (factor.does is Does.SOFTMAX and merged)
            for factor, made_of in zip(axes.rules[number].factors, axes.factors[number], strict=True)
        )
        if adds and _moves(axes, number) and bound.specs[node.output[0]].dtype.startswith("float"):
            return (
                f"the file adds floats of all parts ({node.op_type} '{node.name or node.output[0]}') and "
                f"rounds them to int8 afterwards ({bound.nodes[last].op_type}), so that parts of a layer "
                "agree with the whole to about 1e-2 only; layers and replicate answer to the bit"
            )
    return ""


def _moves(axes: Axes, number: int) -> bool:
    """Whether the node works on what follows from inputs."""
    name = axes.bound.nodes[number].output[0]
    return name in axes.bound.specs and name not in axes.static


def exact_only(costs: ModelCosts, axes: Axes, wanted: PlanWanted) -> ModelCosts:
    """The costs without cuts that would not be exact and that nobody asked for."""
    if wanted.family or wanted.halves:
        return costs
    refused = {cut: why for cut in _WITHIN if (why := jumps(axes, (cut,)))}
    if jumps(axes, (Cut.NONE,)):
        costs = costs.in_one()
    units = {cut: count for cut, count in costs.units.items() if cut not in refused}
    return replace(costs, units=units, refused=refused | dict(costs.refused))
