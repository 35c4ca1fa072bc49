"""The median of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.combine.base import Combine, Float64
from edge_attention.core.combine.ordered import sorted_rows
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Median(Combine):
    """The middle of the n values of a coordinate; of an even number, the mean of the middle two.

    Withstands fewer than half of the nodes lying. Weights are ignored: a node could claim any number of
    samples.
    """

    name: ClassVar[str] = "median"
    paper: ClassVar[str] = "Yin, Chen, Ramchandran and Bartlett (2018), arXiv:1803.01498"

    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        return np.full(len(given), 1 / len(given))

    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        rows, n = sorted_rows(block), len(block)
        # In float64 the sum does not overflow. -0 becomes 0: which one a comparison keeps is open.
        middle: Float64 = np.add(rows[(n - 1) // 2], rows[n // 2], dtype=np.float64)
        return middle * 0.5 + 0.0
