"""SCAFFOLD: control variates take out of a node's steps what its own data would make them drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.strategies.fedavg import FedAvg
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """Nodes step down `g_i + c - c_i`; then `c_i` and `c` follow (option II of the paper's algorithm 1).

    The server keeps c and every c_i, all zero at first, and sends a node `c - c_i`: a node keeps nothing.
    All nodes weigh the same, whatever their samples, as in the paper: c, a plain mean over all nodes, pulls
    towards the minimum of the plain mean of their losses. The server's lr is 1, as in the paper.
    """

    name: ClassVar[str] = "scaffold"
    paper: ClassVar[str] = "Karimireddy, Kale, Mohri, Reddi, Stich and Suresh (2019), arXiv:1910.06378"
    controls: ClassVar[bool] = True

    def weight(self, samples: float, staleness: int) -> float:
        return 1.0


def next_control(own: Float32, c: Float32, u: Float32, steps: int, lr: float) -> Float32:
    """`c_i - c + u / (steps lr)`: a node's new control, after `steps` local steps of plain SGD at `lr`.

    `own` (c_i), `c` and `u` are float32 [c], any piece of a parameter; so is the result. Elementwise.

    Raises:
        InvalidArgument: `steps` is below 1, or `lr` is not above 0.
    """
    if steps < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidArgument(
            f"a control needs 1 local step or more at lr above 0, not {steps} at {lr}; set local.steps and lr"
        )
    return own - c + np.float32(1 / (steps * lr)) * u


def next_global_control(c: Float32, changes: NDArray[Any], nodes: int) -> Float32:
    """`c + changes / nodes`: the server's new control; it stays the mean of all c_i.

    `changes` float64 [c] is the sum of `c_i' - c_i` over the nodes that took part; `nodes` counts all of
    the run's, those that did not take part too. Elementwise.
    """
    return np.asarray(c + changes / nodes, np.float32)
