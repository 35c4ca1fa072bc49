"""Strategies: what the aggregator does with the folded update of a round, one small file each.

    strategy = from_config("fedadam", lr=0.01)
    p, m, v = strategy.step(1, p, u, *(np.full_like(p, strategy.initial(slot)) for slot in strategy.slots))

To add one, write a frozen dataclass in a file of its own, name its paper there, and list it below.
"""

from __future__ import annotations

from typing import Any

from edge_attention.core.options import find
from edge_attention.core.strategies.base import Strategy
from edge_attention.core.strategies.fedadagrad import FedAdagrad
from edge_attention.core.strategies.fedadam import FedAdam
from edge_attention.core.strategies.fedavg import FedAvg
from edge_attention.core.strategies.fedavgm import FedAvgM
from edge_attention.core.strategies.fedbuff import FedBuff
from edge_attention.core.strategies.fedprox import FedProx
from edge_attention.core.strategies.fedyogi import FedYogi
from edge_attention.core.strategies.gradient_averaging import GradientAveraging
from edge_attention.core.strategies.scaffold import Scaffold

__all__ = [
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedProx",
    "FedYogi",
    "GradientAveraging",
    "Scaffold",
    "Strategy",
    "from_config",
    "to_config",
]

_ALL: tuple[type[Strategy], ...] = (
    GradientAveraging,
    FedAvg,
    FedAvgM,
    FedAdam,
    FedAdagrad,
    FedYogi,
    FedProx,
    Scaffold,
    FedBuff,
)
_BY_NAME = {strategy.name: strategy for strategy in _ALL}


def from_config(name: str, /, **options: float | bool | str) -> Strategy:
    """The strategy `name` with these options, the others at the defaults its file gives reasons for.

    Raises `InvalidArgument` for a name or an option that does not exist (it lists those that do) and for
    a value out of range.
    """
    return find(_BY_NAME, "strategy", name).configured(options)


def to_config(strategy: Strategy) -> dict[str, Any]:
    """`{"name": ..., "options": {...}}`, all options written out; ready for JSON and for `from_config`."""
    return {"name": strategy.name, "options": strategy.options()}
