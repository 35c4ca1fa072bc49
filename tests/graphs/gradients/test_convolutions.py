"""Gradients of convolutions and of means over windows, against sums over windows in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from small_models import FLOAT, INT64, Array, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.gradients.gradients import differentiate
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model

BATCH = 2


@dataclass(frozen=True)
class Windows:
    """`sizes`: of the side that windows move over. `pads`: all beginnings, then all ends."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def counts(self) -> tuple[int, ...]:
        rank = len(self.sizes)
        rooms = [self.sizes[i] + self.pads[i] + self.pads[rank + i] for i in range(rank)]
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        return tuple((room - r) // s + 1 for room, r, s in zip(rooms, reach, self.strides, strict=True))

    def padded(self, large: Array) -> Array:
        rank = len(self.sizes)
        return np.pad(large, [(0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)])

    def unpadded(self, wide: Array) -> Array:
        cut = [slice(start, start + size) for start, size in zip(self.pads, self.sizes, strict=False)]
        return wide[(slice(None), slice(None), *cut)]

    def under(self, offset: Sequence[int]) -> tuple[slice, ...]:
        """Where in the padded side the windows' elements at `offset` lie."""
        return tuple(
            slice(at * dilation, at * dilation + stride * (count - 1) + 1, stride)
            for at, dilation, stride, count in zip(
                offset, self.dilations, self.strides, self.counts(), strict=True
            )
        )

    def attributes(self) -> dict[str, list[int]]:
        names = ("kernel", "strides", "dilations", "pads")
        return {"kernel_shape" if n == "kernel" else n: list(getattr(self, n)) for n in names}


def convolve(large: Array, w: Array, windows: Windows, group: int) -> Array:
    """y[b, o, t] = sum over c, k of w[o, c, k] x[b, c of o's group, t s + k d]."""
    wide, out = windows.padded(large), w.shape[0] // group
    y = np.zeros((len(large), w.shape[0], *windows.counts()))
    for o, c in itertools.product(range(w.shape[0]), range(w.shape[1])):
        for offset in np.ndindex(*windows.kernel):
            channel = o // out * w.shape[1] + c
            y[:, o] += w[(o, c, *offset)] * wide[(slice(None), channel, *windows.under(offset))]
    return y


def transposed(large: Array, small: Array, w: Array, windows: Windows, group: int) -> tuple[Array, Array]:
    """Of <small, convolve(large, w)> the gradients by `large` and by `w`."""
    wide, out = windows.padded(large), w.shape[0] // group
    by_large, by_w = np.zeros_like(wide), np.zeros_like(w)
    for o, c in itertools.product(range(w.shape[0]), range(w.shape[1])):
        for offset in np.ndindex(*windows.kernel):
            at = (slice(None), o // out * w.shape[1] + c, *windows.under(offset))
            by_large[at] += w[(o, c, *offset)] * small[:, o]
            by_w[(o, c, *offset)] = (wide[at] * small[:, o]).sum()
    return windows.unpadded(by_large), by_w


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    rank = draw(st.sampled_from([1, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, dilations = each(1, 3), each(1, 2)
    pads = tuple(draw(st.integers(0, size - 1)) for size in kernel * 2)
    return Windows(each(5, 8), kernel, each(1, 3), dilations, pads)


def gradients(file: bytes, wrt: Sequence[str]) -> bytes:
    return differentiate(
        onnx.load_model_from_string(file), BATCH, wrt={name: f"d{name}" for name in wrt}, seeds={"y": "dy"}
    )


def wide(*arrays: np.ndarray) -> list[Array]:
    return [array.astype(np.float64) for array in arrays]


@settings(deadline=None, max_examples=60)
@given(windows(), st.sampled_from([(1, 2, 3), (2, 1, 1), (3, 1, 2), (2, 2, 1)]))
def test_of_a_convolution_of_any_windows_and_groups(moving: Windows, channels: tuple[int, int, int]) -> None:
    group, per_group, out = channels
    x = normal(0, BATCH, group * per_group, *moving.sizes)
    w, b = normal(1, group * out, per_group, *moving.kernel), normal(2, group * out)
    dy = normal(3, BATCH, group * out, *moving.counts())
    file = model(
        [node("Conv", ["x", "w", "b"], ["y"], group=group, **moving.attributes())],
        {name: (FLOAT, list(value.shape)) for name, value in (("x", x), ("w", w), ("b", b))},
        {"y": (FLOAT, list(dy.shape))},
        {},
    )
    found = run(gradients(file, "xwb"), {"x": x, "w": w, "b": b, "dy": dy})
    by_x, by_w = transposed(*wide(x, dy, w), moving, group)
    close(found["dx"], by_x)
    close(found["dw"], by_w)
    close(found["db"], dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim))))


@settings(deadline=None, max_examples=60)
@given(windows(), st.sampled_from([(1, 2, 3), (2, 1, 1), (2, 2, 1)]))
def test_of_a_transposed_convolution(moving: Windows, channels: tuple[int, int, int]) -> None:
    group, per_group, out = channels
    rank = len(moving.sizes)
    x = normal(0, BATCH, group * out, *moving.counts())
    w, b = normal(1, group * out, per_group, *moving.kernel), normal(2, group * per_group)
    dy = normal(3, BATCH, group * per_group, *moving.sizes)
    reached = [
        stride * (count - 1) + dilation * (size - 1) + 1
        for stride, count, dilation, size in zip(
            moving.strides, moving.counts(), moving.dilations, moving.kernel, strict=True
        )
    ]
    more = [s + moving.pads[i] + moving.pads[rank + i] - reached[i] for i, s in enumerate(moving.sizes)]
    attributes = moving.attributes() | {"output_padding": more}
    file = model(
        [node("ConvTranspose", ["x", "w", "b"], ["y"], group=group, **attributes)],
        {name: (FLOAT, list(value.shape)) for name, value in (("x", x), ("w", w), ("b", b))},
        {"y": (FLOAT, list(dy.shape))},
        {},
    )
    found = run(gradients(file, "xwb"), {"x": x, "w": w, "b": b, "dy": dy})
    # y is the gradient of <x, convolve(y)> by y, so x's gradient is the convolution of dy.
    close(found["dx"], convolve(*wide(dy, w), moving, group))
    close(found["dw"], transposed(*wide(dy, x, w), moving, group)[1])
    close(found["db"], dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim))))


@settings(deadline=None, max_examples=60)
@given(windows(), st.booleans())
def test_of_means_over_windows(moving: Windows, counts_padding: bool) -> None:
    x, dy = normal(0, BATCH, 2, *moving.sizes), normal(1, BATCH, 2, *moving.counts())
    attributes = moving.attributes() | {"count_include_pad": int(counts_padding)}
    file = model(
        [node("AveragePool", ["x"], ["y"], **attributes)],
        {"x": (FLOAT, list(x.shape))},
        {"y": (FLOAT, list(dy.shape))},
        {},
        opset=19,  # dilations
    )
    ones = np.ones((1, 1, *moving.kernel))
    real = np.ones((1, 1, *moving.sizes))
    elements = convolve(real, ones, moving, 1) if not counts_padding else np.full(1, np.prod(moving.kernel))
    w = np.ones((2, 1, *moving.kernel))
    found = run(gradients(file, "x"), {"x": x, "dy": dy})
    close(found["dx"], transposed(x.astype(np.float64), dy / elements, w, moving, 2)[0])


@settings(deadline=None, max_examples=60)
@given(windows(), st.sampled_from([1, 2, 3]))
def test_of_norms_over_windows(moving: Windows, power: int) -> None:
    x, dy = normal(0, BATCH, 2, *moving.sizes), normal(1, BATCH, 2, *moving.counts())
    file = model(
        [node("LpPool", ["x"], ["y"], p=power, **moving.attributes())],
        {"x": (FLOAT, list(x.shape))},
        {"y": (FLOAT, list(dy.shape))},
        {},
    )
    (wide_x,), w = wide(x), np.ones((2, 1, *moving.kernel))
    norms = convolve(np.abs(wide_x) ** power, w, moving, 2) ** (1 / power)
    falls = np.where(norms > 0, np.where(norms > 0, norms, 1) ** (1 - power), 0)  # windows over padding only
    spread = transposed(wide_x, dy * falls, w, moving, 2)[0]
    found = run(gradients(file, "x"), {"x": x, "dy": dy})
    close(found["dx"], spread * np.sign(wide_x) * np.abs(wide_x) ** (power - 1))


def test_a_mean_of_halves() -> None:
    nodes = [
        node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
        node("AveragePool", ["a"], ["b"], kernel_shape=[2]),
        node("Cast", ["b"], ["y"], to=FLOAT),
    ]
    file = model(nodes, {"x": (FLOAT, [BATCH, 1, 4])}, {"y": (FLOAT, [BATCH, 1, 3])}, {})
    found = run(gradients(file, "x"), {"x": normal(0, BATCH, 1, 4), "dy": np.ones((BATCH, 1, 3), np.float32)})
    close(found["dx"], np.broadcast_to([0.5, 1, 1, 0.5], (BATCH, 1, 4)))


def test_a_length_that_is_data() -> None:
    nodes = [
        node("Slice", ["x", "zero", "length", "axis"], ["cut"]),
        node("Conv", ["cut", "w"], ["y"]),
        node("ReduceSum", ["y"], ["sum"], keepdims=0),
    ]
    x, w = normal(0, BATCH, 2, 8), normal(1, 3, 2, 3)
    inputs = {"x": (FLOAT, list(x.shape)), "length": (INT64, [1]), "w": (FLOAT, list(w.shape))}
    constants = {"zero": np.array([0]), "axis": np.array([2])}
    file = onnx.load_model_from_string(model(nodes, inputs, {"sum": (FLOAT, [])}, constants))
    graph = differentiate(file, BATCH, wrt={"w": "dw"}, seeds={"sum": None})
    found = run(graph, {"x": x, "w": w, "length": np.array([6])})
    moving = Windows((6,), (3,), (1,), (1,), (0, 0))
    close(found["dw"], transposed(*wide(x[:, :, :6], np.ones((BATCH, 3, 4)), w), moving, 1)[1])


def network() -> bytes:
    """Images to logits: SAME windows, depthwise and pointwise, a pool that overhangs, and upwards."""
    return model(
        [
            node("Conv", ["x", "first"], ["a"], auto_pad="SAME_UPPER", strides=[2, 2]),
            node("Tanh", ["a"], ["b"]),
            node("Conv", ["b", "depth", "bias"], ["c"], group=4, pads=[1, 1, 1, 1]),
            node("Conv", ["c", "point"], ["d"]),
            node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("ConvTranspose", ["e", "up"], ["f"], group=2, strides=[2, 2]),
            node("Sigmoid", ["f"], ["g"]),
            node("GlobalAveragePool", ["g"], ["h"]),
            node("Flatten", ["h"], ["i"]),
            node("MatMul", ["i", "head"], ["logits"]),
        ],
        {"x": (FLOAT, ["n", 1, 9, 9])},
        {"logits": (FLOAT, ["n", 3])},
        {
            "first": normal(1, 4, 1, 3, 3),
            "depth": normal(2, 4, 1, 3, 3),
            "bias": normal(3, 4),
            "point": normal(4, 6, 4, 1, 1),
            "up": normal(5, 6, 3, 2, 2),
            "head": normal(6, 6, 3),
        },
    )


def test_a_network_of_them_is_checked_by_differences_and_learns() -> None:
    loaded = load_model(network(), loss=LossSpec("cross_entropy"))
    assert check_model(loaded) < 0.02
    graph = gradient_graph(loaded, 12)
    x, labels = normal(0, 12, 1, 9, 9), np.arange(12) % 3
    values = list(loaded.parameters.values())
    losses = []
    for _ in range(60):
        found = run(graph, {"x": x, "labels": labels, **{f"x/{i}": value for i, value in enumerate(values)}})
        losses.append(float(found["loss"]))
        values = [value - np.float32(0.3) * found[f"grad/{i}"] for i, value in enumerate(values)]
    assert losses[-1] < losses[0] / 2


def test_an_overhanging_mean_that_counts_padding_is_refused_by_its_name() -> None:
    windows = {"kernel_shape": [3], "strides": [2], "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1]}
    made = node("AveragePool", ["c"], ["d"], name="pool7", **windows)
    file = model(
        [node("Mul", ["x", "w"], ["c"]), made, node("Flatten", ["d"], ["logits"])],
        {"x": (FLOAT, ["n", 2, 4])},
        {"logits": (FLOAT, ["n", 6])},
        {"w": normal(0, 1, 2, 4)},
    )
    loaded = load_model(file, loss=LossSpec("cross_entropy"))
    what = r"at AveragePool 'pool7': its windows have no equal .* count_include_pad=False"
    with pytest.raises(InvalidGraph, match=what):
        gradient_graph(loaded, BATCH)
