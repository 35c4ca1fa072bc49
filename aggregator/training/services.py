"""What every training run works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.activity import Activity
from aggregator.bulk import Bulk
from aggregator.dispatch import Dispatcher
from aggregator.link import Link
from aggregator.membership import Membership
from aggregator.metrics import Metrics
from aggregator.parameters import ParameterStore
from aggregator.state import State


@dataclass(frozen=True)
class Services:
    """Parts of the aggregator. `patience`: seconds a run waits for a node unless its job says otherwise."""

    state: State
    parameters: ParameterStore
    membership: Membership
    dispatcher: Dispatcher
    bulk: Bulk
    link: Link
    metrics: Metrics
    patience: float
    activity: Activity = field(default_factory=Activity)
