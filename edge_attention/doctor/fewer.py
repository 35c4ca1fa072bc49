"""Whether fewer nodes would answer a query faster: an estimate from what was measured on each.

On one node a query takes, for `t` tokens there,

    time_i(t) = overhead_i + fixed_i + per_token_i * t

(beyond the tokens it was measured with, in proportion to these: a longer shard fits the caches no better),
where overhead_i is everything but the node's graphs: planning, the way there and back, the merge. Over the
nodes S of a fleet that share T tokens evenly the slowest counts, and each further node costs a bit more:

    time(S) = max over i in S of time_i(T / |S|)  +  further * (|S| - 1)

For each number of nodes S is the fastest so many; `further` is chosen so that the formula gives, for the
placement there is, what the whole fleet was measured to take. Nodes on one machine share its processors: what
that costs is then in `further` too. It is an estimate: it says nothing of several queries at once.

    >>> costs = [NodeCost(n, fixed=0.1e-3, per_token=1e-7, overhead=1e-3) for n in "abc"]
    >>> [round(e.seconds * 1e3, 2) for e in estimates(3000, costs, further=0.5e-3)]
    [1.4, 1.75, 2.2]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_attention.doctor.finding import Finding, duration, failed, ok, skipped, warning

GAIN, GAIN_SECONDS = 0.2, 0.2e-3
"""Fewer nodes are advised where they save this share of the time, and this much of it: less is noise."""


@dataclass(frozen=True)
class NodeCost:
    """What a query costs on one node alone. Seconds.

    `room`: tokens it could hold, None: enough. `measured`: tokens up to which it was measured, 0: any.
    """

    name: str
    fixed: float
    per_token: float
    overhead: float
    room: int | None = None
    measured: int = 0

    def kernel(self, tokens: float) -> float:
        """Seconds in graphs for a query over `tokens` tokens."""
        if 0 < self.measured < tokens:
            return (self.fixed + self.per_token * self.measured) * tokens / self.measured
        return self.fixed + self.per_token * tokens

    def alone(self, tokens: float) -> float:
        return self.overhead + self.kernel(tokens)


@dataclass(frozen=True)
class Estimate:
    """A query over `nodes`, in seconds: `kernel` and `overhead` are of the slowest of them."""

    nodes: tuple[str, ...]
    seconds: float
    kernel: float
    overhead: float
    fits: bool


@dataclass(frozen=True)
class Measured:
    """A query over a context as it is placed: tokens by node, seconds, or the `problem` there was.

    `all` and `stages` are medians, `quick` is the lower quartile of `all`.
    """

    context: str
    queries: int
    tokens: int
    placed: Mapping[str, int]
    all: float = 0.0
    quick: float = 0.0
    stages: Mapping[str, float] | None = None
    costs: tuple[NodeCost, ...] = ()
    problem: str = ""


def fit(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(fixed, per_token) of the line through points (tokens, seconds) by least squares, neither negative."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = (
        sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else mean_y / max(mean_x, 1.0)
    )
    slope = max(slope, 0.0)
    if mean_y - slope * mean_x < 0:
        # Through the origin then: no graph takes less than no time.
        slope = sum(x * y for x, y in points) / max(sum(x * x for x, _ in points), 1)
        return 0.0, slope
    return mean_y - slope * mean_x, slope


def estimates(tokens: int, costs: Sequence[NodeCost], further: float) -> list[Estimate]:
    """For 1, 2, ... nodes the fastest so many, `tokens` spread evenly over them."""
    found = []
    for count in range(1, len(costs) + 1):
        share = tokens / count
        # Nodes with room first: a faster one that cannot hold its share is no choice.
        chosen = sorted(costs, key=lambda c: (c.room is not None and c.room < share, c.alone(share)))[:count]
        slowest = max(chosen, key=lambda c: c.alone(share))
        more = further * (count - 1)
        fits = all(c.room is None or c.room >= share for c in chosen)
        names = tuple(sorted(c.name for c in chosen))
        kernel = slowest.kernel(share)
        found.append(Estimate(names, slowest.alone(share) + more, kernel, slowest.overhead + more, fits))
    return found


def further(measured: Measured) -> float:
    """What each node after the first costs, so that the formula gives the time measured; not negative."""
    costs = {cost.name: cost for cost in measured.costs}
    if len(measured.placed) < 2:
        return 0.0
    slowest = max(costs[name].alone(tokens) for name, tokens in measured.placed.items() if name in costs)
    return max(measured.all - slowest, 0.0) / (len(measured.placed) - 1)


def fewer(measured: Measured) -> Finding:
    """Whether fewer nodes would be faster for this query, with the numbers."""
    subject = f"context {measured.context}"
    if measured.problem:
        return failed("fewer nodes", subject, measured.problem, "see what is wrong with the context above")
    if not measured.tokens or not measured.costs:
        return skipped("fewer nodes", subject, "holds no tokens", "append some first")
    costs = {cost.name: cost for cost in measured.costs}
    now = len(measured.placed)
    table = estimates(measured.tokens, measured.costs, further(measured))
    best = min((e for e in table if e.fits), key=lambda e: e.seconds, default=table[-1])
    kernels = {name: cost.kernel(measured.placed.get(name, 0)) for name, cost in costs.items()}
    data = {
        "queries": measured.queries,
        "tokens": measured.tokens,
        "placed": dict(measured.placed),
        "measured_seconds": measured.all,
        "quick_seconds": measured.quick,
        "stages": dict(measured.stages or {}),
        "further_seconds": further(measured),
        "nodes": {
            name: {
                "kernel_seconds": kernels[name],
                "fixed_seconds": cost.fixed,
                "seconds_a_token": cost.per_token,
                "overhead_seconds": cost.overhead,
            }
            for name, cost in costs.items()
        },
        "estimates": [
            {
                "nodes": list(e.nodes),
                "seconds": e.seconds,
                "kernel": e.kernel,
                "overhead": e.overhead,
                "fits": e.fits,
            }
            for e in table
        ],
    }
    of = "a query" if measured.queries == 1 else f"{measured.queries} queries at a time"
    said = f"{of} over {measured.tokens:,} tokens on {_nodes(now)}: {duration(measured.all)} measured"
    others = ", ".join(
        f"{_nodes(len(e.nodes))} {duration(e.seconds)}{'' if e.fits else ' (no room)'}" for e in table[:6]
    )
    said += f"; estimated by count, spread evenly: {others}"
    # Held against the quicker ones of what was measured: where times vary, less is certain.
    saved = measured.quick - best.seconds
    if len(best.nodes) < now and saved > max(GAIN * measured.quick, GAIN_SECONDS):
        where = ", ".join(best.nodes)
        fix = (
            f"by this estimate keep the context on {where} (append with --node): "
            f"{duration(best.overhead)} of overhead and {duration(best.kernel)} of kernel there"
        )
        return warning("fewer nodes", subject, said, fix, **data)
    return ok("fewer nodes", subject, said, **data)


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
