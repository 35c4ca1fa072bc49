"""Which nodes train: those the job names, or all that have its dataset, once they are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aggregator.fleet.columns import TableView, own_dataset
from aggregator.training.federated.plan import FederatedPlan, view_of
from aggregator.training.known_data import KnownData, declared
from aggregator.training.services import Services
from edge_attention.core.errors import DeadlineExceeded
from edge_attention.core.messages.training import FederatedJob


@dataclass(frozen=True)
class Arrived:
    """The nodes that train: the rows of each, by name, how they are read, and what is known of them."""

    rows: dict[str, int]
    view: TableView
    data: tuple[KnownData, ...]


async def arrivals(
    job: FederatedJob,
    plan: FederatedPlan,
    services: Services,
    patience: float,
    say: Callable[[str, int], None],
) -> Arrived:
    """The nodes of the run, once they are there.

    `say` is told what is waited for, and how many lack.

    Raises:
        DeadlineExceeded: they do not come within `patience` seconds.
        NotFound, InvalidArgument: a node's dataset does not fit the model.
    """
    membership = services.membership
    if job.nodes:

        def tell(sentence: str) -> None:
            say(sentence, sum(not membership.live(node) for node in job.nodes) if sentence else 0)

        if not await services.trips.all_live(job.nodes, patience, tell):
            away = [n for n in job.nodes if not membership.live(n)]
            raise DeadlineExceeded(
                f"node {', '.join(away)} did not come within {patience:.0f} s; start it, and the run anew"
            )
        names = job.nodes
    else:
        until, least = time.monotonic() + patience, max(1, job.selection.minimum)
        while len(names := _with_dataset(job, services)) < least:
            left = until - time.monotonic()
            if left < 0:
                raise DeadlineExceeded(
                    f"{len(names)} nodes have a dataset {job.dataset!r}, {least} are needed; start nodes "
                    f"with --data {job.dataset}=FILE, and the run anew"
                )
            say(f"nodes with a dataset {job.dataset!r}: {len(names)} of {least} there", least - len(names))
            await asyncio.sleep(min(0.2, left + 0.01))
        say("", 0)
    nodes = {name: membership.require_live(name).register.datasets for name in sorted(names)}
    view = view_of(plan, job, nodes)
    rows = {name: own_dataset(name, job.dataset, datasets).rows for name, datasets in nodes.items()}
    data = [one for name, datasets in nodes.items() for one in declared(name, datasets, [job.dataset])]
    return Arrived(rows, view, tuple(data))


def _with_dataset(job: FederatedJob, services: Services) -> tuple[str, ...]:
    members = (m.register for m in services.membership.members() if m.live)
    return tuple(m.name for m in members if any(d.name == job.dataset for d in m.datasets))
