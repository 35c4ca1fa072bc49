"""The axes of whole models, by what their operators do."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("name", ["encoder_18", "encoder_default", "encoder_torchscript"])
def test_an_encoder_however_it_was_exported(name):
    axes = axes_of(bind(onnx.load(DATA / f"{name}.onnx"), {"n": 3}))
    assert {name: axes.size(name) for name in axes.named} == {
        "tokens": 6,
        "batch": 3,
        "hidden": 16,
        "heads.0": 2,
        "heads.1": 2,
        "feedforward.0": 64,
        "feedforward.1": 64,
    }
    assert not axes.refused
