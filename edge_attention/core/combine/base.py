"""What all combines share: weights once a fold, then coordinates, the same bits however they are cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.options import Configured
from edge_attention.core.tensors import Float32

Float64 = NDArray[np.float64]
Needs = Literal["nothing", "norms", "distances"]

BLOCK = 16384  # coordinates worked on at a time, to stay in the cache


@dataclass(frozen=True)
class Combine(Configured, ABC):
    """Makes one update of n. Rows are in the order of nodes, so the same plan gives the same bits."""

    kind: ClassVar[str] = "combine"
    paper: ClassVar[str]
    needs: ClassVar[Needs] = "nothing"

    def require(self, n: int) -> None:
        """Refuse a fold of `n` updates that this combine cannot work with.

        Raises:
            InvalidArgument: it says how many it takes.
        """
        if n < 1:
            raise InvalidArgument(f"{self.name} has no update to fold; wait for one")

    def weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        """What each update counts in `fold`: float64 [n], made once for all pieces.

        `given` float64 [n], 0 or above: by samples, staleness or equal. `norms` float64 [n]: L2 over all
        parameters. `distances2` float64 [n, n]: squared distances over all parameters. The latter two may
        be None unless `needs` says "norms" or "distances".

        Raises:
            InvalidArgument: too few updates for this combine, or no weight above zero.
            InvalidTensor: a weight, norm or distance that is missing, does not fit or is not finite.
        """
        given = _checked("weights", given, (np.size(given),))
        self.require(len(given))
        if self.needs == "norms":
            norms = _checked("norms", norms, (len(given),))
        if self.needs == "distances":
            distances2 = _checked("squared distances", distances2, (len(given), len(given)))
        return self._weights(given, norms, distances2)

    def fold(self, updates: Float32, weights: Float64) -> Float32:
        """The combined update of a piece: float32 [c], of `updates` float32 [n, c] and what `weights` made.

        Coordinate by coordinate, sums in float64. Memory, beside the result: n rows of 16,384 at most.

        Raises:
            InvalidTensor: shapes or dtypes that do not fit, or an update that is not finite.
        """
        if updates.dtype != np.float32 or updates.ndim != 2:
            raise InvalidTensor(
                f"updates are {updates.dtype} {list(updates.shape)}; they must be float32 [n, c]"
            )
        weights = _checked("weights", weights, (len(updates),))
        combined = np.empty(updates.shape[1], np.float32)
        for piece in blocks(updates.shape[1]):
            block = updates[:, piece]
            if not (finite := np.isfinite(block)).all():
                row = int(np.argmin(finite.all(axis=1)))
                raise InvalidTensor(f"update {row} of {len(updates)} holds NaN or Inf; leave its node out")
            combined[piece] = self._fold(block, weights)
        return combined

    @abstractmethod
    def _weights(self, given: Float64, norms: Float64 | None, distances2: Float64 | None) -> Float64:
        """As `weights`, what it was given being checked."""

    @abstractmethod
    def _fold(self, block: Float32, weights: Float64) -> NDArray[np.floating]:
        """As `fold`, of finite [n, b] with b up to `BLOCK`: [b]."""


def blocks(size: int) -> Iterator[slice]:
    """0..size in slices of up to `BLOCK`."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def shares(given: Float64) -> Float64:
    """`given` divided by its sum.

    Raises:
        InvalidArgument: the sum is zero.
    """
    if not given.any():
        raise InvalidArgument("every update weighs 0; give nodes samples, or weigh them equally")
    scaled = given / given.max()  # its sum does not overflow
    return np.asarray(scaled / scaled.sum(), np.float64)


def weighted_sum(block: Float32, weights: Float64) -> Float64:
    """`sum_k weights_k block_k`: float64 [b], row after row, rows of weight 0 left out."""
    total = np.zeros(block.shape[1])
    for row, weight in zip(block, weights.tolist(), strict=True):
        if weight:
            total += np.multiply(row, weight, dtype=np.float64)
    return total


def _checked(what: str, array: Float64 | None, shape: tuple[int, ...]) -> Float64:
    if array is None:
        raise InvalidTensor(f"{what} are missing; this combine needs them")
    if array.dtype != np.float64 or array.shape != shape:
        raise InvalidTensor(f"{what} are {array.dtype} {list(array.shape)}, not float64 {list(shape)}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise InvalidTensor(f"{what} must be finite and 0 or above; they are {array.tolist()}")
    return array
