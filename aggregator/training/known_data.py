"""Whether nodes still have the data that a run began with: what they declare of it, and no word more.

Of each dataset that is its rows, and a digest with a key of its node's alone (edge_node/data/digests.py), of
which equality is all that it tells. A node without --store and --id-key declares none, and one whose store
was emptied has another key: of those their rows are all that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aggregator.fleet.membership import Membership
from aggregator.store.state import State
from edge_attention.core.data_digests import tell_other_data
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.link import Dataset

__all__ = [
    "KnownData",
    "by_rows_alone",
    "declared",
    "kept",
    "known_from",
    "news_since",
    "other_now",
    "require_same",
]

NAMED = 8
"""Datasets that a note names."""


@dataclass(frozen=True)
class KnownData:
    """What a node has declared of one of its datasets. `digest`: empty where it says none."""

    node: str
    dataset: str
    rows: int
    digest: str = ""

    def differs(self, now: KnownData) -> str:
        """What of `now`, the same dataset later, is another, in words; empty: nothing, as far as it tells."""
        if now.rows != self.rows:
            return f"it has {now.rows:,} rows, and had {self.rows:,}"
        if tell_other_data(self.digest, now.digest):
            return "it has as many rows, and other values or columns"
        return ""


def declared(node: str, datasets: Iterable[Dataset], names: Iterable[str]) -> tuple[KnownData, ...]:
    """What `node` declares of those of its `datasets` that are named."""
    wanted = frozenset(names)
    return tuple(KnownData(node, one.name, one.rows, one.digest) for one in datasets if one.name in wanted)


def known_from(zeroth: Mapping[str, Any]) -> tuple[KnownData, ...]:
    """What nodes declared when the run of this record 0 began; nothing of a run that an earlier release
    began."""
    of_groups = (group.get("data", ()) for group in zeroth.get("groups", ()))
    return tuple(KnownData(**one) for own in (zeroth.get("data", ()), *of_groups) for one in own)


def kept(data: Iterable[KnownData]) -> list[dict[str, Any]]:
    """The same for record 0, as `known_from` reads it."""
    return [asdict(one) for one in data]


def require_same(known: Iterable[KnownData], membership: Membership) -> None:
    """Refuse what is no longer what it was, of nodes that are here.

    Raises:
        FailedPrecondition: it names the dataset and its node, and says what to do.
    """
    for was in known:
        if other := other_now(was, membership):
            raise FailedPrecondition(
                f"{other}; give the node its file back and resume the run, or start a new one"
            )


def other_now(was: KnownData, membership: Membership) -> str:
    """That the node's dataset is no longer what `was` says, in a sentence; empty: it is, or nothing tells."""
    member = membership.get(was.node)
    for now in declared(was.node, member.register.datasets if member is not None else (), [was.dataset]):
        if why := was.differs(now):
            what = f"dataset {was.dataset!r} of node {was.node!r}"
            return f"{what} is not the one this run began with: {why}"
    return ""


def by_rows_alone(data: Iterable[KnownData]) -> str:
    """A note on nodes of whose data the rows are all that is known; empty: there is none."""
    nodes = list(dict.fromkeys(one.node for one in data if not one.digest))
    if not nodes:
        return ""
    more = f" and {len(nodes) - NAMED:,} more" if len(nodes) > NAMED else ""
    return (
        f"the data of {', '.join(nodes[:NAMED])}{more} is known by its number of rows alone, and another "
        "file of as many would not be noticed: start nodes with --store DIR, or with --id-key FILE"
    )


def news_since(state: State, run: str, data: Iterable[KnownData]) -> str:
    """A note where datasets are not what they were in the run of this name before; empty: there is nothing
    to say. Blocks."""
    earlier = state.run_before(run)
    zeroth = state.record(earlier, 0) if earlier is not None else None
    if zeroth is None:
        return ""
    before = {(one.node, one.dataset): one for one in known_from(zeroth)}
    found = []
    for now in data:
        was = before.get((now.node, now.dataset))
        if was is not None and (why := was.differs(now)):
            found.append(f"{now.dataset!r} of node {now.node!r}: {why}")
    if not found:
        return ""
    more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return f"since run {earlier} there is other data: {'; '.join(found[:NAMED])}{more}"
