"""The aggregator as plain JSON: sections of values by key, small enough to be taken twice a second."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client import Gauge

from aggregator.attention.contexts import Contexts, StoredContext
from aggregator.fleet.membership import Membership
from aggregator.http.routes import Status
from aggregator.http.troubles import Fleet, troubles
from aggregator.observe.activity import Activity, Query, Round, RunCurves, Span
from aggregator.observe.curve import Curve
from aggregator.observe.metrics import Metrics
from aggregator.training.runs import Runs
from aggregator.trust.revocations import RevokedNodes
from edge_attention.core.messages.attention import Context
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.messages.training import TrainingRun

Sections = dict[str, dict[str, Any]]

NODES = 1000
"""Nodes a page is told of; the live and those heard of last come first."""
CONTEXTS = 100
RUNS = 20
RANGES = 200
"""Token ranges of one node in one context; of more, the nearest are told as one."""
QUIET_SECONDS = 5.0
"""A node that is connected and silent for less is not silent: heartbeats are seconds apart."""


class Snapshots:
    """Takes snapshots.

    Args:
        facts: what does not change: the address nodes dial, whether there is TLS.
    """

    def __init__(
        self,
        membership: Membership,
        contexts: Contexts,
        runs: Runs,
        activity: Activity,
        status: Status,
        metrics: Metrics,
        facts: Mapping[str, Any],
        revoked: RevokedNodes = dict,
    ) -> None:
        self._membership, self._contexts = membership, contexts
        self._runs, self._activity = runs, activity
        self._status, self._metrics, self._facts = status, metrics, facts
        self._revoked = revoked
        self._software = version("edge-attention")
        self._described: dict[str, tuple[object, Context, dict[str, Any]]] = {}
        self._curves: dict[str, tuple[int, dict[str, Any]]] = {}

    def take(self) -> Sections:
        now, steady = time.time(), time.monotonic()
        nodes = sorted(
            self._membership.nodes(steady), key=lambda n: (n.state is NodeState.LOST, n.silent_seconds)
        )[:NODES]
        described = self._contexts_of(nodes)
        runs = self._runs.overview(RUNS)
        days = certificate_days(self._metrics, now)
        fleet = Fleet(
            now,
            nodes,
            [context for context, _ in described.values()],
            runs,
            self._activity.queries,
            self._activity.spans,
            self._software,
            float(int(self._status.started)),
            days,
            self._revoked(),
        )
        return {
            "aggregator": {"self": self._self()},
            "troubles": troubles(fleet),
            "nodes": self._nodes(nodes, described, now, days),
            "contexts": {name: told for name, (_, told) in described.items()},
            "runs": {run.id: _run(run) for run in runs},
            "curves": self._curves_of(runs),
            "queries": {str(query.number): _query(query) for query in self._activity.queries},
            "rounds": {f"{r.run}/{r.number}": _round(r) for r in self._activity.rounds},
            "spans": {str(int(span.start)): _span(span) for span in self._activity.spans},
        }

    def _self(self) -> dict[str, Any]:
        return {
            **self._facts,
            "software": self._software,
            "phase": self._status.phase.value,
            "started": self._status.started,
            "lease": self._membership.lease,
        }

    def _nodes(
        self,
        nodes: Iterable[Node],
        described: Mapping[str, tuple[Context, Mapping[str, Any]]],
        now: float,
        days: Mapping[str, float],
    ) -> dict[str, Any]:
        found = {node.name: _node(node, now) for node in nodes}
        for _, told in described.values():
            for name in told["holders"]:
                if name not in found:
                    # In an earlier life of the aggregator it was given tokens.
                    state = self._membership.state(name).value
                    found[name] = {"state": state, "seen": False, "since": int(self._status.started)}
        for name, left in days.items():
            if name in found:
                found[name]["days"] = round(left, 1)
        return found

    def _contexts_of(self, nodes: Iterable[Node]) -> dict[str, tuple[Context, dict[str, Any]]]:
        """Contexts by name as clients see them and as told here; made anew only when something changed."""
        members = self._membership.members()
        fleet = hash(tuple((m.name, m.epoch, m.live) for m in members))
        stored = self._contexts.list()[:CONTEXTS]
        for context in stored:
            key = (context.revision, fleet)
            known = self._described.get(context.id)
            if known is None or known[0] != key:
                described = self._contexts.describe(context)
                self._described[context.id] = (key, described, _context(context, described))
        kept = {context.id for context in stored}
        for id in [id for id in self._described if id not in kept]:
            del self._described[id]
        return {context.spec.name: self._described[context.id][1:] for context in stored}

    def _curves_of(self, runs: Iterable[TrainingRun]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for run in runs:
            curves = self._activity.runs.get(run.id)
            if curves is None:
                continue
            known = self._curves.get(run.id)
            if known is None or known[0] != curves.revision:
                known = self._curves[run.id] = (curves.revision, _run_curves(curves))
            found[run.id] = known[1]
        self._curves = {id: known for id, known in self._curves.items() if id in found}
        return found


def certificate_days(metrics: Metrics, now: float) -> dict[str, float]:
    """Days left of each certificate the aggregator counts on, by name; of a node by the node's."""
    gauge: Gauge | None = getattr(metrics, "certificate_expiry", None)  # there with TLS
    if gauge is None:
        return {}
    return {
        sample.labels["name"].removeprefix("node/"): (sample.value - now) / 86400.0
        for family in gauge.collect()
        for sample in family.samples
    }


def number(value: float | None, digits: int = 6) -> float | None:
    """A number as JSON has it, short: to `digits` digits; NaN and infinity as null."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def _node(node: Node, now: float) -> dict[str, Any]:
    live = node.state in (NodeState.READY, NodeState.DRAINING)
    silent = node.silent_seconds >= QUIET_SECONDS or not live
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


def _context(context: StoredContext, described: Context) -> dict[str, Any]:
    spec = described.spec
    held: dict[str, list[range]] = {}
    away: list[range] = []
    for segment in described.segments:
        for name in segment.holders:
            held.setdefault(name, []).append(segment.tokens)
        if not segment.live:
            away.append(segment.tokens)
    return {
        "tokens": described.tokens,
        "heads": [spec.query_heads, spec.key_heads],
        "dims": [spec.key_dim, spec.value_dim],
        "replicas": spec.replicas,
        "bytes": described.tokens * spec.token_bytes,
        "segments": len(described.segments),
        "holders": {name: ranges(parts, described.tokens) for name, parts in held.items()},
        "held": {name: sum(map(len, parts)) for name, parts in held.items()},
        "away": ranges(away, described.tokens),
    }


def ranges(parts: Iterable[range], total: int, limit: int = RANGES) -> list[list[int]]:
    """Ranges in order as [start, stop]; those that touch are one.

    Where there are more than `limit`, so are those with less than a `limit`th of `total` between them: a map
    has no room for more.
    """
    joined = _joined(parts, 0)
    return joined if len(joined) <= limit else _joined((range(*one) for one in joined), total // limit)


def _joined(parts: Iterable[range], gap: int) -> list[list[int]]:
    found: list[list[int]] = []
    for part in sorted(parts, key=lambda p: p.start):
        if found and part.start - found[-1][1] <= gap:
            found[-1][1] = max(found[-1][1], part.stop)
        else:
            found.append([part.start, part.stop])
    return found


def _run(run: TrainingRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state.value,
        "detail": run.detail,
        "round": run.round,
        "rounds": run.rounds,
        "version": run.version,
        "created": run.created,
        "waiting": run.waiting,
        "samples": dataclasses.asdict(run.samples) if run.samples is not None else None,
        "nodes": dict(list(run.nodes.items())[:NODES]),
    }


def _run_curves(curves: RunCurves) -> dict[str, Any]:
    return {name: _curve(getattr(curves, name)) for name in ("loss", "evaluation", "mass")}


def _curve(curve: Curve) -> dict[str, Any]:
    series = {name: [number(v) for v in values] for name, values in curve.series().items()}
    return {"x": curve.x, "y": series}


def _query(query: Query) -> dict[str, Any]:
    return {
        "time": query.time,
        "context": query.context,
        "queries": query.queries,
        "outcome": query.outcome,
        "tokens": query.tokens,
        "share": number(query.share),
        "bound": number(query.bound, 3),
        "seconds": {stage: number(value, 3) for stage, value in query.seconds.items()},
        "mass": _masses(query.mass),
        "why": list(query.why),
    }


def _round(done: Round) -> dict[str, Any]:
    return {
        "time": done.time,
        "run": done.run,
        "number": done.number,
        "version": done.version,
        "loss": number(done.loss),
        "seconds": number(done.seconds, 3),
        "nodes": done.nodes,
        "left_out": dict(list(done.left_out.items())[:50]),
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        **span.outcomes,
        "mean": number(span.seconds / span.answered, 3) if span.answered else None,
        "slowest": number(span.slowest, 3) if span.answered else None,
        "mass": _masses(span.mass),
    }


def _masses(mass: Mapping[str, float]) -> dict[str, float | None]:
    return {node: number(share, 3) for node, share in mass.items()}
