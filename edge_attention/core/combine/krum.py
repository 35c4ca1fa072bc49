"""Krum and Multi-Krum: take the updates that have the nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.combine.base import Combine, Float64, Needs, weighted_sum
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.options import COUNT_OR_ZERO, option
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Krum(Combine):
    """The one update with the smallest score; its score sums its n - f - 2 smallest squared distances.

    `byzantine`: f, how many nodes may lie; n must be 2f + 3 or more. Weights are ignored, here and in
    Multi-Krum: a node could claim any number of samples. Of equal scores the first node's wins.
    """

    name: ClassVar[str] = "krum"
    paper: ClassVar[str] = "Blanchard, El Mhamdi, Guerraoui and Stainer (2017), arXiv:1703.02757"
    needs: ClassVar[Needs] = "distances"
    byzantine: int = option(1, COUNT_OR_ZERO)

    def selected(self, n: int) -> int:
        """How many of `n` updates are taken."""
        return 1

    def require(self, n: int) -> None:
        super().require(n)
        f = self.byzantine
        if n < 2 * f + 3:
            remedy = f"lower byzantine to {(n - 3) // 2} or have" if n >= 3 else "have"
            raise InvalidArgument(
                f"{self.name} with byzantine f = {f} needs n = {2 * f + 3} updates or more and has {n}; "
                f"{remedy} {2 * f + 3} nodes answer"
            )

    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        assert distances2 is not None
        n = len(given)
        others = distances2[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        nearest = np.sort(others, axis=1)[:, : n - self.byzantine - 2]
        best = np.argsort(nearest.sum(axis=1), kind="stable")[: self.selected(n)]
        weights = np.zeros(n)
        weights[best] = 1 / len(best)
        return weights

    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        return weighted_sum(block, weights)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The plain mean of the `m` updates with the smallest scores of Krum.

    m is 1 to n - f. 0, the default, is n - f - 2, the most for which El Mhamdi, Guerraoui and Rouault
    (2018, arXiv:1802.07927) use it.
    """

    name: ClassVar[str] = "multi_krum"
    m: int = option(0, COUNT_OR_ZERO)

    def selected(self, n: int) -> int:
        return self.m or n - self.byzantine - 2

    def require(self, n: int) -> None:
        super().require(n)
        if self.m > n - self.byzantine:
            raise InvalidArgument(
                f"multi_krum with byzantine f = {self.byzantine} can trust {n - self.byzantine} of n = {n} "
                f"updates, not m = {self.m}; lower m to {n - self.byzantine} or less"
            )
