"""What the page tells of contexts and attends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aggregator.attention.activity import AttendActivity, Query, Span
from aggregator.attention.contexts import Contexts, StoredContext
from aggregator.fleet.membership import Membership
from aggregator.observe.page import Fleet, Lack, PagePart, Trouble, number
from edge_attention.core.messages.attention import Context
from edge_attention.core.sentence import Sentence

CONTEXTS = 100
RANGES = 200
"""Token ranges of one node in one context; of more, the nearest are told as one."""
RECENT_SECONDS = 300.0
NAMED = 3


class AttentionPage:
    """Tells the page; a context is described anew only when something of it changed."""

    def __init__(self, contexts: Contexts, membership: Membership, activity: AttendActivity) -> None:
        self._contexts = contexts
        self._membership = membership
        self._activity = activity
        self._described: dict[str, tuple[object, Context, dict[str, Any]]] = {}

    def __call__(self, fleet: Fleet) -> PagePart:
        described, activity = self._contexts_of(), self._activity
        return PagePart(
            sections={
                "contexts": {name: told for name, (_, told) in described.items()},
                "queries": {str(query.number): _query(query) for query in activity.queries},
                "spans": {str(int(span.start)): _span(span) for span in activity.spans},
            },
            holders=frozenset(name for _, told in described.values() for name in told["holders"]),
            lacks=lacks(context for context, _ in described.values()),
            troubles=dict(troubles(fleet.now, activity.queries, activity.spans)),
        )

    def _contexts_of(self) -> dict[str, tuple[Context, dict[str, Any]]]:
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


def lacks(contexts: Iterable[Context]) -> tuple[Lack, ...]:
    """The tokens that no live node holds, by context and by who does."""
    counts: Counter[tuple[str, frozenset[str]]] = Counter()
    for context in contexts:
        for segment in context.segments:
            if not segment.live:
                counts[context.spec.name, frozenset(segment.holders)] += segment.count
    return tuple(
        Lack(holders, f"tokens of {name!r}", count, "answers over them are partial")
        for (name, holders), count in counts.items()
    )


def troubles(now: float, queries: Iterable[Query], spans: Iterable[Span]) -> Iterator[tuple[str, Trouble]]:
    """Answers of the last minutes that were partial or failed, with the last cause.

    `queries`: the oldest first.
    """
    recent = [span for span in spans if now - span.start < RECENT_SECONDS]
    counts = {outcome: sum(span.outcomes[outcome] for span in recent) for outcome in ("partial", "failed")}
    total = sum(sum(span.outcomes.values()) for span in recent)
    last: dict[str, Query] = {}
    latest: dict[str, str] = {}
    for query in queries:
        last[query.outcome] = query
        latest[query.context] = query.outcome
    for outcome, count in counts.items():
        if count and outcome in last:
            query = last[outcome]
            clock = time.strftime("%H:%M:%S", time.localtime(query.time))
            so = ", lacked " if outcome == "partial" else ": "
            why = Sentence(f" The last, at {clock}{so}", Sentence.joined("; ", query.why[:NAMED]), ".")
            were = "was partial" if count == 1 else "were partial"
            kind = were if outcome == "partial" else "failed"
            text = Sentence(
                f"{count:,} of {total:,} queries in the last five minutes {kind}.",
                *([why] if query.why else ()),
            )
            # What was asked of that context since was answered in full: what was wrong is over.
            over = latest[query.context] == "exact"
            yield f"answers/{outcome}", Trouble("warn", text, since=query.time if over else None, over=over)


def _context(context: StoredContext, described: Context) -> dict[str, Any]:
    spec = described.spec
    held: dict[str, list[range]] = {}
    count: dict[str, int] = {}
    away: list[range] = []
    gap = described.tokens // RANGES
    stored_tokens = sum(segment.count for segment in described.segments)  # fewer than positions, if trimmed
    for segment, stored in zip(described.segments, context.segments, strict=True):
        parts = stored.positions.coarse(gap)
        for name in segment.holders:
            held.setdefault(name, []).extend(parts)
            count[name] = count.get(name, 0) + segment.count
        if not segment.live:
            away += parts
    return {
        "tokens": described.tokens,
        "heads": [spec.query_heads, spec.key_heads],
        "dims": [spec.key_dim, spec.value_dim],
        "replicas": spec.replicas,
        "stored": stored_tokens,
        "bytes": stored_tokens * spec.token_bytes,
        "segments": len(described.segments),
        "holders": {name: ranges(parts, described.tokens) for name, parts in held.items()},
        "held": count,
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


def _span(span: Span) -> dict[str, Any]:
    return {
        **span.outcomes,
        "mean": number(span.seconds / span.answered, 3) if span.answered else None,
        "slowest": number(span.slowest, 3) if span.answered else None,
        "mass": _masses(span.mass),
    }


def _masses(mass: Mapping[str, float]) -> dict[str, float | None]:
    return {node: number(share, 3) for node, share in mass.items()}
