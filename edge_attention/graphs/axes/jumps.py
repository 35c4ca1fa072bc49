"""Products that round what they are given: a difference of 1e-7 before one may be 1e-2 behind it."""

from __future__ import annotations

from dataclasses import replace

from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.axes.model_axes import Axes

__all__ = ["exact_only", "jumps"]

_INT8 = 4
"""`accuracy_level` of a product that rounds its activations to int8, a scale to each block."""


def jumps(axes: Axes) -> str:
    """Why a plan that cuts within layers does not answer what the file does to 1e-5; empty: it does.

    Parts add in another order than one box, which is 1e-7; a product with an `accuracy_level` of 4 (weights
    of 4 bits as onnxruntime-genai's builder writes them) rounds that to the next of 255 steps or the one
    beside it. By layers and as replicas nothing is added otherwise.
    """
    for node in axes.bound.nodes:
        level = next((one.i for one in node.attribute if one.name == "accuracy_level"), 0)
        if node.op_type == "MatMulNBits" and level == _INT8:
            return (
                "the file's products of packed weights (MatMulNBits) round activations to int8 "
                "(accuracy_level 4), so that parts of a layer agree with the whole to about 1e-2 only; "
                "layers and replicate answer to the bit"
            )
    return ""


def exact_only(costs: ModelCosts, axes: Axes, wanted: PlanWanted) -> ModelCosts:
    """The costs without cuts within layers, where these would not be exact and nobody asked for them."""
    why = jumps(axes)
    if not why or wanted.family or wanted.halves:
        return costs
    return replace(
        costs, units={}, refused=dict.fromkeys((Cut.BATCH, Cut.TOKENS, Cut.HEADS), why) | dict(costs.refused)
    )
