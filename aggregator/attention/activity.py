"""What was attended lately, for a person who looks: queries, and the attention mass of each node.

Everything is bounded, and no clock is read here: `now` is seconds since 1970.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.messages.attention import AttendRequest, AttendResponse, Missing
from edge_attention.core.printable import shown
from edge_attention.core.sentence import Away, Sentence

QUERIES = 50
"""Latest queries remembered one by one; all of them are counted by span."""
SPAN_SECONDS = 5.0
SPANS = 60
LOOK_SECONDS = 0.02
"""Where attention went is looked at no more often: of thousands of queries a second nobody sees each."""
NODES = 256
"""Nodes whose attention mass is remembered."""
REASONS = 8
"""Missing shards a query names; the others are counted."""


@dataclass(frozen=True)
class Query:
    """One attend. `share`: of the context's tokens that the answer stands on.

    `mass`: each node's mean share of attention; nothing of one that came right after another.
    """

    number: int
    time: float
    context: str
    queries: int
    outcome: str
    tokens: int
    share: float
    bound: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    mass: Mapping[str, float] = field(default_factory=dict)
    why: tuple[str, ...] = ()


@dataclass
class Span:
    """SPAN_SECONDS of queries: how many of each outcome, their seconds, and each node's mass."""

    start: float
    outcomes: dict[str, int] = field(default_factory=lambda: {"exact": 0, "partial": 0, "failed": 0})
    answered: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    looked: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def mass(self) -> dict[str, float]:
        """Each node's mean share of attention."""
        return {node: total / max(1, self.looked) for node, total in self.sums.items()}


class AttendActivity:
    """Told of each attend; asked by the page."""

    def __init__(self) -> None:
        self.queries: deque[Query] = deque(maxlen=QUERIES)
        self.spans: deque[Span] = deque(maxlen=SPANS)
        self._count = 0
        self._looked = -LOOK_SECONDS

    def answered(self, request: AttendRequest, response: AttendResponse, now: float) -> None:
        mass: dict[str, float] = {}
        if abs(now - self._looked) >= LOOK_SECONDS:
            self._looked = now
            for shard in response.mass:
                # The mean, in a third of the time np.mean takes for so few numbers.
                share = float(np.add.reduce(shard.mass, axis=None)) / max(1, shard.mass.size)
                mass[shard.node] = mass.get(shard.node, 0.0) + share
        seen = sum(len(tokens) for tokens in response.coverage)
        missing = sum(one.count for one in response.missing)
        why = [_lacked(missing) for missing in response.missing]
        if len(why) > REASONS:
            why[REASONS:] = [f"and {len(why) - REASONS} more shards"]
        self._add(
            Query(
                self._number(),
                now,
                request.context,
                _rows(request),
                "exact" if response.exact else "partial",
                response.tokens,
                seen / max(1, seen + missing),
                float(np.max(response.bound.error)) if response.bound is not None else None,
                dict(response.seconds),
                mass,
                tuple(why),
            )
        )

    def failed(self, request: AttendRequest, why: str, now: float) -> None:
        """An attend was refused, or failed as a whole."""
        context, count = shown(request.context, 64), _rows(request)
        self._add(Query(self._number(), now, context, count, "failed", 0, 0.0, why=(shown(why, 400),)))

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _add(self, query: Query) -> None:
        self.queries.append(query)
        start = query.time - query.time % SPAN_SECONDS
        if not self.spans or self.spans[-1].start < start:
            self.spans.append(Span(start))
        # A clock that was set back adds to the latest span: spans stay in order.
        span = self.spans[-1]
        span.outcomes[query.outcome] += 1
        if query.outcome == "failed":
            return
        seconds = query.seconds.get("all", 0.0)
        span.answered += 1
        span.seconds += seconds
        span.slowest = max(span.slowest, seconds)
        span.looked += bool(query.mass)
        for node, share in query.mass.items():
            if node in span.sums or len(span.sums) < NODES:
                span.sums[node] = span.sums.get(node, 0.0) + share


def _lacked(missing: Missing) -> str:
    """What an answer lacks, and why: which is not said of nodes that are away where others say it."""
    what, reason = f"{missing.count:,} tokens of {' and '.join(missing.holders)}", missing.reason
    away = reason.only if isinstance(reason, Sentence) else frozenset[str]()
    return Sentence(what, Away(f": {reason}", away)) if away else f"{what}: {reason}"


def _rows(request: AttendRequest) -> int:
    """Its queries; a request that was refused may have brought anything."""
    shape = np.shape(request.queries)
    return shape[0] if shape else 0
