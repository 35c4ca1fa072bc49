"""What is wrong with a fleet, in words: pure, from what clients are told of it.

Each trouble has a key that lasts as long as it does, so that a page tells it once. Sentences carry no
seconds that count on; `since` is for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from aggregator.observe.page import Fleet, PagePart, Trouble
from aggregator.store import disk
from edge_attention.core.messages.fleet import NodeState
from edge_attention.trust.certificates import moment

LOST_SECONDS = 3600.0
"""A node lost for longer that holds nothing is no news any more."""
FULL = 0.9
"""Share of its memory limit from which a node is near it."""
CERTIFICATE_DAYS = 1.0
NAMED = 3


def troubles(fleet: Fleet, parts: Iterable[PagePart]) -> dict[str, dict[str, object]]:
    """What is wrong by key, the worst first, as JSON: of the fleet, then what `parts` of recipes tell."""
    parts = tuple(parts)
    found = {
        key: trouble
        for part in (
            _away(fleet, parts),
            _memory(fleet),
            _disk(fleet),
            _versions(fleet),
            _certificates(fleet),
        )
        for key, trouble in part
    }
    for told in parts:
        found |= told.troubles
    order = ("bad", "warn", "note")
    ranked = sorted(found.items(), key=lambda item: order.index(item[1].severity))
    return {key: {**asdict(trouble), "rank": rank} for rank, (key, trouble) in enumerate(ranked)}


def _away(fleet: Fleet, parts: Sequence[PagePart]) -> Iterator[tuple[str, Trouble]]:
    known = {node.name: node for node in fleet.nodes}
    lacking = {name for part in parts for name in part.lacks}
    for name in sorted(known.keys() | lacking):
        node = known.get(name)
        only = "".join(f" {part.lacks[name]}" for part in parts if name in part.lacks)
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


def _memory(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    for node in fleet.nodes:
        if node.state is not NodeState.LOST and node.memory > FULL * node.memory_limit > 0:
            text = f"Node {node.name} has stored {node.memory / node.memory_limit:.0%} of what it may."
            remedy = "Drop contexts nobody needs, give it a larger --memory-limit, or add a node."
            yield f"memory/{node.name}", Trouble("warn", text, remedy)


def _disk(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    free, size = fleet.disk
    if size and free < disk.FULL * size:
        severity = "bad" if free < disk.FULL * size / 2 else "warn"
        # Rounded: the sentence is news only where it says something else.
        text = f"The disk of the aggregator's state is {1 - free / size:.0%} full."
        remedy = (
            "Free space there: delete runs nobody needs (edge-attention runs delete), or start the "
            "aggregator with --keep-runs or --keep-run-bytes. Appends are refused before it is full."
        )
        yield "disk", Trouble(severity, text, remedy)


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
