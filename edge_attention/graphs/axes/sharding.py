"""ONNX's ShardingSpecProto, as far as it means a cut: one axis of a tensor in blocks, each some device's.

The standard splits an axis in shards of equal size, and lists a device a shard. Nothing keeps a device from
being listed twice: so uneven parts are said, 5 + 3 + 4 of 12 heads as 12 shards of the devices

    [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]

and a shard of nobody is a group of no devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from onnx import ShardingSpecProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Ranges

__all__ = ["NOBODY", "NamedDims", "Sharding", "owners_of", "ranges_of", "read_spec", "write_spec"]

NamedDims = tuple[tuple[tuple[str, int], ...], ...]
"""By dimension of a tensor the axes of the model in it, outer to inner: name, "" if it has none, and size."""

NOBODY = -1
MAX_SHARDS = 1 << 16
"""Of one tensor."""


@dataclass(frozen=True)
class Sharding:
    """How a tensor lies over devices.

    Attributes:
        axis: of the model, by name, that is in blocks; "" where each device has all of the tensor.
        dim: of the tensor, that the axis is in.
        owners: by block, in order, the device that has it, or NOBODY; of a whole tensor the devices.
    """

    axis: str
    dim: int
    owners: tuple[int, ...]


def owners_of(parts: Sequence[int], ranges: Ranges, size: int) -> tuple[int, ...]:
    """Which part has which block, in the fewest equal blocks that ranges of `size` elements come out of.

    In two at least, where it can be: an axis in one block would be said to be whole.
    """
    block = math.gcd(size, *(end for span in ranges if span[0] < span[1] for end in span)) or 1
    if block == size > 1:
        block = size // next(n for n in range(2, size + 1) if size % n == 0)
    found = [NOBODY] * (size // block)
    for part, (start, stop) in zip(parts, ranges, strict=True):
        found[start // block : stop // block] = [part] * ((stop - start) // block)
    return tuple(found)


def ranges_of(parts: Sequence[int], owners: Sequence[int], size: int) -> Ranges | None:
    """Each part's range of an axis in these blocks, a part that has none of it [0, 0]; None where blocks do
    not come out even, or what a part has is not one range."""
    if size % len(owners):
        return None
    block = size // len(owners)
    found = []
    for part in parts:
        mine = [n for n, owner in enumerate(owners) if owner == part]
        if mine and mine[-1] - mine[0] + 1 != len(mine):
            return None
        found.append((mine[0] * block, (mine[-1] + 1) * block) if mine else (0, 0))
    return tuple(found)


def write_spec(name: str, dims: NamedDims, sharding: Sharding) -> ShardingSpecProto:
    """The spec of the tensor `name`, which has `dims`."""
    spec = ShardingSpecProto(tensor_name=name)
    if not sharding.axis:
        if len(sharding.owners) == 1:
            spec.device.extend(sharding.owners)
        else:
            _group(spec, sharding.owners)
        return spec
    for owner in sharding.owners:
        if owner == NOBODY and NOBODY not in spec.device:
            _group(spec, ())
        else:
            spec.device.append(owner)
    dim = spec.sharded_dim.add(axis=sharding.dim)
    factors = dims[sharding.dim]
    for axis, size in factors:
        one = dim.simple_sharding.add(num_shards=len(sharding.owners) if axis == sharding.axis else 1)
        if (
            len(factors) > 1
        ):  # of an axis that is alone the dimension's size is its own, whatever it is bound to
            one.dim_value = size
    return spec


def read_spec(where: str, spec: ShardingSpecProto, dims: NamedDims) -> Sharding:
    """What the spec says of a tensor that has `dims`.

    Raises:
        InvalidArgument: it says what is no cut; with `where` and the reason.
    """
    cut = [
        dim for dim in spec.sharded_dim if math.prod(max(s.num_shards, 0) for s in dim.simple_sharding) != 1
    ]
    groups = {entry.key: tuple(entry.value) for entry in spec.index_to_device_group_map}
    if len(spec.device) > MAX_SHARDS:
        _refuse(where, f"is in {len(spec.device):,} shards; {MAX_SHARDS:,} are the most")
    if not cut:
        whole = [one for device in spec.device for one in groups.get(device, (device,))]
        if not whole or min(whole) < 0:
            _refuse(where, "is on no device")
        return Sharding("", 0, tuple(dict.fromkeys(whole)))
    if len(cut) > 1:
        _refuse(where, "is sharded over two of its axes at once; a stage of a plan cuts one")
    axis = cut[0].axis + (len(dims) if cut[0].axis < 0 else 0)
    if not 0 <= axis < len(dims):
        _refuse(where, f"has no axis {cut[0].axis}")
    sizes = [
        (s.dim_value if s.WhichOneof("dim") == "dim_value" else 0, s.num_shards)
        for s in cut[0].simple_sharding
    ]
    name, shards = _named(where, sizes, dims[axis])
    owners = []
    for device in spec.device:
        group = groups.get(device, (device,))
        if len(group) > 1:
            _refuse(
                where,
                f"has a shard on {len(group)} devices; replicas are not the plan's, but named at deployment",
            )
        owners.append(group[0] if group else NOBODY)
        if group and group[0] < 0:
            _refuse(where, f"has a shard on device {group[0]}")
    if len(owners) != shards:
        _refuse(where, f"has {shards} shards on {len(owners)} devices")
    return Sharding(name, axis, tuple(owners))


def _named(
    where: str, said: Sequence[tuple[int, int]], factors: Sequence[tuple[str, int]]
) -> tuple[str, int]:
    """Which axis of the model is cut, in how many shards; `said` is (size or 0, shards), outer to inner."""
    split = [n for n, (_, shards) in enumerate(said) if shards != 1]
    if len(split) != 1 or said[split[0]][1] < 1:
        _refuse(where, "is sharded over several factors of one axis at once; a stage of a plan cuts one")
    at = split[0]
    shards = said[at][1]
    outer = math.prod(size for size, _ in said[:at])
    left = list(factors)
    while left and outer > 1 and left[0][1] and outer % left[0][1] == 0:
        outer //= left.pop(0)[1]
    if outer != 1 or not left:
        _refuse(where, f"is sharded within {_text(factors)}, which it does not come out of")
    (name, size), *inner = left
    if at == len(said) - 1 and not said[at][0]:
        block = math.prod(of for _, of in left)
    else:
        block = said[at][0] or size
    if not name:
        _refuse(
            where,
            f"is sharded over {_text(left[:1])}, which is neither batch, tokens, heads nor feed-forward",
        )
    if block != size:  # several axes taken as one: shards must be of whole elements of the outer one
        rest = math.prod(of for _, of in inner)
        if block != size * rest or size % shards:
            _refuse(where, f"is in {shards} shards of {_text(left)}, none of which may divide one of {name}")
    return name, shards


def _text(factors: Iterable[tuple[str, int]]) -> str:
    return " x ".join(f"{shown(name, 60)} ({size})" if name else str(size) for name, size in factors)


def _group(spec: ShardingSpecProto, devices: Sequence[int]) -> None:
    spec.device.append(NOBODY)
    spec.index_to_device_group_map.add(key=NOBODY, value=devices)


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidArgument(f"the sharding annotation cannot be run: {where} {what}")
