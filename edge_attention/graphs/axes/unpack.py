"""Takes packed products apart: one that makes queries, keys and values of unlike sizes becomes three.

    Split(x W + b, [h d, g d, g d])   ->   x W_q + b_q,  x W_k + b_k,  x W_v + b_v

Packed, no axis of W is one of heads: its columns are h + 2 g heads of three kinds. Apart, each piece has its
own. A piece of a weight is a range of its initializer, and is read as any other part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, helper

from edge_attention.core.schedule.extents import AxisSpan, Extent
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.reading.needed import reads

__all__ = ["Unpacked", "unpack"]

_MAX_PIECES = 64
"""Of a packed product."""


@dataclass
class Unpacked:
    """Nodes with packed products taken apart.

    Attributes:
        pieces: name -> of which initializer it is a piece, where, and its form.
        forms: of what the new nodes make besides.
    """

    nodes: list[NodeProto]
    pieces: dict[str, tuple[str, Extent, TensorForm]] = field(default_factory=dict)
    forms: dict[str, TensorForm] = field(default_factory=dict)


@dataclass(frozen=True)
class _Surroundings:
    form: Callable[[str], TensorForm | None]
    value: Callable[[str], Array | None]
    is_weight: Callable[[str], bool]
    fresh: Callable[[str], str]


def unpack(
    nodes: Sequence[NodeProto],
    outputs: frozenset[str],
    form: Callable[[str], TensorForm | None],
    value: Callable[[str], Array | None],
    is_weight: Callable[[str], bool],
    fresh: Callable[[str], str],
) -> Unpacked:
    """Take apart each product with a weight that is split into unlike pieces, and read by nothing else.

    Args:
        nodes: in topological order.
        outputs: of the model: what is one is not taken apart.
        form, value: of a tensor, None where it is not known, or no constant.
        is_weight: whether it is an initializer that a part of may be read.
        fresh: a new name like the given one.
    """
    around = _Surroundings(form, value, is_weight, fresh)
    made = {name: node for node in nodes for name in node.output if name}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    done = Unpacked([])
    instead: dict[int, list[NodeProto]] = {}
    for node in nodes:
        bounds = _pieces(node, readers, around) if id(node) not in instead else None
        chain = _chain(node.input[0], made, readers, outputs, around) if bounds else None
        if not bounds or not chain:
            continue
        parts = [_part(chain, start, stop, name, around, done) for name, start, stop in bounds]
        if None in parts:
            continue
        for reader in readers[node.input[0]]:
            instead[id(reader)] = []
        instead[id(node)] = [made_of for part in parts if part is not None for made_of in part]
        instead.update((id(one), []) for one in chain)
    for node in nodes:
        done.nodes += instead.get(id(node), [node])
    return done


def _pieces(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], around: _Surroundings
) -> list[tuple[str, int, int]] | None:
    """Of a Split, or of Slices that together take all, along the last axis: outputs, their starts and stops.

    None where it is none, or the pieces are of one size: those are seen as they are.
    """
    if node.domain or node.op_type not in ("Split", "Slice"):
        return None
    source = around.form(node.input[0])
    if source is None:
        return None
    rank = len(source.shape)
    if len(readers[node.input[0]]) > _MAX_PIECES:
        return None
    found: list[tuple[str, int, int]] = []
    if node.op_type == "Split":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        alone = len(readers[node.input[0]]) == 1
        if axis % rank != rank - 1 or not all(node.output) or not alone:
            return None
        start = 0
        for name in node.output:
            form = around.form(name)
            if form is None:
                return None
            found.append((name, start, start + form.shape[-1]))
            start += form.shape[-1]
    else:
        for other in readers[node.input[0]]:
            span = _span(other, node.input[0], rank, around)
            if span is None:
                return None
            found.append(span)
        found.sort(key=lambda piece: piece[1])
    ends = [0, *(stop for _, _, stop in found)]
    whole = ends[-1] == source.shape[-1] and all(s == e for (_, s, _), e in zip(found, ends, strict=False))
    unlike = len({stop - start for _, start, stop in found}) > 1
    return found if whole and unlike else None


def _span(node: NodeProto, source: str, rank: int, around: _Surroundings) -> tuple[str, int, int] | None:
    if node.op_type != "Slice" or node.domain or node.input[0] != source or len(node.input) < 4:
        return None
    given = [around.value(name) if name else None for name in node.input[1:]]
    starts, axes = given[0], given[2]
    steps = given[3] if len(given) > 3 else None
    form, whole = around.form(node.output[0]), around.form(source)
    if starts is None or axes is None or form is None or whole is None or starts.size != 1:
        return None
    if int(axes.reshape(-1)[0]) % rank != rank - 1 or (steps is not None and int(steps.reshape(-1)[0]) != 1):
        return None
    start = int(starts.reshape(-1)[0])
    start = start + whole.shape[-1] if start < 0 else start
    return node.output[0], start, start + form.shape[-1]


def _chain(
    name: str,
    made: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    outputs: frozenset[str],
    around: _Surroundings,
) -> list[NodeProto] | None:
    """The product that makes a tensor, and the bias added behind it, in order; None if it is none."""
    node = made.get(name)
    if node is None or name in outputs:
        return None
    if node.op_type == "Add" and not node.domain:
        bias = [x for x in node.input if around.is_weight(x)]
        rest = [x for x in node.input if not around.is_weight(x)]
        if len(bias) != 1 or len(rest) != 1 or len(readers[rest[0]]) > 1 or rest[0] in outputs:
            return None
        form = around.form(bias[0])
        product = made.get(rest[0])
        if form is None or len(form.shape) != 1 or product is None or _weights(product, around) is None:
            return None
        return [product, node]
    return [node] if _weights(node, around) is not None else None


def _weights(node: NodeProto, around: _Surroundings) -> list[tuple[int, int, int]] | None:
    """Of a product: which inputs are its weights, along which axis they have columns, and how much each."""
    at = {a.name: a for a in node.attribute}
    if len(node.input) < 2 or not around.is_weight(node.input[1]):
        return None
    form = around.form(node.input[1])
    if form is None:
        return None
    if node.op_type in ("MatMul", "Gemm") and not node.domain:
        turned = node.op_type == "Gemm" and "transB" in at and bool(at["transB"].i)
        plain = len(node.input) == 2 and len(form.shape) == 2
        return [(1, 0 if turned else 1, 1)] if plain else None
    if (node.domain, node.op_type) != ("com.microsoft", "MatMulNBits") or "N" not in at:
        return None
    columns = at["N"].i
    found = [(1, 0, 1)]
    for position in (2, 3, 5):
        if position < len(node.input) and node.input[position]:
            own = around.form(node.input[position])
            if own is None or not around.is_weight(node.input[position]) or own.shape[0] % columns:
                return None
            found.append((position, 0, own.shape[0] // columns))
    return None if len(node.input) > 4 and node.input[4] else found


def _part(
    chain: list[NodeProto], start: int, stop: int, name: str, around: _Surroundings, done: Unpacked
) -> list[NodeProto] | None:
    """The nodes that make columns `start` to `stop` of what the chain makes, as `name`."""
    product = NodeProto()
    product.CopyFrom(chain[0])
    for position, axis, each in _weights(chain[0], around) or []:
        product.input[position] = _piece(
            product.input[position], axis, start * each, stop * each, around, done
        )
    for attribute in product.attribute:
        if attribute.name == "N":
            attribute.i = stop - start
    target = name if len(chain) == 1 else around.fresh(name)
    del product.output[:]
    product.output.append(target)
    product.name = target
    if len(chain) == 1:
        return [product]
    whole = around.form(name)
    if whole is None:
        return None
    done.forms[target] = whole
    bias = next(x for x in chain[1].input if around.is_weight(x))
    piece = _piece(bias, 0, start, stop, around, done)
    return [product, helper.make_node("Add", [target, piece], [name], name=name)]


def _piece(weight: str, axis: int, start: int, stop: int, around: _Surroundings, done: Unpacked) -> str:
    form = around.form(weight)
    if form is None:
        raise ValueError(f"{weight} has no shape")
    name = around.fresh(f"{weight}[{start}:{stop}]")
    shape = tuple(stop - start if i == axis else n for i, n in enumerate(form.shape))
    span = AxisSpan(axis, start, stop, form.shape[axis])
    done.pieces[name] = (weight, (span,), TensorForm(form.dtype, shape))
    return name
