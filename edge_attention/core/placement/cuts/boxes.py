"""Boxes and links as a planner sees them, and what work takes on a box.

    box seconds = flops / (flops a second * efficiency(rows)) + bytes moved / (bytes a second)
                  + operators * seconds an operator
    of a segment, which is one call of a graph, and once more call_seconds

Everything passes the aggregator, so its own link and its processor are shared by all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.core.placement.cuts.costs import LayerWork

__all__ = ["HALF_ROWS", "BoxLink", "BoxLinks", "ComputeBox", "forgotten"]

HALF_ROWS = 8.0
"""Rows of a matrix product at which half of a box's speed is lost: 32 rows lose a fifth of it."""

MOVED_A_FLOP = 0.28
"""Bytes that other operators move while products do a flop, most of them in caches (measured on x86)."""

FORGETTING = 4e-3
"""Seconds of computing after which half of what processes that wait had in caches is not there any more."""


def forgotten(run: float) -> float:
    """How much of it, from 0 to 1, while a box computes for `run` seconds."""
    return run / (run + FORGETTING)


@dataclass(frozen=True)
class ComputeBox:
    """A box that can hold parts of a model.

    Attributes:
        flops: a second, in matrix products of many rows.
        moved: bytes a second that other operators read and write; 0: MOVED_A_FLOP of `flops`.
        operator_seconds: what each operator costs beside.
        memory: bytes it has for weights; a session's copy is what counts.
        slowness: measured seconds by predicted ones; 1 where nothing was measured.
        call_seconds: what a segment takes there beside its work, however small it is.
        machine: boxes of one machine share its `cores`; empty: a machine of its own.
        cores: boxes with less than one core to themselves wait for each other.
    """

    name: str
    flops: float
    moved: float = 0.0
    operator_seconds: float = 2e-6
    memory: float = math.inf
    slowness: float = 1.0
    machine: str = ""
    cores: float = math.inf
    call_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.moved >= 0 and self.slowness > 0 and self.cores > 0):
            raise ValueError(f"box {self.name!r}: speeds, slowness and cores are numbers above 0")
        if self.call_seconds < 0:
            raise ValueError(f"box {self.name!r}: a call takes 0 seconds or more")

    def seconds(self, work: LayerWork, rows: float) -> float:
        """What the work takes with products of so many rows; infinitely many: flops count what few lose."""
        efficiency = 1 / (1 + HALF_ROWS / rows) if rows > 0 else 1.0
        products = work.flops / (self.flops * efficiency)
        moved = self.moved or MOVED_A_FLOP * self.flops
        others = work.moved / moved + work.operators * self.operator_seconds
        return self.slowness * (products + others)


@dataclass(frozen=True)
class BoxLink:
    """The way between the aggregator and a box, or between the aggregator and its network.

    Attributes:
        latency: seconds one way, of a message that is small.
        down: bytes a second from the aggregator.
        up: bytes a second to it.
        both: bytes a second in all with a transfer each way at once; 0: each keeps its own.
        medium: links of one medium (a Wi-Fi) share it; empty: a cable of its own.
        cold: seconds that a call takes more where the box computes for long: whoever waits for it goes on
            with caches that have forgotten (`forgotten`).
    """

    latency: float = 0.0
    down: float = math.inf
    up: float = math.inf
    both: float = 0.0
    medium: str = ""
    cold: float = 0.0

    def __post_init__(self) -> None:
        if not (self.latency >= 0 and self.down > 0 and self.up > 0 and self.both >= 0 and self.cold >= 0):
            raise ValueError(f"{self}: a latency is 0 or more, bandwidths are above 0")

    def busy(self, down: float, up: float) -> float:
        """Seconds it is busy with so many bytes, with transfers each way at once."""
        apart = max(down / self.down, up / self.up)
        return max(apart, (down + up) / self.both) if self.both else apart


@dataclass(frozen=True)
class BoxLinks:
    """How boxes are reached.

    Attributes:
        of: box -> its link; a box that is not there has one that costs nothing.
        hub: the aggregator's own link, which all bytes pass.
        byte_seconds: what its processor needs for each byte that comes or goes.
        call_seconds: what its processor needs to ask one part and take its answer.
        trip_seconds: what a step takes beside all that, with the node's side of a call where no latency of
            its link was measured, as that has it.
        request_seconds: what a request takes beside its steps.
    """

    of: Mapping[str, BoxLink] = field(default_factory=dict)
    hub: BoxLink = BoxLink()
    byte_seconds: float = 0.7e-9
    call_seconds: float = 0.2e-3
    trip_seconds: float = 0.7e-3
    request_seconds: float = 0.0

    def to(self, box: str) -> BoxLink:
        return self.of.get(box, BoxLink())
