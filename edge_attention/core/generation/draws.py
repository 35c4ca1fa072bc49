"""Random numbers by their place, and the exponential, the same bits on every machine.

A generator with a state would give other numbers to whoever asks it in another order: a guess that was
verified and thrown away would shift all that follow. Here the number of a place follows from the seed and
the place alone.
"""

from __future__ import annotations

import math
import struct
from hashlib import blake2b

import numpy as np

from edge_attention.core.tensors import Array

__all__ = ["exp", "uniform"]

_LOG2E = 1 / math.log(2)
# log 2 in two: the first has so few digits that its products with whole numbers below 2^11 are exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_TERMS = tuple(1 / math.factorial(n) for n in range(13, -1, -1))


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1), one of 2^53 alike: that of `place` (from 0) for `seed` (int64)."""
    digest = blake2b(struct.pack("<qq", seed, place), digest_size=8, person=b"edge-att draws").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def exp(values: Array) -> Array:
    """e^x of float64 `values` that are at most 0, to 2 units in the last place; below -708 it is 0.

    NumPy's own takes what instructions a processor has, and its last bit with them. Here are only sums,
    products and roundings, which IEEE 754 defines.
    """
    x = np.maximum(values, -708.0)
    whole = np.rint(x * _LOG2E)
    rest = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    result = np.full_like(rest, _TERMS[0])
    for term in _TERMS[1:]:
        result = result * rest + term
    return np.where(values < -708.0, 0.0, np.ldexp(result, whole.astype(np.int32)))
