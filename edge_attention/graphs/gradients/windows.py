"""How windows move over an image: the sizes of convolutions and pools, and their padding written out.

V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016. The
side that windows move over is `large` here, the one that has an element a window `small`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from edge_attention.graphs.onnx_file import fixed_shapes

__all__ = ["Shape", "SlidingWindow", "attributes_of", "explicit_windows"]

Shape = tuple[int, ...]
_KINDS = {"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"}


@dataclass(frozen=True)
class SlidingWindow:
    """How a window of a convolution or a pool moves over an image.

    Attributes:
        kernel: its size by spatial axis.
        strides: how far it moves, by axis.
        dilations: the distance of its elements, by axis.
        pads: what is added around the image: the beginnings of all axes, then their ends.
        more: what a transposed convolution adds at the end, by axis (`output_padding`).
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    pads: Shape
    more: Shape

    @classmethod
    def of(cls, given: Mapping[str, Any], kernel: Sequence[int]) -> SlidingWindow:
        """From a node's attributes."""
        rank = len(kernel)
        once, none = [1] * rank, [0] * rank
        return cls(
            tuple(kernel),
            tuple(given.get("strides") or once),
            tuple(given.get("dilations") or once),
            tuple(given.get("pads") or none * 2),
            tuple(given.get("output_padding") or none),
        )

    def spans(self, small: Sequence[int]) -> list[int]:
        """The elements of the padded large side that so many windows reach over."""
        sides = zip(self.strides, small, self.dilations, self.kernel, strict=True)
        return [stride * (n - 1) + dilation * (size - 1) + 1 for stride, n, dilation, size in sides]

    def rest(self, small: Sequence[int], large: Sequence[int]) -> list[int]:
        """The elements at the end of each axis of the padded large side that no window reaches."""
        rank = len(self.kernel)
        sides = zip(large, self.pads[:rank], self.pads[rank:], self.spans(small), strict=True)
        return [size + start + end - span for size, start, end, span in sides]

    def counts(self, small: Sequence[int], large: Sequence[int], padding: bool) -> NDArray[np.float64]:
        """The elements under each window, of shape `small`; those of the padding count or not."""
        counts = np.ones(small)
        for axis, (windows, size) in enumerate(zip(small, large, strict=True)):
            starts = self.strides[axis] * np.arange(windows)[:, None] - self.pads[axis]
            under = starts + self.dilations[axis] * np.arange(self.kernel[axis])
            real = ((under >= 0) & (under < size)).sum(axis=1)
            elements = np.full(windows, self.kernel[axis]) if padding else real
            counts *= elements.reshape([-1 if other == axis else 1 for other in range(len(small))])
        return counts


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name; strings decoded."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def explicit_windows(model: ModelProto) -> None:
    """Write out, in place, the padding of convolutions and pools that other attributes stand for.

    Shapes must have been inferred; a node of the main graph whose shapes are unknown stays as it is, and so
    does one whose windows no padding describes.
    """
    shapes = fixed_shapes(model)
    for node in model.graph.node:
        if node.op_type not in _KINDS or node.domain not in ("", "ai.onnx"):
            continue
        given = attributes_of(node)
        before, after = (shapes.get(name) for name in (node.input[0], node.output[0]))
        kernel = given.get("kernel_shape") or (shapes.get(node.input[1]) or ())[2:]
        if not before or not after or not kernel or "output_shape" in given:
            continue
        small, large = (before, after) if node.op_type == "ConvTranspose" else (after, before)
        window = SlidingWindow.of(given, kernel)
        pads = _pads(given, window, small[2:], large[2:])
        if pads is None:
            continue
        written = {"auto_pad", "ceil_mode", "pads"}
        if given.get("count_include_pad") and "SAME" not in given.get("auto_pad", ""):
            if any(window.pads) and pads != list(window.pads):
                continue  # the padding counts and what overhangs does not
            if not any(window.pads):
                written.add("count_include_pad")
        for attribute in list(node.attribute):
            if attribute.name in written:
                node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("pads", pads))


def _pads(given: Mapping[str, Any], window: SlidingWindow, small: Shape, large: Shape) -> list[int] | None:
    """The pads of a node that has not said them; None where it has, or where none are the same."""
    auto, rank = given.get("auto_pad", "NOTSET"), len(small)
    pairs = zip(window.spans(small), window.more, large, strict=True)
    total = [span + more - size for span, more, size in pairs]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if min(total) < 0 or max(window.dilations) > 1:
            return None  # elements between windows are left out; ONNX Runtime has no SAME with dilation
        half = [size // 2 for size in total]
        other = [size - start for size, start in zip(total, half, strict=True)]
        return half + other if auto == "SAME_UPPER" else other + half
    if not given.get("ceil_mode"):
        return None
    first = list(window.pads[:rank])
    last = [size - start for size, start in zip(total, first, strict=True)]
    if any(end >= size for end, size in zip(last, window.kernel, strict=True)):
        return None  # a window over nothing but padding: the inferred shape has it, ONNX Runtime does not
    return first + [max(end, written) for end, written in zip(last, window.pads[rank:], strict=True)]
