"""Values that hurt: the ends of every type, zero, what is no number, sizes that nobody has memory for."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from onnx import ModelProto, helper

Array = np.ndarray[Any, Any]

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    -7,
    64,
    255,
    1 << 15,
    1 << 20,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 32,
    1 << 40,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e9, -1e9, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
SHAPES = (
    (),
    (0,),
    (1,),
    (2,),
    (4,),
    (1, 1),
    (2, 3),
    (4, 4),
    (0, 3),
    (1, 4, 8),
    (2, 3, 4),
    (1, 2, 4, 4),
    (1, 1, 1, 1),
    (1, 2, 0, 4),
    (1, 2, 3, 4, 5),
    (65536,),
)


def number(rng: Random, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return rng.random() < 0.5
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        return rng.choice([int(ends.min), int(ends.max), *(n for n in INTEGERS if ends.min <= n <= ends.max)])
    return rng.choice(REALS)


def array(rng: Random, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Of extremes, or of one of them all over."""
    made = np.empty(shape, dtype)
    with np.errstate(all="ignore"):
        if rng.random() < 0.5:
            made[...] = number(rng, dtype)
        else:
            some = np.array([number(rng, dtype) for _ in range(16)]).astype(dtype)
            made.reshape(-1)[:] = np.resize(some, made.size)
    return made


def splashed(rng: Random, given: Array) -> Array:
    """With some elements replaced by extremes; or all; or of another shape."""
    chance = rng.random()
    if chance < 0.15:
        return array(rng, given.dtype, rng.choice(SHAPES))
    if chance < 0.4 or not given.size:
        return array(rng, given.dtype, given.shape)
    made = given.copy()
    flat = made.reshape(-1)
    with np.errstate(all="ignore"):
        for _ in range(rng.randint(1, 3)):
            flat[rng.randrange(flat.size)] = np.array(number(rng, given.dtype)).astype(given.dtype)
    return made


def feeds_of(rng: Random, model: ModelProto, size: int = 2) -> dict[str, Array]:
    """Arrays for the inputs that a graph declares; a dimension that is not fixed is `size`."""
    held = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        if value.name in held or not kind.elem_type:
            continue
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, TypeError):
            continue
        dims = [dim.dim_value if 0 < dim.dim_value < 4096 else size for dim in kind.shape.dim]
        if dtype.kind not in "biuf" or int(np.prod(dims)) > 1 << 20:
            continue
        feeds[value.name] = (
            array(rng, dtype, tuple(dims))
            if rng.random() < 0.5
            else np.random.default_rng(rng.getrandbits(32)).integers(0, 4, dims).astype(dtype)
        )
    return feeds
