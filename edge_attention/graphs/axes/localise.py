"""A node made local to a part: what it says of sizes and places, said of the part's own range.

Shapes of Reshape and Expand, bounds of Slice, sizes of Split and places of Trilu become inputs that are
constants of the part, so that the graph is the same for all parts and lengths; numbers of heads and of groups
are attributes, and of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, NodeProto

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.rule import Rule

__all__ = ["LocalisedNode", "Sizes", "can_be_local", "localised"]

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
    start: int | None = 0
    """Elements of the result before the range that the part has of a dimension; None: the range is in
    several places of the dimension."""
    plain: Sequence[int | None] = ()
    """By dimension of the first result: its size, where that is the same whatever the lengths."""
    alike: Sequence[bool] = ()
    """Whether the first operand has the same dimension there."""


@dataclass(frozen=True, eq=False)
class LocalisedNode:
    """A node for a part.

    Attributes:
        constants: by input, what is another than in the whole model.
        literals: the same, where it does not depend on lengths.
    """

    node: NodeProto
    constants: Mapping[int, Array] = field(default_factory=dict)
    literals: Mapping[int, Array] = field(default_factory=dict)


Values = Callable[[str], Array | None]
_Localiser = Callable[[NodeProto, Sizes, Values, int], tuple[NodeProto, dict[int, Array]]]


def can_be_local(node: NodeProto, rule: Rule) -> bool:
    """Whether `localised` knows what to change in `node`, if anything must be."""
    return not rule.localised or (
        node.domain in ("", "ai.onnx", "com.microsoft")
        and node.op_type in {*_LOCAL, *_AS_IS, "Reshape", "Expand"}
    )


def localised(node: NodeProto, rule: Rule, sizes: Sizes, values: Values, opset: int) -> LocalisedNode:
    """`node` for a part."""
    if node.op_type in ("Reshape", "Expand"):
        return _to_shape(node, sizes, values)
    return LocalisedNode(*_changed(node, rule, sizes, values, opset))


def _changed(
    node: NodeProto, rule: Rule, sizes: Sizes, values: Values, opset: int
) -> tuple[NodeProto, dict[int, Array]]:
    if node.op_type == "Gather" and _all_rows(node, sizes):
        count = sizes.operands[1]
        return node, {1: np.arange(*count or (1,), dtype=np.int64)}
    if not rule.localised or (
        sizes.operands == sizes.whole_operands and sizes.results == sizes.whole_results
    ):
        return node, {}
    if node.op_type in _AS_IS:
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


def _to_shape(node: NodeProto, sizes: Sizes, values: Values) -> LocalisedNode:
    """Reshape and Expand: the part's own shape; in a form that serves all lengths, where there is one.

    ONNX Runtime knows the shapes of what follows then, and fuses what it can only fuse where it does.
    """
    shape, before = sizes.results[0], sizes.operands[0]
    said = values(node.input[1]) if len(node.input) > 1 else None
    if shape is None or before is None or said is None:
        return LocalisedNode(node)
    reshapes = node.op_type == "Reshape"
    found: list[int] = []
    for size, alike in zip(sizes.plain, sizes.alike, strict=True):
        # 0 copies the size in a Reshape; 1 leaves it as it is in an Expand.
        found.append((0 if reshapes else 1) if alike else -1 if size is None else size)
    plain = _without(node, "allowzero")
    if found.count(-1) <= reshapes and 0 not in shape:
        return LocalisedNode(plain, literals={1: _ints(found)})
    if (sizes.operands, sizes.results) == (sizes.whole_operands, sizes.whole_results):
        return LocalisedNode(node)
    if reshapes and _reshaped(before, said.tolist()) == shape:
        return LocalisedNode(node)
    return LocalisedNode(plain, {1: _ints(shape)})


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
            if count != after[axis]:
                assert sizes.start is not None
                begin += sizes.start * step
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


def _blocked(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """A product with a weight in blocks says how long its rows and columns are."""
    before, after = sizes.operands[0], sizes.results[0]
    assert before is not None
    assert after is not None
    copy = _copy(node)
    for one in copy.attribute:
        if one.name in ("K", "N"):
            one.i = before[-1] if one.name == "K" else after[-1]
    return copy, {}


def _made(node: NodeProto, sizes: Sizes, values: Values, opset: int) -> tuple[NodeProto, dict[int, Array]]:
    """What is made of a shape alone, in the part's own."""
    after = sizes.results[0]
    assert after is not None
    return node, {0: _ints(after)}


_AS_IS = frozenset({"Flatten", "Pad", "Squeeze", "Unsqueeze"})
"""What they say is of other dimensions than a part has a range of."""

_LOCAL: dict[str, _Localiser] = {
    "ConstantOfShape": _made,
    "MatMulNBits": _blocked,
    "Slice": _slice,
    "Tile": _tile,
    "Split": _split,
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv", "QLinearConv"), _grouped),
    "GroupNormalization": _grouped,
    **dict.fromkeys(_COUNTED, _counted),
}
