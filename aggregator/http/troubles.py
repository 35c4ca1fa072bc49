"""What is wrong with a fleet, in words: pure, from what clients are told of it.

Each trouble has a key that lasts as long as it does, so that a page tells it once. Sentences carry no
seconds that count on; `since` is for that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from aggregator.observe.page import Fleet, Lack, PagePart, Trouble
from aggregator.store import disk
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.sentence import Sentence
from edge_attention.trust.certificates import moment

LOST_SECONDS = 3600.0
"""A node lost for longer that holds nothing is no news any more."""
FULL = 0.9
"""Share of its memory limit from which a node is near it."""
NAMED = 3
NODES_NAMED = 6
"""Of the nodes that one sentence is about."""


def troubles(fleet: Fleet, parts: Iterable[PagePart]) -> dict[str, dict[str, object]]:
    """What is wrong by key, the worst first, then what was, as JSON: of the fleet, then what recipes tell.

    Nodes that have one trouble for one cause have one sentence.
    """
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
    away = {name for key, one in found.items() if key.startswith("nodes/") for name in one.nodes}
    for told in parts:
        found |= {key: replace(one, text=_once(one.text, away)) for key, one in told.troubles.items()}
    order = ("bad", "warn", "note")
    ranked = sorted(found.items(), key=lambda item: (item[1].over, order.index(item[1].severity)))
    return {key: {**asdict(trouble), "rank": rank} for rank, (key, trouble) in enumerate(ranked)}


def _once(text: str, away: Collection[str]) -> str:
    """A sentence of what comes of it, without why nodes are away of which another sentence tells."""
    return text.without(away) if isinstance(text, Sentence) else text


@dataclass(frozen=True)
class _Cause:
    """Why nodes are away: how it is said of one, of several, and what to do about one, about several.

    `{node}` is the name of the one, `{nodes}` the names, `{at}` when the last certificate was revoked.
    """

    severity: str
    one: str
    more: str
    remedy: str = ""
    remedies: str = ""


_START = (
    "See that the box is on and reaches the aggregator, then start edge-node --name {node} there; with the "
    "same --store it has its tokens again.",
    "Look first at what they share, as a network or a switch; then see that each box is on and start "
    "edge-node --name NAME there: with the same --store it has its tokens again.",
)
_LET_IN = (
    "To let it in again: edge-aggregator token create --role node --name {node}, and start it with that as "
    "its --join-token; if it is gone for good, append its tokens elsewhere.",
    "To let one in again: edge-aggregator token create --role node --name NAME, and start it with that as "
    "its --join-token; append elsewhere the tokens of those that are gone for good.",
)
_SHUT_OUT = (
    "Node {node} is shut out: its certificate was revoked at {at} by an operator.",
    "Nodes {nodes} are shut out: their certificates were revoked by an operator, the last at {at}.",
)
_LOST = ("Node {node} is lost.", "Nodes {nodes} are lost.")
_CAUSES = {
    "nodes/absent": _Cause(
        "bad",
        "Node {node} has not come since the aggregator started.",
        "Nodes {nodes} have not come since the aggregator started.",
        *_START,
    ),
    "nodes/missed": _Cause("bad", *_LOST, *_START),
    "nodes/shut-out-missed": _Cause("bad", *_SHUT_OUT, *_LET_IN),
    "nodes/lost": _Cause("warn", *_LOST, *_START),
    "nodes/suspect": _Cause(
        "warn",
        "The connection to node {node} broke; it counts as lost when its lease ends.",
        "The connections to nodes {nodes} broke; each counts as lost when its lease ends.",
        "It comes back by itself if it can.",
        "They come back by themselves if they can.",
    ),
    "nodes/shut-out": _Cause("note", *_SHUT_OUT, *_LET_IN),
    "nodes/draining": _Cause(
        "note",
        "Node {node} finishes what it has and leaves.",
        "Nodes {nodes} finish what they have and leave.",
    ),
}


def _away(fleet: Fleet, parts: Sequence[PagePart]) -> Iterator[tuple[str, Trouble]]:
    known = {node.name: node for node in fleet.nodes}
    lacks = tuple(lack for part in parts for lack in part.lacks)
    missed = frozenset[str]().union(*(lack.holders for lack in lacks))
    of: dict[str, dict[str, float | None]] = {}
    for name in sorted(known.keys() | missed):
        key = _cause(known.get(name), name in missed, name in fleet.revoked)
        if key:
            of.setdefault(key, {})[name] = _since(known.get(name), fleet, key)
    for key, found in of.items():
        cause, names, several = _CAUSES[key], tuple(found), len(found) > 1
        revoked = [fleet.revoked[name] for name in names if name in fleet.revoked]
        words = {"node": names[0], "nodes": some(names, NODES_NAMED), "at": moment(max(revoked, default=0.0))}
        text = (cause.more if several else cause.one).format(**words) + _missing(found.keys(), lacks)
        remedy = (cause.remedies if several else cause.remedy).format(**words)
        since = [one for one in found.values() if one is not None]
        yield key, Trouble(cause.severity, text, remedy, min(since, default=None), nodes=names)


def _cause(node: Node | None, missed: bool, revoked: bool) -> str:
    """The key of a node's trouble; empty: it has none. None: it has not come since the aggregator started."""
    if node is not None and node.state is NodeState.DRAINING:
        return "nodes/draining"
    if node is not None and node.state not in (NodeState.LOST, NodeState.SUSPECT):
        return ""
    old = node is not None and node.state is NodeState.LOST and node.silent_seconds >= LOST_SECONDS
    if old and not missed:
        return ""
    if revoked:
        return "nodes/shut-out-missed" if missed else "nodes/shut-out"
    if node is None:
        return "nodes/absent"
    if node.state is NodeState.SUSPECT:
        return "nodes/suspect"
    return "nodes/missed" if missed else "nodes/lost"


def _since(node: Node | None, fleet: Fleet, key: str) -> float | None:
    if key == "nodes/draining":
        return None
    return fleet.started if node is None else float(int(fleet.now - node.silent_seconds))


def _missing(names: Iterable[str], lacks: Iterable[Lack]) -> str:
    """A sentence for each consequence of what nobody that is here holds and these nodes do; may be empty."""
    away = frozenset(names)
    counts: dict[str, dict[str, int]] = {}
    for lack in lacks:
        if lack.holders & away:
            of = counts.setdefault(lack.so, {})
            of[lack.what] = of.get(lack.what, 0) + lack.count
    said = ""
    for so, things in counts.items():
        listed = some([f"{count:,} {what}" if count else what for what, count in things.items()], NAMED)
        said += f" Nobody else that is here holds {'its' if len(away) == 1 else 'their'} {listed}"
        said += f": {so}." if so else "."
    return said


def some(items: Sequence[str], limit: int) -> str:
    """The first few of a list in words.

    >>> some(["a", "b", "c"], 3), some(["a", "b", "c", "d"], 2)
    ('a, b and c', 'a, b and 2 more')
    """
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join((", ".join(items[:-1]), items[-1])) if len(items) > 1 else "".join(items)


def _memory(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    near = [
        node
        for node in sorted(fleet.nodes, key=lambda node: node.name)
        if node.state is not NodeState.LOST and node.memory > FULL * node.memory_limit > 0
    ]
    if not near:
        return
    names = tuple(node.name for node in near)
    if len(near) == 1:
        text = f"Node {names[0]} has stored {near[0].memory / near[0].memory_limit:.0%} of what it may."
        remedy = "Drop contexts nobody needs, give it a larger --memory-limit, or add a node."
    else:
        text = f"Nodes {some(names, NODES_NAMED)} have each stored over {FULL:.0%} of what they may."
        remedy = "Drop contexts nobody needs, give them a larger --memory-limit, or add a node."
    yield "memory", Trouble("warn", text, remedy, nodes=names)


def _disk(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    free, size = fleet.disk
    if size and free < disk.FULL * size:
        severity = "bad" if free < disk.FULL * size / 2 else "warn"
        # Rounded: the sentence is news only where it says something else.
        text = f"The disk of the aggregator's state is {1 - free / size:.0%} full."
        remedy = (
            "Free space there: delete runs nobody needs (edge-attention runs delete), or start the "
            "aggregator with --keep-runs or --keep-run-bytes. Appends are refused before it is full. Where "
            "df -h shows room it is files that are used up (df -i), or the folder is gone or read-only."
        )
        yield "disk", Trouble(severity, text, remedy)


def _versions(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    other = [n for n in fleet.nodes if n.state is not NodeState.LOST and n.software != fleet.software]
    if other:
        said = some([f"{node.name} ({node.software or 'unknown'})" for node in other], NAMED)
        text = f"Not every node has the aggregator's release, {fleet.software}: {said}."
        names = tuple(node.name for node in other)
        yield "versions", Trouble("warn", text, "Install the same release everywhere.", nodes=names)


_OWN = {
    "server": "The aggregator's log says why it was not renewed. One of your own (--tls-certificate) is "
    "replaced by putting the new one in its place.",
    "authority": "Every node has to enrol again under a new one: see EdgeCertificateEnding in the runbook.",
}


def _certificates(fleet: Fleet) -> Iterator[tuple[str, Trouble]]:
    ended = sorted(name for name, days in fleet.days.items() if days < 0)
    for name in ended:
        if name in _OWN:
            text = f"The certificate of the {name} has ended."
            yield f"certificate/{name}", Trouble("bad", text, _OWN[name])
    names = tuple(name for name in ended if name not in _OWN)
    if len(names) == 1:
        remedy = "Start it again with a new --join-token: edge-aggregator token create makes one."
        yield "certificates", Trouble("bad", f"The certificate of {names[0]} has ended.", remedy, nodes=names)
    elif names:
        text = f"The certificates of {some(names, NODES_NAMED)} have ended."
        remedy = (
            "Start each again with a new --join-token of its own: edge-aggregator token create makes one."
        )
        yield "certificates", Trouble("bad", text, remedy, nodes=names)
