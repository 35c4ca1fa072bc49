"""A node made local to a part: what it says of sizes and places, said of the part's own range.

Shapes of Reshape and Expand, bounds of Slice, sizes of Split and places of Trilu become inputs that are
constants of the part, so that the graph is the same for all parts and lengths; numbers of heads and of groups
are attributes, and of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, NodeProto

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.rule import Rule

__all__ = ["Sizes", "can_be_local", "localised"]

Shape = tuple[int, ...]

_HEADS = ("num_heads", "kv_num_heads", "q_num_heads")
_COUNTED = frozenset({"MultiHeadAttention", "GroupQueryAttention", "Attention", "RotaryEmbedding"})


@dataclass(frozen=True)
class Sizes:
    """Of a node's operands and results, in order: the part's shapes, and those of the whole."""

    operands: Sequence[Shape | None]
    results: Sequence[Shape | None]
    whole_operands: Sequence[Shape | None]
    whole_results: Sequence[Shape | None]
    start: int = 0
    """Elements of the result, in the dimension that the part has a range of, before that range."""


Values = Callable[[str], Array | None]
_Localiser = Callable[[NodeProto, Sizes, Values, int], tuple[NodeProto, dict[int, Array]]]


def can_be_local(node: NodeProto, rule: Rule) -> bool:
    """Whether `localised` knows what to change in `node`, if anything must be."""
    return not rule.localised or (node.domain in ("", "ai.onnx", "com.microsoft") and node.op_type in _LOCAL)


def localised(
    node: NodeProto, rule: Rule, sizes: Sizes, values: Values, opset: int
) -> tuple[NodeProto, dict[int, Array]]:
    """`node` for a part, and by input the constants that are others than the whole model's."""
    if node.op_type == "Gather" and _all_rows(node, sizes):
        count = sizes.operands[1]
        return node, {1: np.arange(*count or (1,), dtype=np.int64)}
    if not rule.localised or (
        sizes.operands == sizes.whole_operands and sizes.results == sizes.whole_results
    ):
        return node, {}
    return _LOCAL[node.op_type](node, sizes, values, opset)


def _all_rows(node: NodeProto, sizes: Sizes) -> bool:
    """Whether it takes all rows, in order, of which the part has a range: a way to write nothing."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    own, whole = sizes.operands[0], sizes.whole_operands[0]
    return own is not None and whole is not None and own[axis] != whole[axis]


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _without(node: NodeProto, *names: str) -> NodeProto:
    copy = _copy(node)
    kept = [a for a in node.attribute if a.name not in names]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _ints(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)


def _to_shape(
    node: NodeProto, sizes: Sizes, values: Values, opset: int
) -> tuple[NodeProto, dict[int, Array]]:
    """Reshape and Expand: the part's own shape, in numbers."""
    shape = sizes.results[0]
    assert shape is not None
    if node.op_type == "Reshape":
        said = values(node.input[1]) if len(node.input) > 1 else None
        before = sizes.operands[0]
        if said is not None and before is not None and _reshaped(before, said.tolist()) == shape:
            return node, {}
    return _without(node, "allowzero"), {1: _ints(shape)}


def _reshaped(before: Shape, said: Sequence[int]) -> Shape | None:
    """What a Reshape with 0 (as before) and -1 (the rest) makes of a shape."""
    found = [before[n] if size == 0 and n < len(before) else size for n, size in enumerate(said)]
    total = int(np.prod(before, dtype=np.int64))
    if found.count(-1) == 1:
        known = -int(np.prod(found, dtype=np.int64))
        if known <= 0 or total % known:
            return None
        found[found.index(-1)] = total // known
    return tuple(found) if int(np.prod(found, dtype=np.int64)) == total else None


def _slice(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """Bounds along a dimension that the part has a range of, in proportion: one of `[3, heads, dim]`."""
    before, after, whole, own = (
        sizes.operands[0],
        sizes.results[0],
        sizes.whole_operands[0],
        sizes.whole_results[0],
    )
    assert before is not None
    assert after is not None
    assert whole is not None
    assert own is not None
    given = [_said(node, values, n, name) for n, name in enumerate(("", "starts", "ends", "axes", "steps"))]
    starts = given[1]
    assert starts is not None
    axes = given[3] if given[3] is not None else list(range(len(starts)))
    steps = given[4] if given[4] is not None else [1] * len(starts)
    first, last = [], []
    for start, axis, step in zip(starts, axes, steps, strict=True):
        size, count = whole[axis], own[axis]
        begin = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
        if before[axis] == size:
            begin += sizes.start * step if count != after[axis] else 0
        elif step == 1:
            begin = begin // count * after[axis]
        stop = begin + step * after[axis]
        first.append(begin)
        last.append(stop if stop >= 0 else -size - 1)
    if len(node.input) > 1:
        return node, {1: _ints(first), 2: _ints(last)}
    copy = _without(node, "starts", "ends")
    for name, found in (("starts", first), ("ends", last)):
        one = copy.attribute.add()
        one.name, one.type = name, AttributeProto.INTS
        one.ints.extend(found)
    return copy, {}


def _said(node: NodeProto, values: Values, index: int, name: str) -> list[int] | None:
    """An input or, in old opsets, an attribute that is a list of numbers."""
    if index and index < len(node.input) and node.input[index]:
        value = values(node.input[index])
        return None if value is None else [int(v) for v in np.ravel(value)]
    found = next((a for a in node.attribute if a.name == name), None)
    return None if found is None else list(found.ints)


def _tile(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """As often as the part's own result is longer than what it has."""
    before, after = sizes.operands[0], sizes.results[0]
    assert before is not None
    assert after is not None
    return node, {1: _ints([made // size for made, size in zip(after, before, strict=True)])}


def _split(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """Sizes of the part's own pieces."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    lengths = [shape[axis] for shape in sizes.results if shape is not None]
    if opset < 13:
        copy = _without(node, "split")
        one = copy.attribute.add()
        one.name, one.type = "split", AttributeProto.INTS
        one.ints.extend(lengths)
        return copy, {}
    copy = _without(node, "num_outputs")
    if len(copy.input) < 2:
        copy.input.append("#sizes")
    return copy, {1: _ints(lengths)}


def _counted(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """Fewer heads, as many fewer as the part has of the last dimension of what is made."""
    before, whole = sizes.results[0], sizes.whole_results[0]
    assert before is not None
    assert whole is not None
    copy = _copy(node)
    dims = [(b, w) for b, w in zip(before, whole, strict=True) if b != w]
    for one in copy.attribute:
        if one.name in _HEADS and one.i and len(before) == 3 and before[-1] != whole[-1]:
            one.i = one.i * before[-1] // whole[-1]
        elif one.name in _HEADS and one.i and len(before) == 4 and before[1] != whole[1]:
            one.i = one.i * before[1] // whole[1]
    assert len(dims) <= 1
    return copy, {}


def _grouped(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """Groups of a convolution or a norm, fewer where channels are."""
    before, whole = sizes.operands[0], sizes.whole_operands[0]
    assert before is not None
    assert whole is not None
    copy = _copy(node)
    for one in copy.attribute:
        if one.name in ("group", "num_groups") and before[1] != whole[1]:
            one.i = one.i * before[1] // whole[1]
    return copy, {}


_LOCAL: dict[str, _Localiser] = {
    "Reshape": _to_shape,
    "Expand": _to_shape,
    "Slice": _slice,
    "Tile": _tile,
    "Split": _split,
    "Conv": _grouped,
    "GroupNormalization": _grouped,
    **dict.fromkeys(_COUNTED, _counted),
}
