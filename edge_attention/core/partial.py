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

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention of some queries over one shard of the keys.

    Attributes:
        out: float32 [..., dim], zero where `lse` is -inf.
        lse: float32 [...], the natural logarithm of the sum of exp(score).
        full: both are float32 and known to be finite throughout: no row of it is the identity.
    """

    out: Float32
    lse: Float32
    full: bool = False

    def check(self, out_shape: tuple[int, ...], what: str) -> Partial:
        """This partial, if it is one of `out_shape`; its identity rows normalised to out = 0.

        Raises:
            InvalidTensor: wrong shape or dtype, NaN anywhere, an infinite `out` or lse = +inf.
        """
        lse, out = self.lse, self.out
        if out.shape == out_shape and lse.shape == out_shape[:-1] and _plain(out) and _plain(lse):
            return Partial(out, lse, True)
        require(lse, f"{what}: lse", shape=out_shape[:-1], finite=False)
        # NaN makes a maximum NaN, which is not below anything.
        if lse.size and not lse.max() < np.inf:
            require(np.where(np.isneginf(lse), np.float32(0), lse), f"{what}: lse", shape=out_shape[:-1])
        if lse.size and lse.min() == -np.inf and out.shape == out_shape:
            out = np.where(np.isneginf(lse)[..., None], np.float32(0), out)
        require(out, f"{what}: out", shape=out_shape)
        return Partial(out, self.lse)


def _plain(array: Float32) -> bool:
    """Whether `array` is float32, and all of it finite."""
    return array.dtype == _FLOAT32 and bool(np.logical_and.reduce(np.isfinite(array), axis=None))


def identity(out_shape: tuple[int, ...]) -> Partial:
    """The partial of no keys at all."""
    return Partial(np.zeros(out_shape, np.float32), np.full(out_shape[:-1], -np.inf, np.float32))


def merge(a: Partial, b: Partial) -> Partial:
    r"""Attention over the keys of both shards, from the attention over each.

    .. math:: M = \max(lse_a, lse_b), \quad w_a = e^{lse_a - M}, \quad w_b = e^{lse_b - M}

    .. math:: out = \frac{w_a\, out_a + w_b\, out_b}{w_a + w_b}, \qquad lse = M + \ln(w_a + w_b)

    Exact up to float32's rounding, commutative to the bit, associative within rounding: so whoever wants the
    same bits again merges in the same order (`core.fold` does, in the shards' order). Natural logarithms: an
    `lse` of base 2, as some kernels return it, is to be multiplied by ln 2 first.

    Args:
        a: the partial over one shard: `out` float32 [..., dim], `lse` float32 [...]; the leading dimensions
            are the caller's, as [queries, heads]. Where no key is visible `lse` is -inf and `out` 0.
        b: the partial of the same queries over the other shard, of the same shapes. No key may be in both: it
            would count twice, and nothing here could tell.

    Returns:
        The partial over both, `out` float32 [..., dim] and `lse` float32 [...], in new arrays. Where neither
        shard has a visible key it is the identity again, `out = 0, lse = -inf`, never NaN.

    Raises:
        ValueError: the shapes do not fit together. Nothing else is looked at: what came from elsewhere has
            been through `Partial.check`, which finds NaN and infinity.

    Source: the normalizer that is rescaled as it grows, of Milakov and Gimelshein, "Online normalizer
    calculation for softmax", 2018 (arXiv:1805.02867), there with the sum of weights where the logarithm is
    here; on attention states FlashInfer's `merge_state` (arXiv:2501.01005, section 2.2). docs/arithmetic.md
    has what follows from it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores = rng.standard_normal((2, 4, 6))                # [queries, heads, keys]
        >>> values = rng.standard_normal((6, 3))                   # [keys, dim]
        >>> def over(part):
        ...     lse = np.log(np.exp(scores[..., part]).sum(-1))
        ...     out = np.exp(scores[..., part] - lse[..., None]) @ values[part]
        ...     return Partial(out.astype(np.float32), lse.astype(np.float32))
        >>> both = merge(over(slice(0, 2)), over(slice(2, 6)))
        >>> both.out.shape, both.lse.shape
        ((2, 4, 3), (2, 4))
        >>> whole = over(slice(0, 6))
        >>> bool(np.allclose(both.out, whole.out, atol=1e-6) and np.allclose(both.lse, whole.lse, atol=1e-6))
        True
        >>> nothing = identity(whole.out.shape)
        >>> bool((merge(whole, nothing).out == whole.out).all())
        True
    """
    top = base = np.maximum(a.lse, b.lse)
    if a.full and b.full:
        # As below, without what only identities need: an answer waits for this, with cold caches.
        weight_a, weight_b = np.exp(a.lse - top), np.exp(b.lse - top)
        total = weight_a + weight_b
        out = a.out * (weight_a / total)[..., None] + b.out * (weight_b / total)[..., None]
        return Partial(out, top + np.log(total), True)
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


def mass(lse_shard: Float32, lse: Float32, finite: bool = False) -> Float32:
    """The share of global attention a shard received: exp(lse_shard - lse), 0 where nobody saw a key.

    `finite`: `lse` is known to be.
    """
    base = lse if finite else np.where(np.isneginf(lse), np.float32(0), lse)
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
