"""Lengths that depend on data: why a graph has no gradient, in words that help who wrote the model.

`nonzero()`, `x[mask]` and `torch.where(mask)` pick as many rows as a mask has; a gradient graph has the sizes
of its tensors fixed. Mixtures of experts are often written so.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

__all__ = ["lengths_of_data"]

_PICKING = ("NonZero", "Compress", "Unique", "NonMaxSuppression")


def lengths_of_data(model: ModelProto, node: NodeProto | None) -> str:
    """What of that lies before `node`, and the remedy, to end an error's sentence; empty: nothing does."""
    makers = {output: one for one in model.graph.node for output in one.output}
    waiting, seen = list(node.input) if node is not None else [], set[str]()
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if name in seen or maker is None:
            continue
        seen.add(name)
        if maker.op_type in _PICKING:
            return (
                f". How many rows come there depends on data ({maker.op_type} '{maker.name or name}': "
                "nonzero, x[mask] and torch.where(mask) are written so), and a gradient needs sizes that are "
                "known: compute all rows and multiply by the mask, or torch.where(mask, a, b); of experts, "
                "compute each for all rows and weigh it, 0 where it is not chosen"
            )
        waiting.extend(maker.input)
    return ""
