"""FedAvg: the average of what the nodes' local training made of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_attention.core.options import POSITIVE, option
from edge_attention.core.strategies.base import Strategy
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class FedAvg(Strategy):
    """`p = p - lr u`, `u = sum_k n_k (p - x_k) / sum_k n_k`: for lr 1, the paper's `p = sum n_k x_k / n`.

    Other server learning rates are those of Reddi et al. (arXiv:2003.00295), algorithm 1.
    """

    name: ClassVar[str] = "fedavg"
    paper: ClassVar[str] = "McMahan, Moore, Ramage, Hampson and Agüera y Arcas (2016), arXiv:1602.05629"
    lr: float = option(1.0, POSITIVE)

    def step(self, count: int, p: Float32, u: Float32, *slots: Float32) -> tuple[Float32, ...]:
        return (p - np.float32(self.lr) * u,)
