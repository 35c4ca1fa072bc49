"""Measures a fleet through its aggregator: health, clock, an idle stream, the way to each node, a context."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from edge_attention.client.aio import AsyncClient
from edge_attention.client.results import Answer
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages.fleet import DescribeAggregatorResponse, Node, ProbeNodeResponse
from edge_attention.core.tensors import Float32
from edge_attention.doctor.connection_findings import ClockReading
from edge_attention.doctor.context_findings import room
from edge_attention.doctor.fewer import Measured, NodeCost, fit
from edge_attention.graphs.attention.library import TILE
from edge_attention.wire import health

READINGS = 5
TRIPS = 10
FIRST_BYTES, MORE_BYTES = 256 * 1024, 4 * 1024 * 1024
QUICK = 0.5
"""Seconds in which the first bytes must go there and back for more to be sent."""

MOST_NODES = 16
"""Nodes of a context that are measured alone, those with the most tokens."""

REPEATS = 8
"""Attends of each kind; the median counts, and one more before them that does not."""


@dataclass(frozen=True)
class ServingHealth:
    """`status` is empty where there was no answer; `problem` says why."""

    status: str
    seconds: float
    problem: str = ""


async def serving(client: AsyncClient, seconds: float) -> ServingHealth:
    """What the health service says of the aggregator as a whole."""
    began = time.perf_counter()
    try:
        status = await client.caller.unary(health.CHECK, "", seconds)
    except EdgeAttentionError as error:
        return ServingHealth("", time.perf_counter() - began, error.message)
    return ServingHealth(status.name, time.perf_counter() - began)


async def describe(
    client: AsyncClient, seconds: float
) -> tuple[DescribeAggregatorResponse, ClockReading | None]:
    """The aggregator as it describes itself, and its clock by the quickest of a few answers."""
    best: ClockReading | None = None
    for _ in range(READINGS):
        sent, began = time.time(), time.perf_counter()
        about = await client.aggregator(timeout=seconds)
        half = (time.perf_counter() - began) / 2
        if about.box.time_seconds and (best is None or half < best.within):
            best = ClockReading(about.box.time_seconds - (sent + half), half)
    return about, best


async def idle(client: AsyncClient, seconds: float) -> tuple[bool, float, str]:
    """Whether a stream on which nothing is said lives so long: (survived, seconds it lived, what ended it).

    The health service's Watch is such a stream: it speaks when the status changes.
    """
    began = time.perf_counter()
    problem = "it ended"

    async def watch() -> None:
        async for _ in client.caller.receive(health.WATCH, ""):
            pass

    try:
        async with asyncio.timeout(seconds):
            await watch()
    except TimeoutError:
        return True, time.perf_counter() - began, ""
    except EdgeAttentionError as error:
        problem = error.message
    return False, time.perf_counter() - began, problem


async def probe(client: AsyncClient, node: Node, seconds: float, *, bulk: bool) -> ProbeNodeResponse:
    """Round trips to the node and, with `bulk`, bytes there and back: few, and more where that was quick.

    Raises what the aggregator says of a node that does not answer.
    """
    # Twice: the node has what came and what it returns.
    free = max(node.memory_limit - node.memory, 0) // 4
    if not bulk or free < FIRST_BYTES:
        return await client.probe(node.name, round_trips=TRIPS, deadline=seconds)
    found = await client.probe(node.name, round_trips=TRIPS, size=FIRST_BYTES, deadline=seconds)
    took = (found.down_seconds or 0) + (found.up_seconds or 0)
    if took > QUICK or free < MORE_BYTES:
        return found
    with contextlib.suppress(EdgeAttentionError):  # what there is, is a measurement too
        more = await client.probe(node.name, round_trips=1, size=MORE_BYTES, deadline=seconds)
        return ProbeNodeResponse(
            (*found.round_trip_seconds, *more.round_trip_seconds),
            (*found.task_seconds, *more.task_seconds),
            more.down_seconds,
            more.up_seconds,
            more.bytes,
        )
    return found


async def attends(
    client: AsyncClient, name: str, queries: int, nodes: Sequence[Node], seconds: float
) -> Measured:
    """Attends over the whole context, and over parts of it that lie on one node alone.

    A window of tokens that ends at a query's own position picks tokens of one segment: nobody else is asked.
    No call takes longer than `seconds`.
    """
    handle = await client.context(name, timeout=seconds)
    context = await handle.describe(timeout=seconds)
    if not context.tokens:
        return Measured(name, queries, 0, {})
    spec = handle.spec
    random = np.random.default_rng(0)
    asked: Float32 = random.standard_normal((queries, spec.query_heads, spec.key_dim), np.float32)

    async def ask(tokens: range) -> Answer:
        """Without a deadline of the attend's own: with one nodes run other graphs."""
        at = np.full(queries, tokens.stop - 1, np.int64)
        async with asyncio.timeout(seconds):
            return await handle.attend(asked, positions=at, window=len(tokens))

    first = await ask(range(context.tokens))
    if first.calls > 1:
        raise InvalidArgument(f"{queries} queries of context {name!r} take several calls: ask for fewer")
    placed = _by_node(first)
    parts: dict[str, list[range]] = {}
    for node in sorted(placed, key=lambda n: -placed[n])[:MOST_NODES]:
        # With replicas a holder is chosen, of equals the first.
        held = [s for s in context.segments if node in s.live]
        best = max(held, key=lambda s: (s.live[0] == node, max(map(len, s.stretches))))
        parts[node] = _parts(max(best.stretches, key=len))
    whole: list[Answer] = []
    alone: dict[tuple[str, int], list[Answer]] = {}
    # In turns: what else the machines do meanwhile slows all alike, and no part is in the caches each time.
    for turn in range(REPEATS + 1):
        answers = {(node, len(tokens)): await ask(tokens) for node in parts for tokens in parts[node]}
        answer = await ask(range(context.tokens))
        if answer.missing:
            why = f"its answers are partial: {answer.missing[0].reason}"
            return Measured(name, queries, context.tokens, placed, problem=why)
        if turn:  # the first pays for what is loaded once
            whole.append(answer)
            for key, each in answers.items():
                if set(each.mass) == {key[0]}:
                    alone.setdefault(key, []).append(each)
    costs = []
    for node in parts:
        mine = {count: found for (name, count), found in alone.items() if name == node}
        if not mine:
            continue  # other replicas answer for it
        points = [(count, median(a.seconds["node_run"] for a in answers)) for count, answers in mine.items()]
        overhead = median(_overhead(a) for answers in mine.values() for a in answers)
        member = next((n for n in nodes if n.name == node), None)
        has = None if member is None else placed[node] + room(context, member)
        costs.append(NodeCost(node, *fit(points), overhead, has, max(count for count, _ in points)))
    stages = {stage: median(a.seconds.get(stage, 0.0) for a in whole) for stage in whole[0].seconds}
    quick = sorted(a.seconds["all"] for a in whole)[len(whole) // 4]
    return Measured(name, queries, context.tokens, placed, stages["all"], quick, stages, tuple(costs))


def _overhead(answer: Answer) -> float:
    return answer.seconds["all"] - answer.seconds["node_run"]


def _by_node(answer: Answer) -> dict[str, int]:
    """Tokens each node answered for."""
    found: dict[str, int] = {}
    for shard in answer.shards:
        found[shard.node] = found.get(shard.node, 0) + shard.count
    return found


def _parts(tokens: range) -> list[range]:
    """One tile, half and all of a segment, from its start: what a graph costs goes by tiles."""
    half = len(tokens) // 2 // TILE * TILE
    counts = {count for count in (TILE, half, len(tokens)) if 0 < count <= len(tokens)}
    return [range(tokens.start, tokens.start + count) for count in sorted(counts)]
