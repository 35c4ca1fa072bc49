"""Attention partials and their merge: the arithmetic the whole house rests on.

    lse_i = log sum_j exp(s_ij)        out_i = sum_j exp(s_ij - lse_i) v_j
    M = max_i lse_i    w_i = exp(lse_i - M)
    out = sum_i w_i out_i / sum_i w_i  lse = M + log sum_i w_i

Natural logarithms throughout. The identity is `out = 0, lse = -inf`: what a shard with no visible key
returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_attention.core.tensors import Float32, require


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention of some queries over one shard of the keys.

    Attributes:
        out: float32 [..., dim], zero where `lse` is -inf.
        lse: float32 [...], the natural logarithm of the sum of exp(score).
    """

    out: Float32
    lse: Float32

    def check(self, out_shape: tuple[int, ...], what: str) -> Partial:
        """This partial, if it is one of `out_shape`; its identity rows normalised to out = 0.

        Raises:
            InvalidTensor: wrong shape or dtype, NaN anywhere, an infinite `out` or lse = +inf.
        """
        require(self.lse, f"{what}: lse", shape=out_shape[:-1], finite=False)
        lse, out = self.lse, self.out
        # NaN makes a maximum NaN, which is not below anything.
        if lse.size and not lse.max() < np.inf:
            require(np.where(np.isneginf(lse), np.float32(0), lse), f"{what}: lse", shape=out_shape[:-1])
        if lse.size and lse.min() == -np.inf and out.shape == out_shape:
            out = np.where(np.isneginf(lse)[..., None], np.float32(0), out)
        require(out, f"{what}: out", shape=out_shape)
        return Partial(out, self.lse)


def identity(out_shape: tuple[int, ...]) -> Partial:
    """The partial of no keys at all."""
    return Partial(np.zeros(out_shape, np.float32), np.full(out_shape[:-1], -np.inf, np.float32))


def merge(a: Partial, b: Partial) -> Partial:
    """The partial of both shards' keys together (FlashAttention's and FlashInfer's `merge_state`).

    Args:
        a, b: partials of the same queries over disjoint keys, shapes alike.

    Example:
        >>> one = Partial(np.array([[1.0]], np.float32), np.array([0.0], np.float32))
        >>> merge(one, identity((1, 1))).out.item()
        1.0
    """
    top = base = np.maximum(a.lse, b.lse)
    some = not top.size or top.min() > -np.inf
    if not some:
        # Two identities: exp(-inf - -inf) is NaN, so they are measured from 0 and give the identity again.
        base = np.where(np.isneginf(top), np.float32(0), top)
    with np.errstate(over="ignore", divide="ignore"):
        weight_a, weight_b = np.exp(a.lse - base), np.exp(b.lse - base)
        total = weight_a + weight_b
        share = total if some else np.where(total == 0, np.float32(1), total)
        lse = base + np.log(total)
    out = a.out * (weight_a / share)[..., None] + b.out * (weight_b / share)[..., None]
    return Partial(out.astype(np.float32, copy=False), lse.astype(np.float32, copy=False))


def mass(lse_shard: Float32, lse: Float32) -> Float32:
    """The share of global attention a shard received: exp(lse_shard - lse), 0 where nobody saw a key."""
    base = np.where(np.isneginf(lse), np.float32(0), lse)
    share: Float32 = np.exp(lse_shard - base)
    return share


def log_sum_exp(values: list[Float32]) -> Float32:
    """log(sum(exp(values))) over the list, element by element; -inf where all are."""
    stacked = np.stack(values)
    top = stacked.max(axis=0)
    # An infinite top cannot be measured from: -inf stays -inf, and +inf (a useless bound) stays +inf.
    base = np.where(np.isinf(top), np.float32(0), top)
    with np.errstate(divide="ignore", over="ignore"):
        total: Float32 = base + np.log(np.exp(stacked - base).sum(axis=0))
    return total.astype(np.float32, copy=False)
