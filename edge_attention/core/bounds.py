"""Certificates: how far an answer can be from the exact one when shards are missing.

With `tau = sigmoid(lse_T - lse)` the weight of the missing shards T in the whole,

    out_exact - out = tau * (out_T - out),   so   |d out_c| <= tau * max(|vmax_c - out_c|, |vmin_c - out_c|)

where out and lse are of what arrived and [vmin, vmax] is the range of the missing shards' values, channel
by channel. `out_T` is a convex combination of them, so the bound is exact in the weight. An upper bound
on a missing lse gives the same certificate, weaker: `s = scale * q.k <= |scale| |q| max|k|`, so
`lse_T <= |scale| |q| max|k| + log n`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.partial import Partial, log_sum_exp
from edge_attention.core.tensors import Float32


@dataclass(frozen=True, eq=False)
class Summary:
    """What is recorded of a segment's tokens when they are stored.

    key_norm: float32 [key_heads], the largest Euclidean norm of a key.
    value_min, value_max: float32 [key_heads, value_dim], the values' range by channel.
    """

    key_norm: Float32
    value_min: Float32
    value_max: Float32

    def joined(self, other: Summary) -> Summary:
        """The summary of both sets of tokens."""
        return Summary(
            np.maximum(self.key_norm, other.key_norm),
            np.minimum(self.value_min, other.value_min),
            np.maximum(self.value_max, other.value_max),
        )


def lse_upper_bound(queries: Float32, summary: Summary, scale: float, visible: Float32) -> Float32:
    """An upper bound of a segment's lse, from norms alone (Cauchy-Schwarz).

    Args:
        queries: float32 [queries, query_heads, key_dim].
        visible: float32 [queries], how many of the segment's tokens each query sees.

    Returns:
        float32 [queries, query_heads]; -inf where a query sees nothing.
    """
    group = queries.shape[1] // len(summary.key_norm)
    norms = np.linalg.norm(queries.astype(np.float64), axis=-1) * np.repeat(summary.key_norm, group)[None]
    # Some room for key_norm, a float32 sum of key_dim squares.
    with np.errstate(divide="ignore", over="ignore"):
        bound = abs(scale) * norms * (1 + 1e-5) + np.log(visible.astype(np.float64))[:, None]
        return _up(bound)


def error_bound(arrived: Partial, missing: list[tuple[Float32, Summary]]) -> Float32:
    """|out - exact out| is at most this, element by element.

    Args:
        arrived: the merged partial of what did arrive, out [queries, query_heads, value_dim].
        missing: for each missing shard its lse (or an upper bound) [queries, query_heads], and its summary.

    Returns:
        float32 of `out`'s shape; zero where a query sees nothing of the missing shards. It allows for
        the rounding of `out` and the lses to float32, not for the error of the kernels that made them.
    """
    group = arrived.lse.shape[1] // len(missing[0][1].key_norm)
    # The missing values' range for each query: a shard it does not see must not widen it.
    top = np.full(arrived.out.shape, -np.inf)
    bottom = np.full(arrived.out.shape, np.inf)
    for shard_lse, summary in missing:
        seen = ~np.isneginf(shard_lse)[..., None]
        np.maximum(top, np.repeat(summary.value_max, group, axis=0), out=top, where=seen)
        np.minimum(bottom, np.repeat(summary.value_min, group, axis=0), out=bottom, where=seen)
    lse = log_sum_exp([lse for lse, _ in missing]).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        # sigmoid(lse_T - lse), the lses' own rounding added; infinities apart, their difference may be NaN.
        gap = lse - arrived.lse + _EPS * (np.abs(lse) + np.abs(arrived.lse))
        gap = np.where(np.isneginf(arrived.lse) | np.isposinf(lse), np.inf, gap)
        tau = 1.0 / (1.0 + np.exp(-gap))[..., None]
        reach = np.maximum(np.abs(top - arrived.out), np.abs(bottom - arrived.out))
        bound = tau * reach + _EPS * np.abs(arrived.out)
        return np.where(np.isneginf(lse)[..., None], np.float32(0), _up(bound))


_EPS = float(np.finfo(np.float32).eps)


def _up(bound: NDArray[np.float64]) -> Float32:
    """Rounded up: a certificate is about real numbers, and float32 must not undercut it."""
    up: Float32 = np.nextafter(bound.astype(np.float32), np.float32(np.inf))
    # The identity of log-sum-exp stays what it is.
    return np.where(np.isneginf(bound), np.float32(-np.inf), up)
