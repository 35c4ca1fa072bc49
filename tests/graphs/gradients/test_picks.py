"""Gradients of slices with steps and of pads that repeat or crop: each element back to where it came from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from small_models import FLOAT, INT64, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.gradients.gradients import differentiate

FAR = np.iinfo(np.int64).max
SHAPE = (2, 5, 6)


def check(made: NodeProto, **constants: np.ndarray) -> None:
    """Of sum(dy * y) by x. ONNX Runtime tells where it takes each element of y from."""
    places = np.arange(1, 1 + np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    forward = model([made], {"x": (FLOAT, SHAPE)}, {"y": (FLOAT, ["a", "b", "c"])}, constants, opset=21)
    sources = np.asarray(run(forward, {"x": places})["y"]).astype(np.int64)
    assume(sources.size)
    dy = normal(1, *sources.shape)
    sums = np.zeros(1 + places.size)
    np.add.at(sums, sources, dy.astype(np.float64))
    file = model([made], {"x": (FLOAT, SHAPE)}, {"y": (FLOAT, sources.shape)}, constants, opset=21)
    graph = differentiate(onnx.load_model_from_string(file), SHAPE[0], wrt={"x": "dx"}, seeds={"y": "dy"})
    close(np.asarray(run(graph, {"x": places, "dy": dy})["dx"]), sums[1:].reshape(SHAPE))


@st.composite
def bounds(draw: st.DrawFn) -> tuple[int, int, int]:
    step = draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    far = FAR if step > 0 else -FAR  # the other way onnx and ONNX Runtime do not agree how many there are
    return draw(st.integers(-9, 9)), draw(st.one_of(st.integers(-9, 9), st.just(far))), step


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(bounds(), bounds()),
    st.sampled_from([[1, 2], [-2, -1], [2, 0]]),
)
def test_of_slices_with_steps(cuts: tuple[tuple[int, int, int], ...], axes: list[int]) -> None:
    starts, stops, steps = (np.array(column, np.int64) for column in zip(*cuts, strict=True))
    made = node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])
    check(made, starts=starts, ends=stops, axes=np.array(axes, np.int64), steps=steps)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    st.lists(st.integers(-2, 2), min_size=4, max_size=4),
    st.booleans(),
)
def test_of_pads_that_repeat_and_crop(mode: str, pads: list[int], named: bool) -> None:
    constants = {"pads": np.array(pads if named else [0, *pads[:2], 0, *pads[2:]], np.int64)}
    if named:
        constants["axes"] = np.array([1, -1], np.int64)
    check(node("Pad", ["x", "pads", *(["", "axes"] if named else [])], ["y"], mode=mode), **constants)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE])
def test_in_other_precisions(dtype: int) -> None:
    nodes = [
        node("Cast", ["x"], ["a"], to=dtype),
        node("Slice", ["a", "starts", "ends", "axes", "steps"], ["b"]),
        node("Pad", ["b", "pads"], ["c"], mode="edge"),
        node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    bounds = {"starts": [-1], "ends": [-FAR], "axes": [2], "steps": [-2], "pads": [0, 1, 0, 0, 0, 1]}
    constants = {name: np.array(value, np.int64) for name, value in bounds.items()}
    file = model(nodes, {"x": (FLOAT, SHAPE)}, {"y": (FLOAT, [2, 6, 4])}, constants, opset=21)
    graph = differentiate(onnx.load_model_from_string(file), SHAPE[0], wrt={"x": "dx"}, seeds={"y": "dy"})
    dx = np.asarray(run(graph, {"x": normal(0, *SHAPE), "dy": np.ones((2, 6, 4), np.float32)})["dx"])
    # Backwards by twos: elements 5, 3, 1 and 1 again; and the first row twice.
    close(dx, np.outer([2, 1, 1, 1, 1], [0, 2, 0, 1, 0, 1]) * np.ones((2, 1, 1)))


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (
            node("Slice", ["x", "n", "far", "two", "two"], ["y"], name="cut"),
            "Slice 'cut': a slice with steps",
        ),
        (node("Pad", ["x", "n6"], ["y"], name="wide", mode="edge"), "at Pad 'wide': padding by 'edge'"),
    ],
)
def test_bounds_that_are_data_are_refused_by_the_nodes_name(made: NodeProto, what: str) -> None:
    inputs = {"x": (FLOAT, SHAPE), "n": (INT64, [1]), "n6": (INT64, [6])}
    constants = {"far": np.array([FAR]), "two": np.array([2])}
    file = model([made], inputs, {"y": (FLOAT, [2, 5, 3])}, constants, opset=21)
    with pytest.raises(InvalidGraph, match=what):
        differentiate(onnx.load_model_from_string(file), SHAPE[0], wrt={"x": "dx"}, seeds={"y": "dy"})
