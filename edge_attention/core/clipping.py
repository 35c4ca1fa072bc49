"""Gradients clipped by the norm of all of them together, as `torch.nn.utils.clip_grad_norm_` does."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from edge_attention.core.tensors import Float32

__all__ = ["clip_factor", "global_norm", "squared_norm"]


def squared_norm(array: Float32) -> float:
    """The sum of the squares of all elements, added in double precision."""
    return float(np.square(array, dtype=np.float64).sum())


def global_norm(squares: Iterable[float]) -> float:
    """The L2 norm of what consists of parts with these squared norms."""
    return math.sqrt(math.fsum(squares))


def clip_factor(norm: float, most: float) -> float:
    """What a gradient of L2 norm `norm` is multiplied by so that its norm is at most `most`; 0: any may be.

    >>> clip_factor(4.0, 1.0), clip_factor(0.5, 1.0), clip_factor(4.0, 0.0)
    (0.25, 1.0, 1.0)
    """
    return most / norm if most and norm > most else 1.0
