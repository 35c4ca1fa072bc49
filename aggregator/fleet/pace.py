"""How often nodes beat, by how many they are: a fleet sends so many heartbeats a second and no more.

A lease is stretched with the time between heartbeats, so that it never has fewer tries in it. What that costs
is in docs/reliability.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BEATS_A_SECOND = 150.0
"""Heartbeats of the whole fleet that are asked for: each takes the aggregator about 0.4 ms of a processor."""
OFTEN_SECONDS = 3.0
"""Between the heartbeats of a node in a small fleet; a third of the lease where that is less."""
SELDOM_SECONDS = 15.0
"""Between the heartbeats of a node at most: 2,250 nodes send 150 a second, more nodes send more."""
STEPS = 2
"""Steps from one to twice the time between heartbeats: it is not another for each node that comes or goes."""


@dataclass(frozen=True)
class Pace:
    """What a node is told.

    Attributes:
        heartbeat: seconds between its heartbeats.
        lease: seconds of silence after which it is lost, and after which it gives its connection up.
    """

    heartbeat: float
    lease: float

    @property
    def tries(self) -> float:
        """Heartbeats in a lease."""
        return self.lease / self.heartbeat


def pace_of(nodes: int, lease: float) -> Pace:
    """The pace of a fleet of so many nodes.

    Args:
        nodes: those that beat.
        lease: seconds, in a small fleet.

    Example: `pace_of(10, 10.0)` is `Pace(3.0, 10.0)`, and `pace_of(1000, 10.0)` is `Pace(7.5, 25.0)`.
    """
    often = min(lease / 3, OFTEN_SECONDS)
    wanted = math.ceil(STEPS * nodes / BEATS_A_SECOND / often) / STEPS
    most = SELDOM_SECONDS / often
    if wanted >= most > 1.0:
        return Pace(SELDOM_SECONDS, lease * most)  # exactly: times `often` it is rounded
    times = max(1.0, wanted)
    return Pace(often * times, lease * times)
