"""What is wrong with a fleet, in words: pure, from what clients are told of it.

Each trouble has a key that lasts as long as it does, so that a page tells it once. Sentences carry no
seconds that count on; `since` is for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from aggregator.observe.activity import Query, Span
from edge_attention.core.messages.attention import Context
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.messages.training import RunState, TrainingRun
from edge_attention.trust.certificates import moment

LOST_SECONDS = 3600.0
"""A node lost for longer that holds nothing is no news any more."""
FULL = 0.9
"""Share of its memory limit from which a node is near it."""
RECENT_SECONDS = 300.0
CERTIFICATE_DAYS = 1.0
NAMED = 3


@dataclass(frozen=True)
class Trouble:
    """`severity`: "bad" where answers or runs suffer, "warn" where they will, "note" otherwise.

    `since`: seconds since 1970. `remedy`: what to do; empty where it ends by itself.
    """

    severity: str
    text: str
    remedy: str = ""
    since: float | None = None


@dataclass(frozen=True)
class Fleet:
    """What there is to find trouble in. Times are seconds since 1970.

    `days`: of certificates, by node. `revoked`: when a node's certificate was, by node.
    """

    now: float
    nodes: Sequence[Node]
    contexts: Sequence[Context]
    runs: Sequence[TrainingRun]
    queries: Iterable[Query]
    spans: Iterable[Span]
    software: str
    started: float
    days: Mapping[str, float]
    revoked: Mapping[str, float] = field(default_factory=dict)


def troubles(fleet: Fleet) -> dict[str, dict[str, object]]:
    """What is wrong by key, the worst first, as JSON."""
    found = {
        key: trouble
        for part in (_away, _memory, _versions, _certificates, _runs, _answers)
        for key, trouble in part(fleet)
    }
    order = ("bad", "warn", "note")
    ranked = sorted(found.items(), key=lambda item: order.index(item[1].severity))
    return {key: {**asdict(trouble), "rank": rank} for rank, (key, trouble) in enumerate(ranked)}


def _away(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    known = {node.name: node for node in fleet.nodes}
    lacks = _only_there(fleet.contexts)
    for name in sorted(known.keys() | lacks.keys()):
        node, lacking = known.get(name), lacks.get(name, {})
        tokens = " and ".join(f"{count:,} tokens of {context!r}" for context, count in lacking.items())
        only = (
            f" Nobody else that is here holds its {tokens}: answers over them are partial." if tokens else ""
        )
        key = f"node/{name}"
        since = fleet.started if node is None else float(int(fleet.now - node.silent_seconds))
        away = node is None or node.state in (NodeState.LOST, NodeState.SUSPECT)
        if away and name in fleet.revoked:
            if only or (node is not None and node.silent_seconds < LOST_SECONDS):
                at = moment(fleet.revoked[name])
                text = f"Node {name} is shut out: its certificate was revoked at {at} by an operator.{only}"
                yield key, Trouble("bad" if only else "note", text, _LET_IN.format(name=name), since)
            continue
        if node is None:
            text = f"Node {name} has not come since the aggregator started.{only}"
            yield key, Trouble("bad", text, _START.format(name=name), since)
            continue
        if node.state is NodeState.LOST and (only or node.silent_seconds < LOST_SECONDS):
            severity = "bad" if only else "warn"
            yield key, Trouble(severity, f"Node {name} is lost.{only}", _START.format(name=name), since)
        elif node.state is NodeState.SUSPECT:
            text = f"The connection to node {name} broke; it counts as lost when its lease ends.{only}"
            yield key, Trouble("warn", text, "It comes back by itself if it can.", since)
        elif node.state is NodeState.DRAINING:
            yield key, Trouble("note", f"Node {name} finishes what it has and leaves.")


_START = (
    "See that the box is on and reaches the aggregator, then start edge-node --name {name} there; with the "
    "same --store it has its tokens again."
)
_LET_IN = (
    "To let it in again: edge-aggregator token create --role node --name {name}, and start it with that as "
    "its --join-token; if it is gone for good, append its tokens elsewhere."
)


def _only_there(contexts: Iterable[Context]) -> dict[str, dict[str, int]]:
    """Node -> context -> tokens that no live node holds and it does."""
    found: dict[str, dict[str, int]] = {}
    for context in contexts:
        for segment in context.segments:
            if not segment.live:
                for name in segment.holders:
                    counts = found.setdefault(name, {})
                    counts[context.spec.name] = counts.get(context.spec.name, 0) + len(segment.tokens)
    return found


def _memory(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    for node in fleet.nodes:
        if node.state is not NodeState.LOST and node.memory > FULL * node.memory_limit > 0:
            text = f"Node {node.name} has stored {node.memory / node.memory_limit:.0%} of what it may."
            remedy = "Drop contexts nobody needs, give it a larger --memory-limit, or add a node."
            yield f"memory/{node.name}", Trouble("warn", text, remedy)


def _versions(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    other = [n for n in fleet.nodes if n.state is not NodeState.LOST and n.software != fleet.software]
    if other:
        said = ", ".join(f"{node.name} ({node.software or 'unknown'})" for node in other[:NAMED])
        more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
        text = f"Not every node has the aggregator's release, {fleet.software}: {said}{more}."
        yield "versions", Trouble("warn", text, "Install the same release everywhere.")


def _certificates(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    for name, days in sorted(fleet.days.items()):
        if days < 0:
            remedy = "Start the node again with a new --join-token."
            yield f"certificate/{name}", Trouble("bad", f"The certificate of {name} has ended.", remedy)


def _runs(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    for run in fleet.runs:
        if run.state is RunState.RUNNING and run.waiting:
            whole = " waits for " in run.waiting
            text = f"Run {run.id}: {run.waiting}." if whole else f"Run {run.id} waits for {run.waiting}."
            yield f"run/{run.id}", Trouble("warn", text)
        elif run.state is RunState.FAILED and run.created > fleet.started:
            remedy = f"When that is put right: edge-attention train resume {run.id}"
            yield f"run/{run.id}", Trouble("bad", f"Run {run.id} failed: {run.detail}", remedy)


def _answers(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    recent = [span for span in fleet.spans if fleet.now - span.start < RECENT_SECONDS]
    counts = {outcome: sum(span.outcomes[outcome] for span in recent) for outcome in ("partial", "failed")}
    total = sum(sum(span.outcomes.values()) for span in recent)
    last = {query.outcome: query for query in fleet.queries}
    for outcome, count in counts.items():
        if count and outcome in last:
            query = last[outcome]
            clock = time.strftime("%H:%M:%S", time.localtime(query.time))
            why = f" The last, at {clock}: {'; '.join(query.why[:NAMED])}." if query.why else ""
            kind = "were partial" if outcome == "partial" else "failed"
            text = f"{count:,} of {total:,} queries in the last five minutes {kind}.{why}"
            yield f"answers/{outcome}", Trouble("warn", text)
