"""Models, boxes and links for planners' tests: a transformer's costs by its sizes, and hypothesis' draws."""

from __future__ import annotations

from hypothesis import strategies as st

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import (
    AttentionBytes,
    LayerCosts,
    LayerWork,
    ModelCosts,
    Sharing,
)
from edge_attention.core.schedule.plan import Cut


def encoder(
    *, layers: int = 12, tokens: int = 128, width: int = 768, heads: int = 12, batch: int = 1
) -> ModelCosts:
    """An encoder in float32 with a feed-forward four times as wide."""
    rows = batch * tokens
    m = rows * width * 4
    weights = 12 * width * width * 4
    work = LayerWork(rows * 24 * width * width + 4 * rows * tokens * width, 20 * m, 60)
    shared = {
        Cut.BATCH: Sharing(weights=weights),
        Cut.TOKENS: Sharing(weights=weights),
        Cut.HEADS: Sharing(LayerWork(moved=8 * m), 8 * width * 4),
    }
    layer = LayerCosts(work, weights, m, shared, (AttentionBytes(2 * m, m, m, rows * heads * 4),), (m, m))
    units = {Cut.BATCH: batch, Cut.TOKENS: tokens, Cut.HEADS: heads}
    return ModelCosts((layer,) * layers, rows * 16, rows, units, {})


def alike(
    count: int, flops: float, bandwidth: float, latency: float = 2e-4
) -> tuple[list[ComputeBox], BoxLinks]:
    """Boxes of one kind at a switch, and the aggregator there."""
    boxes = [ComputeBox(f"box-{n}", flops) for n in range(count)]
    cable = BoxLink(latency, bandwidth, bandwidth)
    return boxes, BoxLinks({box.name: cable for box in boxes}, BoxLink(0.0, bandwidth, bandwidth))


@st.composite
def small_models(draw: st.DrawFn) -> ModelCosts:
    """Few layers, not alike, few units of each axis."""
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        m = draw(st.sampled_from([1e4, 1e5, 1e6]))
        weights = draw(st.integers(1, 50)) * 1_000_000
        work = LayerWork(draw(st.floats(1e7, 1e10)), draw(st.floats(0, 1e7)), 40)
        shared = {
            Cut.TOKENS: Sharing(weights=weights),
            Cut.HEADS: Sharing(LayerWork(work.flops * draw(st.floats(0, 1)), work.moved / 2), weights // 10),
            Cut.BATCH: Sharing(weights=weights),
        }
        for cut in list(shared):
            if draw(st.integers(0, 9)) == 0:
                del shared[cut]
        attentions = (AttentionBytes(int(2 * m), int(m), int(m), int(m / 32)),) * draw(st.integers(0, 2))
        layers.append(LayerCosts(work, weights, int(m), shared, attentions, (int(m),) * 2))
    units = {cut: draw(st.integers(1, 5)) for cut in (Cut.BATCH, Cut.TOKENS, Cut.HEADS)}
    return ModelCosts(tuple(layers), draw(st.integers(1, 10_000)), draw(st.integers(1, 600)), units, {})


@st.composite
def fleets(draw: st.DrawFn, most: int = 3) -> tuple[list[ComputeBox], BoxLinks]:
    """Boxes that may be alike, with and without room for the model, on cables and on one Wi-Fi."""
    boxes, of = [], {}
    for number in range(draw(st.integers(1, most))):
        flops = draw(st.sampled_from([1e10, 3e10, 5e10, 3e11]))
        memory = draw(st.sampled_from([1e9, 1e9, 6e7, 2e7]))
        boxes.append(ComputeBox(f"box-{number}", flops, memory=memory))
        rate = draw(st.sampled_from([1e6, 1e7, 1.2e8]))
        medium = draw(st.sampled_from(["", "", "air"]))
        of[f"box-{number}"] = BoxLink(draw(st.sampled_from([0.0, 1e-3])), rate, rate, rate * 1.5, medium)
    hub = draw(st.sampled_from([1e7, 1.2e8, 1e9]))
    return boxes, BoxLinks(of, BoxLink(0.0, hub, hub))
