"""The aggregator as plain JSON: sections of values by key, small enough to be taken twice a second."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from aggregator.fleet.membership import Membership
from aggregator.http.routes import ServiceStatus
from aggregator.http.troubles import troubles
from aggregator.observe.metrics import Metrics
from aggregator.observe.page import Fleet, PagePart, RecipePage, Sections
from aggregator.trust.revocations import RevokedNodes
from edge_attention.core.errors import Internal
from edge_attention.core.messages.fleet import Node, NodeState

NODES = 1000
"""Nodes a page is told of; the live and those heard of last come first."""
TURNS = 12
"""Of a node's changes of state, the last so many."""
QUIET_SECONDS = 5.0
"""A node that is connected and silent for less is not silent: heartbeats are seconds apart. In a large fleet
they are further apart: there it is for less than QUIET_BEATS of them."""
QUIET_BEATS = 1.5


class Snapshots:
    """Takes snapshots.

    Args:
        pages: what recipes tell, by their names.
        facts: what does not change: the address nodes dial, whether there is TLS.
    """

    def __init__(
        self,
        membership: Membership,
        pages: Mapping[str, RecipePage],
        status: ServiceStatus,
        metrics: Metrics,
        facts: Mapping[str, Any],
        revoked: RevokedNodes = dict,
    ) -> None:
        self._membership = membership
        self._pages = pages
        self._status = status
        self._metrics = metrics
        self._facts = facts
        self._revoked = revoked
        self._software = version("edge-attention")
        self._epoch = time.time() - time.monotonic()
        """Of the steady clock, in seconds since 1970; found once, so that what was told stays as it is."""

    def take(self) -> Sections:
        now, steady = time.time(), time.monotonic()
        nodes = sorted(
            self._membership.nodes(steady), key=lambda n: (n.state is NodeState.LOST, n.silent_seconds)
        )[:NODES]
        days = certificate_days(self._metrics, now)
        fleet = Fleet(
            now,
            nodes,
            self._software,
            float(int(self._status.started)),
            days,
            self._revoked(),
            disk_of(self._metrics),
        )
        parts = {name: page(fleet) for name, page in self._pages.items()}
        found: Sections = {
            "aggregator": {"self": self._self()},
            "troubles": troubles(fleet, parts.values()),
            "nodes": self._nodes(nodes, parts.values(), now, days),
            "tiles": {
                name: dataclasses.asdict(part.tile) for name, part in parts.items() if part.tile is not None
            },
        }
        for part in parts.values():
            if taken := found.keys() & part.sections.keys():
                raise Internal(f"two parts of the page have a section {min(taken)!r}; name one otherwise")
            found |= part.sections
        return found

    def _self(self) -> dict[str, Any]:
        return {
            **self._facts,
            "software": self._software,
            "phase": self._status.phase.value,
            "started": self._status.started,
            "lease": self._membership.pace.lease,
        }

    def _nodes(
        self,
        nodes: Iterable[Node],
        parts: Iterable[PagePart],
        now: float,
        days: Mapping[str, float],
    ) -> dict[str, Any]:
        quiet = max(QUIET_SECONDS, QUIET_BEATS * self._membership.pace.heartbeat)
        found = {node.name: _node(node, now, quiet) for node in nodes}
        for name in sorted(frozenset[str]().union(*(part.holders for part in parts))):
            if name not in found:
                # In an earlier life of the aggregator it was given something to keep.
                state = self._membership.state(name).value
                found[name] = {"state": state, "seen": False, "since": int(self._status.started)}
        for name, turns in self._turns().items():
            if name in found:
                found[name]["turns"] = turns[-TURNS:]
        for name, left in days.items():
            if name in found:
                found[name]["days"] = round(left, 1)
        return found

    def _turns(self) -> dict[str, list[tuple[int, str, str]]]:
        """Changes of state that are remembered, by node, the oldest first: when, why, what it became."""
        found: dict[str, list[tuple[int, str, str]]] = {}
        for steady, (name, *why), _, state in self._membership.transitions:
            found.setdefault(name, []).append((int(steady + self._epoch), " ".join(why), state.value))
        return found


def certificate_days(metrics: Metrics, now: float) -> dict[str, float]:
    """Days left of each certificate the aggregator counts on, by name; of a node by the node's."""
    return {
        sample.labels["name"].removeprefix("node/"): (sample.value - now) / 86400.0
        for family in metrics.certificate_expiry.collect()
        for sample in family.samples
    }


def disk_of(metrics: Metrics) -> tuple[int, int]:
    """(bytes left, bytes in all) of the state folder's disk."""
    gauges = (metrics.disk_free, metrics.disk_size)
    free, size = (int(sample.value) for gauge in gauges for f in gauge.collect() for sample in f.samples)
    return free, size


def _node(node: Node, now: float, quiet: float) -> dict[str, Any]:
    live = node.state in (NodeState.READY, NodeState.DRAINING)
    silent = node.silent_seconds >= quiet or not live
    return {
        "state": node.state.value,
        "seen": True,
        "provider": node.provider.removesuffix("ExecutionProvider"),
        "threads": node.threads,
        "memory": node.memory,
        "limit": node.memory_limit,
        "tasks": node.tasks,
        "since": int(now - node.silent_seconds) if silent else None,
        "software": node.software,
        "datasets": [{"name": d.name, "rows": d.rows, "columns": len(d.columns)} for d in node.datasets],
        "releases": [release[:64] for release in node.releases[:50]],
    }
