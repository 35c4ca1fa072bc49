"""Gradients of slices with steps and of pads that repeat or crop, against NumPy's own slices and pads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from small_models import FLOAT, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients import differentiate

FAR = np.iinfo(np.int64).max
BATCH = 2


def gradient(made: NodeProto, x: np.ndarray, y: np.ndarray, **constants: np.ndarray) -> np.ndarray:
    """Of sum(dy * y) by x, found by the graph; dy is y, so that elements differ."""
    file = model([made], {"x": (FLOAT, list(x.shape))}, {"y": (FLOAT, list(y.shape))}, constants, opset=21)
    graph = differentiate(onnx.load_model_from_string(file), BATCH, wrt={"x": "dx"}, seeds={"y": "dy"})
    found = run(graph, {"x": x, "dy": y})["dx"]
    return np.asarray(found)


def expected(x: np.ndarray, y: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """`sources`: for each element of y the flat index in x it copies, or -1."""
    sums = np.zeros(x.size)
    copied = sources >= 0
    np.add.at(sums, sources[copied], y.astype(np.float64)[copied])
    return sums.reshape(x.shape)


ends = st.one_of(st.integers(-9, 9), st.sampled_from([FAR, -FAR]))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(ends, ends, st.sampled_from([-3, -2, -1, 1, 2, 3])), min_size=2, max_size=2),
    st.booleans(),
)
def test_of_slices_with_steps(bounds: list[tuple[int, int, int]], from_the_end: bool) -> None:
    x = normal(0, BATCH, 5, 6)
    # ONNX clamps numbers below the first element where a slice goes down; NumPy counts on: None says it.
    cuts = tuple(
        slice(start, None if step < 0 and end < -size else end, step)
        for (start, end, step), size in zip(bounds, x.shape[1:], strict=True)
    )
    y = x[(slice(None), *cuts)]
    starts, stops, steps = (np.array(column, np.int64) for column in zip(*bounds, strict=True))
    axes = np.array([-2, -1] if from_the_end else [1, 2], np.int64)
    made = node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])
    if not y.size:
        return
    found = gradient(made, x, y, starts=starts, ends=stops, axes=axes, steps=steps)
    close(found, expected(x, y, np.arange(x.size).reshape(x.shape)[(slice(None), *cuts)]))


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    st.lists(st.integers(-2, 3), min_size=4, max_size=4),
    st.booleans(),
)
def test_of_pads_that_repeat_and_crop(mode: str, pads: list[int], named: bool) -> None:
    x = normal(0, BATCH, 5, 6)
    inner, widths = [], []
    for size, before, after in zip(x.shape[1:], pads[:2], pads[2:], strict=True):
        inner.append(slice(max(0, -before), size - max(0, -after)))
        widths.append((max(0, before), max(0, after)))
    if mode != "constant" and min(pads) < 0:
        # ONNX Runtime repeats what is cropped too, NumPy has no crop: not compared.
        return
    places = np.arange(x.size).reshape(x.shape)[(slice(None), *inner)]
    how = {"constant_values": -1} if mode == "constant" else {}
    sources = np.pad(places, [(0, 0), *widths], mode=mode, **how)
    y = normal(1, *sources.shape)
    constants = {"pads": np.array(pads if named else [0, *pads[:2], 0, *pads[2:]], np.int64)}
    if named:
        constants["axes"] = np.array([1, -1], np.int64)
    made = node("Pad", ["x", "pads", *(["", "axes"] if named else [])], ["y"], mode=mode)
    close(gradient(made, x, y, **constants), expected(x, y, sources))


def test_a_slice_that_depends_on_data_is_refused() -> None:
    nodes = [node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"], name="cut")]
    inputs = {"x": (FLOAT, [BATCH, 6]), "starts": (onnx.TensorProto.INT64, [1])}
    constants = {"ends": np.array([FAR]), "axes": np.array([1]), "steps": np.array([2])}
    file = model(nodes, inputs, {"y": (FLOAT, [BATCH, 3])}, constants)
    with pytest.raises(InvalidGraph, match="cannot be differentiated"):
        differentiate(onnx.load_model_from_string(file), BATCH, wrt={"x": "dx"}, seeds={"y": "dy"})
