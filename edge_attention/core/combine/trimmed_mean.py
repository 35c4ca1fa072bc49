"""The mean of each coordinate without its extremes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.combine.base import Combine, Float64, weighted_sum
from edge_attention.core.combine.ordered import sorted_rows
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.options import BELOW_HALF, option
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class TrimmedMean(Combine):
    """The plain mean of a coordinate's n values without the `k = ceil(trim n)` largest and k smallest.

    Withstands k nodes lying. `trim` is the share cut at each end, rounded up: any trim above 0 cuts
    someone, however few updates came. Weights are ignored: a node could claim any number of samples. The
    paper leaves trim to the user; 0.2, one of five, is this project's default.
    """

    name: ClassVar[str] = "trimmed_mean"
    paper: ClassVar[str] = "Yin, Chen, Ramchandran and Bartlett (2018), arXiv:1803.01498"
    trim: float = option(0.2, BELOW_HALF)

    def cut(self, n: int) -> int:
        """How many of `n` values are cut at each end."""
        return math.ceil(self.trim * n - 1e-9)  # 0.07 * 100 is a little above 7

    def require(self, n: int) -> None:
        super().require(n)
        if n <= 2 * (k := self.cut(n)):
            raise InvalidArgument(
                f"trimmed_mean with trim {self.trim:g} cuts {k} at each end and leaves none of {n} updates; "
                f"have {2 * k + 1} nodes or more answer, or choose mean"
            )

    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        return np.full(len(given), 1 / len(given))

    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        n = len(block)
        k = self.cut(n)
        kept = sorted_rows(block)[k : n - k]
        return weighted_sum(kept, np.ones(n - 2 * k)) / (n - 2 * k)
