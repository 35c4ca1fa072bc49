"""What all strategies share: the server's half of a federated algorithm, elementwise, in float32."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edge_attention.core.options import Configured, configure
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class Strategy(Configured, ABC):
    """The server's step, and what nodes are asked to do differently for it.

    Flags: `gradients`: nodes return the gradient of one batch and take no local step. `asynchronous`:
    updates of several versions meet in one fold. `controls`: nodes add `c - c_i` to their gradients.
    """

    kind: ClassVar[str] = "strategy"
    paper: ClassVar[str]
    gradients: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = False
    controls: ClassVar[bool] = False

    @classmethod
    def configured(cls, options: Mapping[str, Any]) -> Strategy:
        """This strategy with `options` by name; raises `InvalidArgument` for one it has not."""
        return configure(cls, options)

    def options(self) -> dict[str, Any]:
        """The options that `configured` takes, all written out."""
        return dataclasses.asdict(self)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the server's state: a tensor of each for every parameter, of its shape."""
        return ()

    def initial(self, slot: str) -> float:
        """What every element of `slot` is before the first step."""
        return 0.0

    @property
    def proximal(self) -> float:
        """mu: nodes add `mu (x - anchor)` to their gradients; 0 is none."""
        return 0.0

    @abstractmethod
    def step(self, count: int, p: Float32, u: Float32, *slots: Float32) -> tuple[Float32, ...]:
        """The new parameters and the new slots after going down the folded update `u`.

        `p`, `u` and each of `slots` (in the order of `self.slots`) are float32 [c], any piece of a
        parameter; `count` is the number of this step, from 1. Elementwise: however a parameter is cut into
        pieces, the bits are the same. New arrays; nothing passed in is changed. An overflow is left in the
        result for the caller to find.
        """

    def weight(self, samples: float, staleness: int) -> float:
        """What one update weighs, relative to the others of the fold.

        `samples`: the node's samples, or 1 for all where nodes weigh equally. `staleness`: versions between
        the parameters it was computed from and the current ones.
        """
        return samples

    def damping(self, samples: Sequence[float], staleness: Sequence[int]) -> float:
        """What the folded update is multiplied by before the step; 1 for all but stale ones."""
        return 1.0
