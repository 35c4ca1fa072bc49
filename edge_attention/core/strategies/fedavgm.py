"""FedAvgM: FedAvg with momentum at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_attention.core.options import POSITIVE, SHARE, option
from edge_attention.core.strategies.base import Strategy
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """`m = momentum m + u`, `p = p - lr m`; the paper's for lr 1.

    The paper tries momentum from 0 to 0.997; 0.9 is what most who compare with it take.
    """

    name: ClassVar[str] = "fedavgm"
    paper: ClassVar[str] = "Hsu, Qi and Brown (2019), arXiv:1909.06335"
    lr: float = option(1.0, POSITIVE)
    momentum: float = option(0.9, SHARE)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("m",)

    def step(self, count: int, p: Float32, u: Float32, *slots: Float32) -> tuple[Float32, ...]:
        m = np.float32(self.momentum) * slots[0] + u
        return p - np.float32(self.lr) * m, m
