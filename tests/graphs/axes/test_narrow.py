"""The layers of models."""

from __future__ import annotations

from pathlib import Path

import onnx

from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places

DATA = Path(__file__).parents[1] / "data"


def test_between_layers_one_activation_passes():
    bound = bind(onnx.load(DATA / "encoder_torchscript.onnx"), {"n": 3})
    axes = axes_of(bound)
    places = narrow_places(axes)
    halves = [place for place in places if bound.shape(place.alive) == (3, 6, 16) and not place.beside]
    assert {place.size for place in halves} == {3 * 6 * 16 * 4}
    assert len(halves) >= 3  # before the feed-forward of both layers, and before the second layer
    sizes = layer_bytes(axes, places)
    assert len(sizes) == len(places) + 1
    assert all(sizes)
