"""Axes that are products of axes: said to be the same in any order, they come out the same."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from edge_attention.graphs.axes.unify import AxisPart, parts_of, tie


def sizes(parts: list[AxisPart]) -> list[int]:
    return [part.size for part in parts_of(parts)]


def test_an_axis_turns_out_to_be_a_product():
    hidden, heads, width = AxisPart(24), AxisPart(4), AxisPart(6)
    assert tie([hidden], [heads, width])
    assert [part.found() for part in parts_of([hidden])] == [heads.found(), width.found()]


def test_key_heads_are_found_within_query_heads():
    queries, hidden = AxisPart(8), AxisPart(8 * 6)
    assert tie([hidden], [queries, AxisPart(6)])
    keys, shared = AxisPart(2), AxisPart(4)
    assert tie([queries], [keys, shared])
    assert sizes([hidden]) == [2, 4, 6]
    assert parts_of([hidden])[0] is keys.found()


def test_what_is_divided_otherwise_is_not_tied():
    one, other = [AxisPart(12), AxisPart(32)], [AxisPart(8), AxisPart(48)]
    assert not tie(one, other)
    assert sizes(one) == [12, 32]
    assert sizes(other) == [8, 48]
    assert not tie([AxisPart(6)], [AxisPart(4)])


def test_two_axes_of_one_size_stay_two():
    tokens, heads = AxisPart(4), AxisPart(4)
    joined = AxisPart(16)
    assert tie([joined], [tokens, heads])
    first, second = parts_of([joined])
    assert first is tokens.found()
    assert second is heads.found()
    assert first is not second


def test_an_axis_that_is_in_a_product_twice_is_split_in_both_places():
    axis = AxisPart(6)
    assert tie([axis, axis], [AxisPart(6), AxisPart(2), AxisPart(3)])
    assert sizes([axis]) == [2, 3]


@st.composite
def chains(draw):
    """Products of one number, each a coarsening of one finest product: they can all be tied."""
    finest = draw(st.lists(st.integers(2, 4), min_size=1, max_size=6))
    found = []
    for _ in range(draw(st.integers(2, 5))):
        joined = [finest[0]]
        for size in finest[1:]:
            if draw(st.booleans()):
                joined[-1] *= size
            else:
                joined.append(size)
        found.append(joined)
    return found, draw(st.permutations(range(len(found))))


@given(chains())
def test_products_are_one_in_whatever_order_they_are_tied(drawn):
    products, order = drawn
    parts = [[AxisPart(size) for size in product] for product in products]
    for one, other in pairwise(order):
        assert tie(parts[one], parts[other])
    assert tie(parts[order[0]], parts[order[-1]])
    seen = {tuple(map(id, parts_of(product))) for product in parts}
    assert len(seen) == 1
    # No finer than it has to be: as many boundaries as all products have together.
    ends = {prod(product[: i + 1]) for product in products for i in range(len(product))}
    assert len(next(iter(seen))) == len(ends)
