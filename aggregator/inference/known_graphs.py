"""What is known of a deployment's graphs, whatever the shapes of inputs: for most they are the same."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aggregator.inference.course import Flow

__all__ = ["KnownGraphs", "LoadedSessions", "SessionOfNode"]

SessionOfNode = tuple[str, tuple[str, ...]]
"""A graph's digest, and what is frozen into it."""


@dataclass
class KnownGraphs:
    """By digest, what was found in a graph. Blocks where it is looked into the first time.

    Attributes:
        flows: output -> the inputs that it depends on.
        tables: inputs in which it only looks up rows.
    """

    flows: dict[str, Flow] = field(default_factory=dict)
    tables: dict[str, frozenset[str]] = field(default_factory=dict)

    def flow(self, digest: str, read: Callable[[], bytes]) -> Flow:
        """Raises InvalidGraph: it cannot be read."""
        if digest not in self.flows:
            from edge_attention.graphs.axes.flows import flows_of  # onnx, which few plans need here

            self.flows[digest] = flows_of(read())
        return self.flows[digest]

    def table(self, digest: str, read: Callable[[], bytes]) -> frozenset[str]:
        """Raises InvalidGraph: it cannot be read."""
        if digest not in self.tables:
            from edge_attention.graphs.axes.flows import tables_of

            self.tables[digest] = tables_of(read())
        return self.tables[digest]


class LoadedSessions:
    """Which sessions processes of nodes have loaded: these need no warming for another shape of inputs."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[str, set[SessionOfNode]]] = {}

    def __contains__(self, found: tuple[str, str, SessionOfNode]) -> bool:
        """Of a node, its process, and a session."""
        node, life, session = found
        known, sessions = self._loaded.get(node, ("", frozenset[SessionOfNode]()))
        return known == life and session in sessions

    def add(self, node: str, life: str, sessions: Collection[SessionOfNode]) -> None:
        """They are loaded there."""
        known, had = self._loaded.get(node, ("", set[SessionOfNode]()))
        self._loaded[node] = life, (had if known == life else set()) | set(sessions)
