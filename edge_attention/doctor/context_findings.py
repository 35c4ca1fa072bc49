"""What is said of contexts: whether every token has a node that answers for it, and room for more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_attention.core.messages.attention import Context
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.doctor.finding import Finding, failed, ok, size, skipped, warning
from edge_attention.graphs.attention.library import TILE

FEW = 4096
"""Tokens a node under which one query is faster undistributed: measured on one machine, two cores."""


def coverage(context: Context) -> Finding:
    """Whether every token can be asked for now."""
    subject = f"context {context.spec.name}"
    dead = [segment for segment in context.segments if not segment.live]
    thin = [
        segment for segment in context.segments if segment.live and len(segment.live) < len(segment.holders)
    ]
    lost = sum(segment.count for segment in dead)
    data = {"tokens": context.tokens, "lost": lost, "segments": len(context.segments)}
    if not context.segments:
        return ok("coverage", subject, "holds no tokens yet", **data)
    if dead:
        away = sorted({name for segment in dead for name in segment.holders})
        said = f"{lost:,} of {context.tokens:,} tokens have no live holder; they are on {', '.join(away)}"
        fix = "start these nodes again with the --store they had; answers are partial until then"
        return failed("coverage", subject, said, fix, holders=away, **data)
    if thin:
        away = sorted({name for segment in thin for name in set(segment.holders) - set(segment.live)})
        tokens = sum(segment.count for segment in thin)
        said = f"{tokens:,} of {context.tokens:,} tokens lack a replica: {', '.join(away)} is away"
        fix = "start it again: one more node away, and answers are partial"
        return warning("coverage", subject, said, fix, holders=away, **data)
    holders = {name for segment in context.segments for name in segment.holders}
    return ok("coverage", subject, f"{context.tokens:,} tokens on {len(holders)} nodes, all live", **data)


def placed(context: Context) -> dict[str, int]:
    """Bytes of the context on each holder; memory is taken by whole tiles."""
    found: dict[str, int] = {}
    for segment in context.segments:
        tiles = -(-segment.count // TILE)
        for name in segment.holders:
            found[name] = found.get(name, 0) + tiles * TILE * context.spec.token_bytes
    return found


def room(context: Context, node: Node) -> int:
    """Tokens of the context the aggregator would still send to the node: its own rule.

    Twice the bytes: tokens that arrive count until they are stored.
    """
    each = 2 * context.spec.token_bytes * TILE
    return max((node.memory_limit - node.memory) // each, 0) * TILE


def shards(node: Node, contexts: Sequence[Context]) -> Finding:
    """What the contexts have placed on a node against what it may store."""
    subject = f"node {node.name}"
    by_context = {c.spec.name: b for c in contexts if (b := placed(c).get(node.name, 0))}
    total = sum(by_context.values())
    data = {"placed": by_context, "limit": node.memory_limit, "stored": node.memory}
    if not total:
        return ok("shards", subject, f"holds no tokens; may store {size(node.memory_limit)}", **data)
    many = f"{len(by_context)} context{'s' if len(by_context) > 1 else ''}"
    said = f"{size(total)} of {many} are placed there, it may store {size(node.memory_limit)}"
    if total > node.memory_limit:
        fix = f"start it with --memory-limit {-(-2 * total // 2**20)}MiB: it cannot hold all of its shards"
        return failed("shards", subject, said, fix, **data)
    return ok("shards", subject, said, **data)


def growth(context: Context, nodes: Sequence[Node]) -> Finding:
    """Whether the context can take more tokens, and where not."""
    subject = f"context {context.spec.name}"
    rooms: Mapping[str, int] = {n.name: room(context, n) for n in nodes if n.state is NodeState.READY}
    full = sorted(name for name, tokens in rooms.items() if not tokens)
    data = {"rooms": dict(rooms)}
    if not rooms:
        return skipped("growth", subject, "no node is ready", **data)
    total = sum(rooms.values()) // max(context.spec.replicas, 1)
    fix = "give it a larger --memory-limit: it needs twice the bytes of a tile of 512 tokens free"
    if len(rooms) - len(full) < context.spec.replicas:
        said = f"no room for one more tile of {TILE} tokens: {', '.join(full)} full"
        return failed("growth", subject, said, f"add a node, or {fix.replace('it a', 'these a', 1)}", **data)
    if full:
        said = f"room for about {total:,} more tokens; none on {', '.join(full)}"
        return warning("growth", subject, said, fix, **data)
    return ok("growth", subject, f"room for about {total:,} more tokens", **data)


def rule_of_thumb(context: Context) -> Finding | None:
    """Whether a context that was not measured is so small that one node might be faster."""
    holders = {name for segment in context.segments for name in segment.holders}
    if len(holders) < 2 or not context.tokens:
        return None
    each = context.tokens * context.spec.replicas // len(holders)
    data = {"tokens": context.tokens, "nodes": len(holders), "tokens_a_node": each}
    subject = f"context {context.spec.name}"
    fix = f"measure it: edge-attention doctor --context {context.spec.name}"
    if each < FEW:
        said = f"{each:,} tokens on each of {len(holders)} nodes: under about {FEW:,} fewer may be faster"
        return skipped("fewer nodes", subject, said, fix, **data)
    return None
