"""What ONNX's sharding spec says of a tensor, and what of that is a cut."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ShardingSpecProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.graphs.axes.sharding import NOBODY, Sharding, owners_of, ranges_of, read_spec, write_spec
from tests.graphs.axes.random_plans import partition

PACKED = ((("batch", 2),), (("tokens", 8),), (("", 3), ("heads.0", 6), ("", 4)))
WEIGHT = ((("", 24),), (("heads.0", 6), ("", 4)))
WIDE = ((("", 24),), (("feedforward.0", 96),))


@st.composite
def ranges(draw):
    size = draw(st.integers(1, 12))
    parts = draw(st.permutations(range(draw(st.integers(1, 4)))))
    whole = partition(draw, size, len(parts))
    return size, tuple(parts), tuple((a, b) if a < b else (0, 0) for a, b in whole)


@given(ranges())
def test_ranges_are_blocks_and_blocks_are_ranges(drawn):
    size, parts, whole = drawn
    owners = owners_of(parts, whole, size)
    assert ranges_of(parts, owners, size) == whole
    assert NOBODY not in owners
    assert min(2, size) <= len(owners) <= size


def test_equal_parts_are_as_many_shards_and_what_nobody_has_is_a_shard_of_no_device():
    assert owners_of((0, 1, 2), ((0, 4), (4, 8), (8, 12)), 12) == (0, 1, 2)
    assert owners_of((0, 1), ((0, 5), (5, 8)), 12) == (0,) * 5 + (1,) * 3 + (NOBODY,) * 4
    spec = write_spec("w", WEIGHT, Sharding("heads.0", 1, (0, NOBODY, 1)))
    assert [list(group.value) for group in spec.index_to_device_group_map] == [[]]
    assert read_spec("w", spec, WEIGHT) == Sharding("heads.0", 1, (0, NOBODY, 1))


def test_parts_in_two_places_and_blocks_that_do_not_come_out_are_no_ranges():
    assert ranges_of((0, 1), (0, 1, 0), 12) is None
    assert ranges_of((0, 1), (0, 1, 1, 1, 1), 12) is None


@given(ranges(), st.booleans())
def test_a_spec_comes_back(drawn, packed):
    size, parts, whole = drawn
    dims = ((("", 4),), ((("", 3),) * packed + (("heads.0", size), ("", 5))))
    sharding = Sharding("heads.0", 1, owners_of(parts, whole, size))
    spec = write_spec("w", dims, sharding)
    read = ShardingSpecProto.FromString(spec.SerializeToString())
    if len(sharding.owners) > 1:
        assert read_spec("w", read, dims) == sharding
    else:  # all with one: no axis of it is in more than one shard
        assert read_spec("w", read, dims) == Sharding("", 0, sharding.owners)


def test_a_whole_tensor_is_with_one_or_with_each():
    for devices in ((3,), (0, 1, 2)):
        spec = write_spec("w", WEIGHT, Sharding("", 0, devices))
        assert read_spec("w", spec, WEIGHT) == Sharding("", 0, devices)


def spec(devices, *dims, groups=()):
    found = ShardingSpecProto(tensor_name="w", device=devices)
    for axis, *shardings in dims:
        dim = found.sharded_dim.add(axis=axis)
        for size, shards in shardings:
            dim.simple_sharding.add(num_shards=shards, **({"dim_value": size} if size else {}))
    for key, value in groups:
        found.index_to_device_group_map.add(key=key, value=value)
    return found


def test_what_others_write_of_a_flat_axis_is_of_its_heads():
    """As for Megatron: the projection's columns over four devices, of which each gets whole heads."""
    dims = ((("", 24),), (("heads.0", 8), ("", 4)))
    for size in (0, 32):
        said = spec([0, 1, 2, 3], (-1, (size, 4)))
        assert read_spec("w", said, dims) == Sharding("heads.0", 1, (0, 1, 2, 3))
    assert read_spec("w", spec([2, 0], (1, (0, 2))), WIDE) == Sharding("feedforward.0", 1, (2, 0))
    assert read_spec("q", spec([0, 1], (1, (0, 2))), PACKED) == Sharding("tokens", 1, (0, 1))


@pytest.mark.parametrize(
    ("said", "dims", "says"),
    [
        (spec([0, 1, 2, 3], (0, (0, 2)), (1, (0, 2))), PACKED, "two of its axes"),
        (spec([0, 1], (0, (0, 2))), WEIGHT, "neither batch, tokens, heads nor feed-forward"),
        (spec([0, 1, 2, 3, 0], (1, (0, 5))), WEIGHT, "none of which may divide one of heads.0"),
        (spec([0, 1], (2, (0, 2))), PACKED, "sharded over 3, which is neither"),
        (spec([0, 1], (2, (5, 1), (14, 2))), PACKED, "does not come out of"),
        (spec([0] * 6, (2, (3, 1), (6, 2), (4, 3))), PACKED, "several factors"),
        (spec([0, 1], (7, (0, 2))), WEIGHT, "no axis 7"),
        (spec([0, 1], (-3, (0, 2))), WEIGHT, "no axis -3"),
        (spec([0], (1, (0, 2))), WEIGHT, "2 shards on 1 devices"),
        (spec([], (1, (0, 2))), WEIGHT, "2 shards on 0 devices"),
        (spec([0, -4], (1, (0, 2))), WEIGHT, "device -4"),
        (spec([-1, -2], (1, (0, 2)), groups=[(-1, [0, 1]), (-2, [2, 3])]), WEIGHT, "replicas"),
        (spec([]), WEIGHT, "on no device"),
        (spec([0] * 70_000, (1, (0, 70_000))), WEIGHT, "at most"),
        (spec([0, 1], (1, (0, -2))), WEIGHT, "several factors"),
    ],
)
def test_what_is_no_cut_is_refused_with_the_reason(said, dims, says):
    says = "65,536 are the most" if says == "at most" else says
    with pytest.raises(InvalidArgument) as caught:
        read_spec("MatMul '/a' weight w", said, dims)
    assert says in str(caught.value)
    assert "MatMul '/a' weight w" in str(caught.value)


def test_the_installed_onnx_has_the_annotation():
    assert onnx.IR_VERSION >= 11
