"""What the aggregator counts, in Prometheus form. docs/metrics.md lists it all, with a query for each.

By part: `tasks` (metrics_tasks.py), `now` (metrics_nodes.py: what is looked up when somebody asks), and what
recipes add of their own. Labels are bounded: outcomes and stages are ours, nodes limited in number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prometheus_client import PlatformCollector

from aggregator.bounds.bounds import ALL
from aggregator.bounds.budget import Budget, Budgets
from aggregator.bounds.turns import Turns
from aggregator.fleet.membership import Member
from aggregator.observe.counts import RecipeCounts
from aggregator.observe.maker import SECONDS as SECONDS
from aggregator.observe.maker import Maker
from aggregator.observe.metrics_nodes import NodesNow, name_of, shown
from aggregator.observe.metrics_tasks import TaskMetrics
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.fleet import NodeState
from edge_attention.disk_room import room
from edge_attention.wire.methods import AnyMethod

PREFIX = "edge_attention_aggregator_"


class Metrics:
    """The aggregator's metrics: one registry a process; tests make their own."""

    def __init__(self) -> None:
        self.make = make = Maker(PREFIX)
        """With this a recipe makes its own."""
        self._recipes: list[RecipeCounts] = []
        self.registry = registry = make.registry
        PlatformCollector(registry=registry)
        self.nodes = make.gauge("nodes", "Nodes by lease state.", "state")
        for state in NodeState:
            self.nodes.labels(state.value)
        self.now = NodesNow(PREFIX)
        registry.register(self.now)
        self.registrations = make.counter(
            "registrations_total", "Node registrations by outcome: new, resumed, refused.", "outcome"
        )
        self.tasks = TaskMetrics(make)
        self.refusals = make.counter(
            "refusals_total", "Calls refused, by the error's name; and reports of nodes.", "reason"
        )
        self.bounds = make.counter(
            "bound_refusals_total",
            "Calls refused because a bound was reached, by the bound's name (docs/security.md lists them).",
            "bound",
        )
        for bound in ALL:
            # From zero on: of a counter that begins with 1 nobody sees the first refusal as an increase.
            self.bounds.labels(bound.name)
        self.bound_used = make.gauge("bound_used_ratio", "How much of a bound is used, by its name.", "bound")
        self.disk_free = make.gauge(
            "state_disk_free_bytes",
            "Bytes left on the disk of the state folder, fewer where it has fewer files (inodes) left; 0: it "
            "is read-only or gone.",
        )
        self.disk_size = make.gauge("state_disk_bytes", "Bytes in all of the disk of the state folder.")
        self.turns = make.gauge(
            "turns",
            "Calls by kind: that run, that wait for their turn, that may run at once.",
            "kind",
            "what",
        )
        self.grpc_connections = make.gauge("grpc_connections", "Connections to the gRPC port.")
        self.bytes = make.counter(
            "bytes_total",
            "Bytes exchanged with nodes by direction and kind (stream or bulk).",
            "direction", "kind",
        )  # fmt: skip
        for outcome in ("new", "resumed", "refused"):
            self.registrations.labels(outcome)
        ways, kinds = ("sent", "received"), ("stream", "bulk")
        self._moved = {(way, kind): self.bytes.labels(way, kind) for way in ways for kind in kinds}
        self.certificate_expiry = make.gauge(
            "certificate_expiry_timestamp_seconds",
            "When certificates end: the authority's, the server's, and peers' by role and name.",
            "name",
        )
        self.certificates_issued = make.counter(
            "certificates_issued_total", "Certificates issued, by role.", "role"
        )
        self.enrolments = make.counter("enrolments_total", "Enrolments by outcome: ok, refused.", "outcome")

    def add(self, counts: RecipeCounts) -> None:
        """Have a recipe's metrics told what happens outside it."""
        self._recipes.append(counts)

    def bound_refused(self, name: str) -> None:
        """A call was refused for the bound of that name."""
        self.bounds.labels(name).inc()

    def watch_bounds(self, budgets: Budgets, turns: Turns) -> None:
        """Show how full bounds are, and whose turn it is."""
        for bound in ALL:
            self.bound_used.labels(bound.name).set_function(partial(_used, budgets[bound]))
        for kind, gate in turns.kinds.items():
            for what in ("running", "waiting", "limit"):
                self.turns.labels(kind, what).set_function(partial(getattr, gate.admission, what))

    def watch_disk(self, folder: Path) -> None:
        """Show how much room the disk of the state folder has."""
        self.disk_free.set_function(lambda: room(folder)[0])
        self.disk_size.set_function(lambda: room(folder)[1])

    # What a server's edge tells (serving/rpc.py)

    def refused(self, error: EdgeAttentionError) -> None:
        """A call ends with an error."""
        self.refusals.labels(type(error).__name__).inc()

    def answered(self, method: AnyMethod, seconds: float) -> None:
        """A call was answered; decoding, encoding and sending took so long."""
        for recipe in self._recipes:
            recipe.answered(method, seconds)

    # What the link tells (engine/link.LinkObserver)

    def registered(self, outcome: str) -> None:
        """A node's registration was `outcome`: new, resumed or refused."""
        self.registrations.labels(outcome).inc()

    def damaged(self) -> None:
        """A contribution came damaged."""
        self.tasks.contribution("damaged")

    def moved(self, direction: str, kind: str, size: int) -> None:
        """Bytes went to a node (sent) or came from one (received), by `kind`: stream or bulk."""
        self._moved[direction, kind].inc(size)

    # Now and then

    def tick(self, members: Sequence[Member], now: float) -> None:
        """Count nodes by state; forget nodes that are gone."""
        states = [member.state for member in members]
        for state in NodeState:
            self.nodes.labels(state.value).set(states.count(state))
        self.tasks.count()
        nodes = set(map(name_of, shown(members, now)))
        for recipe in self._recipes:
            recipe.tick(nodes, now)


def _used(budget: Budget) -> float:
    return budget.used / budget.bound.total
