"""The weighted mean of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.combine.base import Combine, Float64, shares, weighted_sum
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Mean(Combine):
    """`sum_k n_k u_k / sum_k n_k`. One node that lies moves it anywhere."""

    name: ClassVar[str] = "mean"
    paper: ClassVar[str] = "McMahan, Moore, Ramage, Hampson and Agüera y Arcas (2016), arXiv:1602.05629"

    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        return shares(given)

    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        return weighted_sum(block, weights)
