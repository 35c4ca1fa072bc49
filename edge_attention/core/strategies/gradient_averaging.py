"""Synchronous gradient averaging: the nodes' gradients, averaged, drive one optimizer at the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.optimizers import SGD, Optimizer
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.strategies.base import Strategy
from edge_attention.core.tensors import Float32


@dataclass(frozen=True)
class GradientAveraging(Strategy):
    """`p = optimizer(p, sum_k w_k g_k / sum_k w_k)`: FedSGD, with any optimizer of core/optimizers.py.

    With sample weights, the average is the gradient of all the batches together, so a run follows
    one machine's. Options: `optimizer`, its name (sgd), and that optimizer's own options.
    """

    name: ClassVar[str] = "gradient_averaging"
    paper: ClassVar[str] = (
        "McMahan, Moore, Ramage, Hampson and Agüera y Arcas (2016), arXiv:1602.05629: FedSGD"
    )
    gradients: ClassVar[bool] = True
    optimizer: Optimizer = field(default_factory=SGD)

    @classmethod
    def configured(cls, options: Mapping[str, Any]) -> Strategy:
        others = {name: value for name, value in options.items() if name != "optimizer"}
        optimizer = options.get("optimizer", SGD.name)
        if not isinstance(optimizer, str):
            raise InvalidArgument(
                f"option optimizer of strategy {cls.name} is {optimizer!r}; it must be an optimizer's name"
            )
        return cls(optimizer_from(optimizer, **others))

    def options(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.name, **dataclasses.asdict(self.optimizer)}

    @property
    def slots(self) -> tuple[str, ...]:
        return self.optimizer.slots

    def step(self, count: int, p: Float32, u: Float32, *slots: Float32) -> tuple[Float32, ...]:
        return self.optimizer.update(count, p, u, *slots)
