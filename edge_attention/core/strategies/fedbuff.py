"""FedBuff: nodes train at their own pace, and every K updates that have come in make a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edge_attention.core.options import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, option
from edge_attention.core.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """`p = p - lr/K sum_k s(t_k) u_k` over a buffer of K updates, `s(t) = (1 + t)^-exponent`.

    t is an update's staleness. The paper's s is `1 / sqrt(1 + t)`, exponent 0.5; the family is FedAsync's
    (Xie, Koyejo and Gupta, 2019, arXiv:1903.03934). With sample weights n_k the step is
    `lr sum n_k s(t_k) u_k / sum n_k`. Stale updates are not just weighed against fresher ones: a buffer of
    equally stale ones makes a smaller step, which is `damping`'s part.

    `buffer`: K, 10 in the paper; one node may be in it more than once. `max_staleness`: an update staler
    than this is left out by whoever fills the buffer. The paper names no number; 100 is this
    project's. The paper tunes lr; 1 makes a buffer of fresh updates FedAvg's round.
    """

    name: ClassVar[str] = "fedbuff"
    paper: ClassVar[str] = "Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba (2021), arXiv:2106.06639"
    asynchronous: ClassVar[bool] = True
    buffer: int = option(10, COUNT)
    max_staleness: int = option(100, COUNT_OR_ZERO)
    exponent: float = option(0.5, NOT_NEGATIVE)

    def weight(self, samples: float, staleness: int) -> float:
        return samples * math.pow(1 + staleness, -self.exponent)

    def damping(self, samples: Sequence[float], staleness: Sequence[int]) -> float:
        total = sum(samples)
        stale = sum(self.weight(n, t) for n, t in zip(samples, staleness, strict=True))
        return stale / total if total else 1.0
