"""The consensus losses of a round: how far nodes are apart in attention and in parameters. Float64.

With `A_i` node i's attention weights on the common probe batch, `A'` their mean, `alpha` the global
attention weights that were pushed, `O_i` node i's parameters and `O'` the global ones:

    L(A, O)  = sum_i |A_i - A'|^2 + |O_i - O'|^2
    L_i      = |A_i - alpha|^2 + |O_i - O'|^2
    L_global = |A' - alpha|^2
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.tensors import Array

_BLOCK = 65536  # elements made float64 at a time


def squared_distance(a: Array, b: Array) -> float:
    """`|a - b|^2`, summed in float64 over pieces.

    Sums over the pieces of all parameters add up to `|O_i - O'|^2`, so nobody holds a model for it.

    Raises:
        InvalidTensor: the shapes differ.
    """
    if a.shape != b.shape:
        raise InvalidTensor(f"a distance needs equal shapes, not {list(a.shape)} and {list(b.shape)}")
    first, second = a.reshape(-1), b.reshape(-1)
    total = 0.0
    for start in range(0, first.size, _BLOCK):
        gap = np.subtract(first[start : start + _BLOCK], second[start : start + _BLOCK], dtype=np.float64)
        total += float(np.square(gap).sum())
    return total


def consensus_losses(
    attention: Mapping[str, Array], alpha: Array | None, distances: Mapping[str, float]
) -> dict[str, float]:
    """The losses of one round, by name.

    `attention`: node -> A_i, float32, all of one shape; empty where the job compares none. `alpha` of the
    same shape, or None where none was pushed. `distances`: node -> `|O_i - O'|^2`, summed from
    `squared_distance` of pieces; empty where it was not asked for.

    `total` is L(A, O), of parts `attention` and `parameters`; `global` is L_global; `node/<node>` is L_i.
    What cannot be known is left out: attention's part without attention, L_global without alpha.

    Raises:
        InvalidArgument: attention and distances are of different nodes.
        InvalidTensor: two shapes of attention weights differ.
    """
    if attention and distances and attention.keys() != distances.keys():
        odd = ", ".join(sorted(attention.keys() ^ distances.keys()))
        raise InvalidArgument(f"consensus needs attention and distances of the same nodes; one lacks {odd}")
    parts: dict[str, float] = {}
    nodes = dict(distances)
    if attention:
        mean = _mean(attention)
        parts["attention"] = sum(squared_distance(own, mean) for own in attention.values())
        if alpha is not None:
            parts["global"] = squared_distance(mean, alpha)
            for node, own in attention.items():
                nodes[node] = nodes.get(node, 0.0) + squared_distance(own, alpha)
    if distances:
        parts["parameters"] = sum(distances.values())
    total = parts.get("attention", 0.0) + parts.get("parameters", 0.0)
    return {"total": total, **parts, **{f"node/{node}": loss for node, loss in nodes.items()}}


def _mean(attention: Mapping[str, Array]) -> Array:
    first = next(iter(attention.values()))
    total = np.zeros(first.shape)
    for node, own in attention.items():
        if own.shape != first.shape:
            raise InvalidTensor(
                f"attention weights of {node!r} have shape {list(own.shape)}, those of others "
                f"{list(first.shape)}; all nodes need the same probe batch"
            )
        total += own
    return np.asarray(total / len(attention))
