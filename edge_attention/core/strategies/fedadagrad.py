"""FedAdagrad: Adagrad at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_attention.core.options import SHARE, option
from edge_attention.core.strategies.adaptive import Adaptive
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class FedAdagrad(Adaptive):
    """`v = v + u^2`; beta1 is 0, as in the paper's experiments."""

    name: ClassVar[str] = "fedadagrad"
    beta1: float = option(0.0, SHARE)

    def second_moment(self, v: Float32, square: Float32) -> Float32:
        return v + square
