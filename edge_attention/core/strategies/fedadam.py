"""FedAdam: Adam at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_attention.core.options import SHARE, option
from edge_attention.core.strategies.adaptive import Adaptive
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """`v = beta2 v + (1 - beta2) u^2`; beta1 0.9 and beta2 0.99, as in the paper's experiments."""

    name: ClassVar[str] = "fedadam"
    beta2: float = option(0.99, SHARE)

    def second_moment(self, v: Float32, square: Float32) -> Float32:
        return np.float32(self.beta2) * v + np.float32(1 - self.beta2) * square
