"""What a stage takes on some boxes: its trips, as DESIGN section 12 counts their bytes.

Per layer, with share s of a part, K the bytes of keys and values, Q of queries, O of the attention's output:

    tokens, gather   a trip an attention:   up s K, down (1 - s) K
    tokens, switch   two:                   up and down s (1 - s) (Q + K), then s (1 - s) O
    tokens, merge    two:                   up s Q, down (1 - s) Q; up (1 - s) (O + lse), down s (O + lse)
    heads            a trip a sum of M:     up M, down M
    batch, none      none

and one more trip for the stage, in which its input comes and its output goes. Each trip has a segment of each
part, which costs its box what a call does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerCosts, ModelCosts
from edge_attention.core.placement.cuts.trips import StepErrand, computing, trip_seconds
from edge_attention.core.schedule.plan import Crossing, Cut

__all__ = ["Manner", "StageCosts", "ends_costs", "layer_costs", "stage_costs"]


@dataclass(frozen=True)
class Manner:
    """How a stage's parts share it.

    Attributes:
        crossing: where `cut` is TOKENS.
    """

    cut: Cut = Cut.NONE
    crossing: Crossing = Crossing.GATHER

    def __str__(self) -> str:
        return f"tokens ({self.crossing.value})" if self.cut is Cut.TOKENS else self.cut.value


@dataclass(frozen=True)
class StageCosts:
    """What some layers take for one request, of a stage's boxes in the order given.

    Attributes:
        seconds: by the clock.
        trips: steps.
        busy: by box, seconds its processor works.
        down, up: by box, bytes.
        weights: by box, bytes.
    """

    seconds: float
    trips: int
    busy: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]
    weights: tuple[float, ...]

    def __add__(self, other: StageCosts) -> StageCosts:
        return StageCosts(
            self.seconds + other.seconds,
            self.trips + other.trips,
            _added(self.busy, other.busy),
            _added(self.down, other.down),
            _added(self.up, other.up),
            _added(self.weights, other.weights),
        )


def stage_costs(
    model: ModelCosts,
    layers: range,
    manner: Manner,
    boxes: Sequence[ComputeBox],
    shares: Sequence[float],
    links: BoxLinks,
    scale: float = 1.0,
) -> StageCosts:
    """What `boxes` take for these layers, sharing them as said. `scale`: of bytes, one half for halves."""
    total = ends_costs(model, layers, manner, boxes, shares, links, scale)
    for number in layers:
        layer = model.layers[number]
        total += layer_costs(layer, model.rows, manner, boxes, shares, links, scale)
    return replace(total, weights=tuple(model.held(layers, manner.cut, share) for share in shares))


def layer_costs(
    layer: LayerCosts,
    rows: int,
    manner: Manner,
    boxes: Sequence[ComputeBox],
    shares: Sequence[float],
    links: BoxLinks,
    scale: float = 1.0,
) -> StageCosts:
    """One layer's part of it: its work, in as many trips as it has crossings."""
    cut = manner.cut
    by_rows = cut in (Cut.TOKENS, Cut.BATCH)
    crossings = list(_crossings(layer, manner))
    busy = tuple(
        box.seconds(layer.part_work(cut, share), rows * share if by_rows else rows)
        + len(crossings) * box.call_seconds
        for box, share in zip(boxes, shares, strict=True)
    )
    down, up = (0.0,) * len(boxes), (0.0,) * len(boxes)
    seconds = 0.0 if crossings else max(computing(list(zip(boxes, busy, strict=True))))
    for crossing in crossings:
        errands = [
            StepErrand(
                box, busy[n] / len(crossings), crossing.down(share) * scale, crossing.up(share) * scale
            )
            for n, (box, share) in enumerate(zip(boxes, shares, strict=True))
        ]
        seconds += trip_seconds(errands, links)
        down = _added(down, tuple(errand.down for errand in errands))
        up = _added(up, tuple(errand.up for errand in errands))
    weights = tuple(layer.part_weights(cut, share) for share in shares)
    return StageCosts(seconds, len(crossings), busy, down, up, weights)


def ends_costs(
    model: ModelCosts,
    layers: range,
    manner: Manner,
    boxes: Sequence[ComputeBox],
    shares: Sequence[float],
    links: BoxLinks,
    scale: float = 1.0,
) -> StageCosts:
    """The trip in which a stage's input comes and its output goes. Feeds and results stay as they are."""
    whole = manner.cut not in (Cut.TOKENS, Cut.BATCH)
    first, last = layers.start == 0, layers.stop == len(model.layers)
    comes = model.feeds if first else model.layers[layers.start - 1].out * scale
    goes = model.layers[layers.stop - 1].out * (1.0 if last else scale)
    # What was summed last is whole with each part by heads: one of them gives it on.
    errands = [
        StepErrand(
            box,
            box.call_seconds,
            comes if whole else comes * share,
            (goes if n == 0 else 0.0) if whole else goes * share,
        )
        for n, (box, share) in enumerate(zip(boxes, shares, strict=True))
    ]
    nothing = (0.0,) * len(boxes)
    down, up = tuple(e.down for e in errands), tuple(e.up for e in errands)
    busy = tuple(e.seconds for e in errands)
    return StageCosts(trip_seconds(errands, links), 1, busy, down, up, nothing)


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class _Crossed:
    """Bytes of a part with share s: a + b s + c s^2, each way."""

    sent: tuple[float, float, float]
    received: tuple[float, float, float]

    def up(self, share: float) -> float:
        a, b, c = self.sent
        return a + b * share + c * share * share

    def down(self, share: float) -> float:
        a, b, c = self.received
        return a + b * share + c * share * share


def _crossings(layer: LayerCosts, manner: Manner) -> Iterator[_Crossed]:
    if manner.cut is Cut.HEADS:
        for size in layer.sums:
            yield _Crossed((size, 0, 0), (size, 0, 0))
    if manner.cut is not Cut.TOKENS:
        return
    for one in layer.attentions:
        kv, q, out = one.keys_values, one.queries, one.out
        match manner.crossing:
            case Crossing.GATHER:
                yield _Crossed((0, kv, 0), (kv, -kv, 0))
            case Crossing.SWITCH:
                there, back = q + kv, out
                yield _Crossed((0, there, -there), (0, there, -there))
                yield _Crossed((0, back, -back), (0, back, -back))
            case Crossing.MERGE:
                partial = out + one.lse
                yield _Crossed((0, q, 0), (q, -q, 0))
                yield _Crossed((partial, -partial, 0), (0, partial, 0))
