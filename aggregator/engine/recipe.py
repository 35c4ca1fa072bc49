"""What a recipe is to the service, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.bounds.budget import Budgets
from aggregator.bounds.turns import Turns
from aggregator.engine.bulk import Bulk
from aggregator.engine.link import FleetLink
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Member, Membership
from aggregator.observe.metrics import Metrics
from aggregator.observe.page import RecipePage
from aggregator.store.retention import Retention
from aggregator.store.state import State
from aggregator.trust.endpoint import Endpoint


@dataclass(frozen=True)
class Engine:
    """What recipes work with.

    Attributes:
        metrics: a recipe makes its own with `metrics.make`; `metrics.add` has them told what else happens.
        patience: seconds to wait for a node, unless the request says otherwise.
        plan_anew: seconds after which a model is planned without a node that is gone; 0: never.
        retention: what is kept of runs that have ended.
        http_port: where metrics and the page are served; 0: nowhere, or not yet.
    """

    state: State
    membership: Membership
    trips: Trips
    bulk: Bulk
    link: FleetLink
    metrics: Metrics
    budgets: Budgets
    turns: Turns
    patience: float
    plan_anew: float
    http_port: Callable[[], int]
    retention: Retention = field(default_factory=Retention)


@dataclass(frozen=True)
class Recipe:
    """One recipe, as the server adds it to the others.

    Attributes:
        name: what its tile on the page is called; no other's.
        endpoints: the methods it serves, each with the role it needs and its line in the audit log.
        page: tells its part of the page.
        script: the JavaScript module that draws that part (aggregator/http/page/app.js says what it exports).
        unneeded: node that has registered -> names of what it keeps for this recipe and nobody needs.
        only_on: node's name -> what of this recipe is on that node alone, a few words each.
        forget: node's name; the node is forgotten: what other nodes hold, too, is no longer said to be on it.
        recall: reads what an earlier life left, in a thread, before anything is served.
        resume: goes on with that, once everything is served.
        close: ends what goes on; awaited before the server stops.
        offers: what doors above recipes serve in other forms than ours (aggregator/http/doors.py).
    """

    name: str
    endpoints: tuple[Endpoint, ...] = ()
    page: RecipePage | None = None
    script: Path | None = None
    unneeded: Callable[[Member], tuple[str, ...]] | None = None
    only_on: Callable[[str], Sequence[str]] | None = None
    forget: Callable[[str], Awaitable[None]] | None = None
    recall: Callable[[], None] | None = None
    resume: Callable[[], None] | None = None
    close: Callable[[], Awaitable[None]] | None = None
    offers: tuple[object, ...] = ()
