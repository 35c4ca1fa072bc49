"""The parts of the aggregator that a training run works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.engine.bulk import Bulk
from aggregator.engine.link import FleetLink
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Membership
from aggregator.inference.runner import ModelRunner
from aggregator.store.parameters import ParameterStore
from aggregator.store.state import State
from aggregator.training.activity import RunActivity
from aggregator.training.metrics import RunMetrics
from aggregator.training.planner import MakePlan, make


@dataclass(frozen=True)
class Services:
    """What is handed to every training run; made once, by the recipe.

    Attributes:
        patience: seconds that a run waits for a node, unless its job says otherwise.
        runner: takes requests through models that are cut; of training alone.
        activity: what has happened lately, for the page.
        plan: makes jobs' plans, by default in a process of its own.
    """

    state: State
    parameters: ParameterStore
    membership: Membership
    trips: Trips
    bulk: Bulk
    link: FleetLink
    metrics: RunMetrics
    patience: float
    runner: ModelRunner
    activity: RunActivity = field(default_factory=RunActivity)
    plan: MakePlan = make
