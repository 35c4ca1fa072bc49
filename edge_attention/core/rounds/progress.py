"""What one asked node does now, and a list of several, in a person's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMED = 3
"""Nodes a sentence names before it only counts."""


@dataclass
class NodeProgress:
    """An asked node. `since`: when it was last heard of. `total`: chunks of its upload, 0 before it."""

    since: float
    computes: bool = False
    done: int = 0
    total: int = 0
    lost: bool = False

    def started(self, now: float) -> None:
        self.computes, self.done, self.total, self.lost, self.since = True, 0, 0, False, now

    def uploaded(self, done: int, total: int, now: float) -> None:
        """`done` of `total` chunks have come. Saying the same again is no news."""
        self.lost = False
        if (done, total) != (self.done, self.total):
            self.done, self.total, self.since = done, total, now

    def back(self, now: float) -> None:
        if self.lost:
            self.lost, self.since = False, now

    def describe(self, now: float) -> str:
        """As "12 of 40 chunks, idle 4.2 s"."""
        if self.lost:
            return "lost"
        idle = max(now - self.since, 0.0)
        if self.total:
            return f"{self.done} of {self.total} chunks, idle {idle:.1f} s"
        return f"computes for {idle:.1f} s" if self.computes else f"asked {idle:.1f} s ago"


def name_nodes(nodes: Mapping[str, NodeProgress], now: float) -> str:
    """As "edge-3: 12 of 40 chunks, idle 4.2 s", or "edge-1 (asked 3.0 s ago), edge-2 (lost) and 4 more"."""
    texts = {name: progress.describe(now) for name, progress in nodes.items()}
    if len(texts) == 1:
        ((name, text),) = texts.items()
        return f"{name}: {text}" if text != "lost" else f"{name} (lost)"
    named = ", ".join(f"{name} ({text})" for name, text in list(texts.items())[:NAMED])
    return f"{named} and {len(texts) - NAMED} more" if len(texts) > NAMED else named


def seconds_until(until: float, now: float) -> str:
    """As "6 s"."""
    return f"{max(until - now, 0.0):.0f} s"
