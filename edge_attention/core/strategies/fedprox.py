"""FedProx: FedAvg whose nodes are held near the parameters they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_attention.core.options import NOT_NEGATIVE, option
from edge_attention.core.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """Nodes minimise `f_k(x) + mu/2 |x - p|^2`; the server's step is FedAvg's.

    The paper tunes mu among 0.001, 0.01, 0.1 and 1; 0.01 is this project's default.
    """

    name: ClassVar[str] = "fedprox"
    paper: ClassVar[str] = "Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith (2018), arXiv:1812.06127"
    mu: float = option(0.01, NOT_NEGATIVE)

    @property
    def proximal(self) -> float:
        return self.mu
