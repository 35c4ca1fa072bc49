"""Extents: what is taken piece by piece and placed again is the tensor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.schedule.extents import AxisSpan, extent_shape, place, take


@st.composite
def partitions(draw):
    """A shape, and for some of its axes how it is cut: lists of spans."""
    shape, cuts = [], []
    for axis in range(draw(st.integers(1, 3))):
        outer, size, inner = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3)))
        shape.append(outer * size * inner)
        if draw(st.booleans()):
            ends = sorted([0, size, *draw(st.lists(st.integers(0, size), max_size=3))])
            cuts.append([AxisSpan(axis, a, b, size, outer, inner) for a, b in itertools.pairwise(ends)])
    return tuple(shape), cuts


@given(partitions())
def test_pieces_of_every_box_make_the_tensor(partition):
    shape, cuts = partition
    whole = np.arange(math.prod(shape)).reshape(shape)
    again = np.full(shape, -1)
    for extent in itertools.product(*cuts):
        piece = take(whole, extent)
        assert piece.shape == extent_shape(shape, extent)
        place(again, extent, piece)
    assert (again == whole).all()


def test_a_range_of_heads_is_in_three_places_of_packed_queries_keys_and_values():
    packed = np.arange(3 * 4 * 2).reshape(3, 4, 2)
    heads = take(packed.reshape(1, 24), (AxisSpan(1, 1, 3, 4, outer=3, inner=2),))
    assert (heads == packed[:, 1:3].reshape(1, 12)).all()


def test_a_piece_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="is given"):
        place(np.zeros((4, 4)), (AxisSpan(0, 0, 2, 4),), np.zeros((3, 4)))


def test_a_span_of_another_axis_is_refused():
    with pytest.raises(ValueError, match="of another axis"):
        take(np.zeros((4, 4)), (AxisSpan(0, 0, 2, 5),))
