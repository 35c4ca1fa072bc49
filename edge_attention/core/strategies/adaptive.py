"""What FedAdagrad, FedAdam and FedYogi share: algorithm 2 of adaptive federated optimization."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_attention.core.options import EPSILON, POSITIVE, SHARE, option
from edge_attention.core.strategies.base import Strategy
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Adaptive(Strategy):
    """`m = beta1 m + (1 - beta1) u`, `v` by strategy, `p = p - lr m / (sqrt(v) + tau)`.

    As in the paper: no bias correction, and v begins at `tau^2`. The paper tunes lr for each task, mostly
    between 0.01 and 1; 0.1 is this project's default.
    """

    paper: ClassVar[str] = (
        "Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan (2020), arXiv:2003.00295"
    )
    lr: float = option(0.1, POSITIVE)
    beta1: float = option(0.9, SHARE)
    tau: float = option(1e-3, EPSILON)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("m", "v")

    def initial(self, slot: str) -> float:
        return self.tau**2 if slot == "v" else 0.0

    def step(self, count: int, p: Float32, u: Float32, *slots: Float32) -> tuple[Float32, ...]:
        m, v = slots
        m = np.float32(self.beta1) * m + np.float32(1 - self.beta1) * u
        v = self.second_moment(v, u * u)
        root: Float32 = np.sqrt(v) + np.float32(self.tau)
        return p - np.float32(self.lr) * (m / root), m, v

    @abstractmethod
    def second_moment(self, v: Float32, square: Float32) -> Float32:
        """The new v from the old one and `u^2`: new, float32 [c]."""
