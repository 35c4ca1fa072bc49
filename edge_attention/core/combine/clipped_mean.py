"""The mean of updates, none longer than a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.combine.base import Combine, Float64, Needs, shares, weighted_sum
from edge_attention.core.options import NOT_NEGATIVE, POSITIVE, option
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class ClippedMean(Combine):
    """`sum_k n_k u_k min(1, bound / |u_k|) / sum_k n_k`, |u_k| the L2 norm over all parameters.

    The bound is `max_norm`; where that is 0, the default, `factor` times the median of the norms (the
    median as a bound: Andrew, Thakkar, McMahan and Ramaswamy, 2019, arXiv:1905.03871). Limits how far one
    node moves the mean, not in what direction. Weights count as in the mean: where nodes may lie about
    their samples, weigh them equally.
    """

    name: ClassVar[str] = "clipped_mean"
    paper: ClassVar[str] = "Sun, Kairouz, Suresh and McMahan (2019), arXiv:1911.07963"
    needs: ClassVar[Needs] = "norms"
    max_norm: float = option(0.0, NOT_NEGATIVE)
    factor: float = option(1.0, POSITIVE)

    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        assert norms is not None
        bound = self.max_norm or self.factor * float(np.median(norms))
        # Of an update that is zero, any multiple will do.
        scale = np.minimum(1.0, np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound))
        return np.asarray(shares(given) * scale, np.float64)

    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        return weighted_sum(block, weights)
