"""Where a private tensor comes from: what it is, and all that it was computed by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from edge_attention.core.release import Edge
from edge_attention.core.release import output as output_of

MAX_FLOW = 16 * 1024
"""Characters of what is remembered of how a tensor was computed; one with more stays here for good."""


@dataclass(frozen=True)
class Origin:
    """A private tensor: an output of a graph, or (no digest) what `output` says.

    Attributes:
        chosen: its shape may tell of private data, because a graph or private rows chose it.
        flow: all that was private of what it was computed by, step by step; None: that is not known, and no
            release lets it leave.
    """

    digest: str
    output: str
    chosen: bool = field(default=True, compare=False)
    flow: frozenset[Edge] | None = None

    @cached_property
    def source(self) -> str:
        """What it is as an input of a graph."""
        return output_of(self.digest, self.output) if self.digest else self.output

    @cached_property
    def size(self) -> int:
        """Bytes that the flow takes, about."""
        return sum(map(_size, self.flow or ()))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.digest, self.output, self.flow))

    def saved(self) -> list[Any]:
        """As JSON; `restored` gives it back, but for `chosen`."""
        return [self.digest, self.output, None if self.flow is None else sorted(self.flow)]


def restored(saved: Any, *, chosen: bool) -> Origin | None:
    """What was saved. Of what an earlier release saved it is not known how it was computed."""
    if not saved:
        return None
    flow = saved[2] if len(saved) > 2 else None
    edges = None if flow is None else frozenset((str(g), str(i), str(s)) for g, i, s in flow)
    return Origin(str(saved[0]), str(saved[1]), chosen, edges)


def bounded(flow: frozenset[Edge]) -> frozenset[Edge] | None:
    """`flow`, or None where it is more than a node remembers."""
    return flow if sum(map(_size, flow)) <= MAX_FLOW else None


def _size(edge: Edge) -> int:
    return sum(map(len, edge))
