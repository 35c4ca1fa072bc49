"""What one asked node does now, and a list of several, in a person's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from edge_attention.core.sentence import Away, Sentence

NAMED = 3
"""Nodes a sentence names before it only counts."""


class NodeWork(Enum):
    """What a node is at in a round."""

    IDLE = "idle"
    """It is not asked now, and may be."""
    ASKED = "asked"
    COMPUTES = "computes"
    UPLOADS = "uploads"
    FINISHED = "finished"
    LEFT_OUT = "left out"
    """It failed, was refused, or was too late."""


@dataclass
class NodeProgress:
    """What an asked node has done of its task.

    Attributes:
        since: when it was last heard of.
        done, total: chunks of its upload that have come, of how many; 0 before it uploads.
        lost: whether its connection is gone. What it did counts on when it is back.
    """

    since: float
    work: NodeWork = NodeWork.ASKED
    done: int = 0
    total: int = 0
    lost: bool = False

    def started(self, now: float) -> None:
        """The node works on the task from its beginning."""
        self.work = NodeWork.COMPUTES
        self.done = 0
        self.total = 0
        self.lost = False
        self.since = now

    def uploaded(self, done: int, total: int, now: float) -> None:
        """`done` of `total` chunks have come. Saying the same again is no news."""
        self.lost = False
        if (done, total) != (self.done, self.total):
            self.work = NodeWork.UPLOADS
            self.done = done
            self.total = total
            self.since = now

    def back(self, now: float) -> None:
        """The node is connected again; where it was not away that is no news."""
        if self.lost:
            self.lost = False
            self.since = now

    def describe(self, now: float) -> str:
        """As "12 of 40 chunks, idle 4.2 s"."""
        if self.lost:
            return "lost"
        idle = max(now - self.since, 0.0)
        if self.total:
            return f"{self.done} of {self.total} chunks, idle {idle:.1f} s"
        return f"asked {idle:.1f} s ago" if self.work is NodeWork.ASKED else f"computes for {idle:.1f} s"


def name_nodes(nodes: Mapping[str, NodeProgress], now: float) -> Sentence:
    """As "edge-3: 12 of 40 chunks, idle 4.2 s", or "edge-1 (asked 3.0 s ago), edge-2 (lost) and 4 more"."""
    if len(nodes) == 1:
        ((name, progress),) = nodes.items()
        return _lost(name) if progress.lost else Sentence(f"{name}: {progress.describe(now)}")
    named = [
        _lost(name) if progress.lost else Sentence(f"{name} ({progress.describe(now)})")
        for name, progress in list(nodes.items())[:NAMED]
    ]
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return Sentence(Sentence.joined(", ", named), more)


def _lost(name: str) -> Sentence:
    return Sentence(name, Away(" (lost)", frozenset({name})))


def seconds_until(until: float, now: float) -> str:
    """As "6 s"."""
    return f"{max(until - now, 0.0):.0f} s"
