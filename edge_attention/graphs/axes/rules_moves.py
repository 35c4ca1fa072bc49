"""Rules of what moves: transposes, reshapes, slices, splits, joins.

A factor in results alone is made by the node, and a part can make a range of it where the node is localised:
what an Expand repeats, the range that a Slice takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from operator import mul

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does

__all__ = ["MOVES"]

_MAX_READERS = 64
"""Nodes that read a tensor whose slices are looked at together."""


def transpose(make: Making) -> None:
    side = make.factors(make.x(0))
    order = make.at("perm") or list(range(len(side)))[::-1]
    make.operand(0, side)
    make.result(0, [side[axis] for axis in order])


def reshape(make: Making) -> None:
    """Splits and joins axes. Between places where both shapes have a boundary, dimensions are products.

    Where they are no products of the same (6 x 4 as 8 x 3) all of those must be whole.
    """
    before, after = make.x(0), make.y()
    left: Side = [()] * len(before)
    right: Side = [()] * len(after)
    i = j = 0
    while i < len(before) or j < len(after):
        start, stop = (i, j), _boundary(before, after, i, j)
        i, j = stop
        _between(make, left, right, slice(start[0], i), slice(start[1], j))
    make.operand(0, left)
    make.result(0, right)
    make.localised = True


def _boundary(before: tuple[int, ...], after: tuple[int, ...], i: int, j: int) -> tuple[int, int]:
    """How far it is from dimensions i and j to the next place that both shapes have."""
    have = want = 1
    first = True
    while first or have != want:
        first = False
        if (have <= want and i < len(before)) or j >= len(after):
            have, i = have * before[i], i + 1
        else:
            want, j = want * after[j], j + 1
    return i, j


def _between(make: Making, left: Side, right: Side, i: slice, j: slice) -> None:
    """Dimensions of equal products, with no boundary in common within."""
    before, after = list(make.x(0)[i]), list(make.y()[j])
    if not all(b % a == 0 for a, b in pairwise(sorted({*accumulate(before, mul), *accumulate(after, mul)}))):
        make.why = f"{make.label} makes {after} of {before}, which are no products of the same"
        left[i] = make.factors(before, Does.WHOLE)
        right[j] = make.factors(after, Does.WHOLE)
        return
    places = sorted({1, *accumulate(before, mul), *accumulate(after, mul)})
    made = {b: make.factor(b // a) for a, b in pairwise(places)}
    for side, where, sizes in ((left, i, before), (right, j, after)):
        outer = 1
        for axis, size in enumerate(sizes, start=where.start):
            side[axis] = tuple(f for b in places if outer < b <= outer * size for f in made[b])
            outer *= size


def expand(make: Making) -> None:
    side = make.factors(make.y())
    make.result(0, side)
    make.broadcast(0, side)
    make.localised = True


def tile(make: Making) -> None:
    left = make.factors(make.x(0))
    out = [
        (*make.factor(after // before), *factor)
        for before, after, factor in zip(make.x(0), make.y(), left, strict=True)
    ]
    make.operand(0, left)
    make.result(0, out)
    make.localised = make.x(0) != make.y()


def gather(make: Making) -> None:
    shape, index = make.x(0), make.x(1)
    axis = make.at("axis", 0) % len(shape)
    side = [make.factor(n, Does.PICK if i == axis else Does.CARRY) for i, n in enumerate(shape)]
    rows = make.factors(index)
    make.operand(0, side)
    make.operand(1, rows)
    make.result(0, [*side[:axis], *rows, *side[axis + 1 :]])


def gather_elements(make: Making) -> None:
    shape, index = make.x(0), make.x(1)
    axis = make.at("axis", 0) % len(shape)
    rows = make.factors(index)
    side: Side = []
    for i, size in enumerate(shape):
        same = i != axis and size == index[i]
        side.append(rows[i] if same else make.factor(size, Does.PICK if i == axis else Does.WHOLE))
        if i != axis and not same:
            make.must(rows[i], f"{make.label} takes some of an axis")
    make.operand(0, side)
    make.operand(1, rows)
    make.result(0, rows)


def gather_nd(make: Making) -> None:
    shape, index, batch = make.x(0), make.x(1), make.at("batch_dims", 0)
    deep = index[-1]
    rows = make.factors(index[:-1])
    picked = make.factors(shape[batch : batch + deep], Does.PICK)
    rest = make.factors(shape[batch + deep :])
    make.operand(0, [*rows[:batch], *picked, *rest])
    make.operand(1, [*rows, make.factor(deep, Does.WHOLE)])
    make.result(0, [*rows, *rest])


def slice_(make: Making) -> None:
    """An axis that is not sliced is carried. Of one that is cut into pieces of one size, taken by several
    slices, each piece is one of an outer factor; of any other the range is made anew."""
    shape, after = make.x(0), make.y()
    bounds = slice_bounds(make)
    if bounds is None:
        make.whole(f"{make.label} takes a range that data tells")
        return
    left: Side = []
    right: Side = []
    for axis, (size, taken) in enumerate(zip(shape, after, strict=True)):
        start, step = bounds.get(axis, (0, 1))
        if size == taken and step == 1:
            factor = make.factor(size)
            left.append(factor)
            right.append(factor)
        elif step == 1 and taken > 1 and size % taken == 0 and start % taken == 0 and _in_pieces(make, axis):
            outer, inner = make.factor(size // taken, Does.PICK), make.factor(taken)
            left.append((*outer, *inner))
            right.append(inner)
        elif step > 1 and size % step == 0 and taken == size // step and 0 <= start < step:
            outer, inner = make.factor(taken), make.factor(step, Does.PICK)
            left.append((*outer, *inner))
            right.append(outer)
        else:
            left.append(make.factor(size, Does.PICK))
            right.append(make.factor(taken))
    make.operand(0, left)
    make.result(0, right)
    make.localised = True


def slice_bounds(make: Making) -> dict[int, tuple[int, int]] | None:
    """By axis the first element and the step; None if data tells them."""
    if len(make.node.input) < 2:
        return None
    given = [make.constant(position) for position in range(1, 5)]
    if any(value is None and make.has(position) for position, value in enumerate(given, start=1)):
        return None
    starts, _, axes, steps = given
    if starts is None:
        return None
    rank, shape = len(make.x(0)), make.x(0)
    chosen = [int(a) % rank for a in axes.reshape(-1)] if axes is not None else list(range(starts.size))
    found = {}
    for place, axis in enumerate(chosen):
        start = int(starts.reshape(-1)[place])
        step = int(steps.reshape(-1)[place]) if steps is not None else 1
        found[axis] = (max(start + shape[axis], 0) if start < 0 else min(start, shape[axis]), step)
    return found


def _in_pieces(make: Making, axis: int) -> bool:
    """Whether the slices of this tensor along `axis` are pieces of one size, each taken."""
    name, size = make.node.input[0], make.x(0)[axis]
    if len(make.bound.readers.get(name, ())) > _MAX_READERS:
        return False
    starts: set[int] = set()
    taken = make.y()[axis]
    for number in make.bound.readers.get(name, ()):
        node = make.bound.nodes[number]
        if node.op_type != "Slice" or node.input[0] != name or node.output[0] not in make.bound.specs:
            continue
        other = Making(node, make.bound)
        bounds = slice_bounds(other)
        if bounds is not None and other.y()[axis] == taken:
            starts.add(bounds.get(axis, (0, 1))[0])
    return starts >= set(range(0, size, taken))


def split(make: Making) -> None:
    shape = make.x(0)
    axis = make.at("axis", 0) % len(shape)
    sizes = [make.bound.shape(name)[axis] for name in make.node.output if name]
    side = [*make.factors(shape[:axis]), (), *make.factors(shape[axis + 1 :])]
    even = len(set(sizes)) == 1 and sum(sizes) == shape[axis] and len(sizes) == len(make.node.output)
    if even:
        inner = make.factor(sizes[0])
        outer = make.factor(len(sizes), Does.PICK)
        make.operand(0, [*side[:axis], (*outer, *inner), *side[axis + 1 :]])
    else:
        make.operand(0, [*side[:axis], make.factor(shape[axis], Does.PICK), *side[axis + 1 :]])
    for position, name in enumerate(make.node.output):
        if name:
            own = inner if even else make.factor(make.y(position)[axis])
            make.result(position, [*side[:axis], own, *side[axis + 1 :]])
    make.localised = True


def concat(make: Making) -> None:
    """What is joined along an axis must be whole there: pieces of one size may be of different axes."""
    out = make.y()
    axis = make.at("axis", 0) % len(out)
    side = make.factors(out)
    alone = [p for p in range(len(make.node.input)) if make.x(p)[axis]]
    for position in range(len(make.node.input)):
        own = side[axis]
        if len(alone) > 1:
            own = make.factor(make.x(position)[axis], Does.WHOLE)
        make.operand(position, [*side[:axis], own, *side[axis + 1 :]])
    if len(alone) > 1:
        make.must(side[axis], f"{make.label} joins along it")
    make.result(0, side)


def pad(make: Making) -> None:
    left: Side = []
    right: Side = []
    for before, after in zip(make.x(0), make.y(), strict=True):
        if before == after:
            factor = make.factor(before)
            left.append(factor)
            right.append(factor)
        else:
            left.append(make.factor(before, Does.WHOLE))
            right.append(make.factor(after, Does.WHOLE))
            make.why = f"{make.label} pads it"
    make.operand(0, left)
    make.result(0, right)
    make.localised = True


def trilu(make: Making) -> None:
    rank = len(make.y())
    side = [make.factor(n, Does.WHOLE if i >= rank - 2 else Does.CARRY) for i, n in enumerate(make.y())]
    make.why = f"{make.label} goes by positions along it"
    make.operand(0, side)
    make.result(0, side)


def one_hot(make: Making) -> None:
    rows = make.factors(make.x(0))
    axis = make.at("axis", -1) % len(make.y())
    make.operand(0, rows)
    make.result(0, [*rows[:axis], make.factor(make.y()[axis], Does.WHOLE), *rows[axis:]])


def top_k(make: Making) -> None:
    axis = make.at("axis", -1) % len(make.x(0))
    side = make.factors(make.x(0))
    make.must(side[axis], f"{make.label} picks the largest of it")
    make.operand(0, side)
    out = [make.factor(make.y(0)[i], Does.WHOLE) if i == axis else f for i, f in enumerate(side)]
    make.result(0, out)
    make.result(1, out)


def scatter_elements(make: Making) -> None:
    shape, index = make.x(0), make.x(1)
    axis = make.at("axis", 0) % len(shape)
    side = make.factors(shape)
    rows: Side = []
    for i, size in enumerate(index):
        if i != axis and size == shape[i]:
            rows.append(side[i])
        else:
            make.must(side[i], f"{make.label} writes along it")
            rows.append(make.factor(size, Does.WHOLE))
    make.operand(0, side)
    make.operand(1, rows)
    make.operand(2, rows)
    make.result(0, side)


def scatter_nd(make: Making) -> None:
    shape, index = make.x(0), make.x(1)
    deep = index[-1]
    side = make.factors(shape)
    for factors in side[:deep]:
        make.must(factors, f"{make.label} writes along it")
    rows = make.factors(index[:-1], Does.WHOLE)
    make.operand(0, side)
    make.operand(1, [*rows, make.factor(deep, Does.WHOLE)])
    make.operand(2, [*rows, *side[deep:]])
    make.result(0, side)


def made_anew(make: Making) -> None:
    """ConstantOfShape of sizes that are known, too large to be kept: a part can make a range of it."""
    make.result(0, make.factors(make.y()))
    make.localised = True


MOVES: Mapping[str, MakesRule] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    "Concat": concat,
    "ConstantOfShape": made_anew,
    "Expand": expand,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "Split": split,
    "Tile": tile,
    "TopK": top_k,
    "Transpose": transpose,
    "Trilu": trilu,
}
