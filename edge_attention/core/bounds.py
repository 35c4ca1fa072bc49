"""Certificates: how far an answer can be from the exact one when shards are missing.

With `tau = sigmoid(lse_T - lse)` the weight of the missing shards T in the whole,

    out_exact - out = tau * (out_T - out),   so   |d out_c| <= tau * max(|vmax_c - out_c|, |vmin_c - out_c|)

where out and lse are of what arrived and [vmin, vmax] is the range of the missing shards' values, channel
by channel. `out_T` is a convex combination of them, so the bound is exact in the weight. An upper bound
on a missing lse gives the same certificate, weaker: `s = scale * q.k <= |scale| |q| max|k|`, so
`lse_T <= |scale| |q| max|k| + log n`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    norms = np.linalg.norm(queries, axis=-1) * np.repeat(summary.key_norm, group)[None]
    with np.errstate(divide="ignore"):
        bound: Float32 = (abs(scale) * norms + np.log(visible)[:, None]).astype(np.float32)
    return bound


def error_bound(arrived: Partial, missing: list[tuple[Float32, Summary]]) -> Float32:
    """|out - exact out| is at most this, element by element.

    Args:
        arrived: the merged partial of what did arrive, out [queries, query_heads, value_dim].
        missing: for each missing shard its lse (or an upper bound) [queries, query_heads], and its summary.

    Returns:
        float32 of `out`'s shape; zero where the missing shards had no weight.
    """
    group = arrived.lse.shape[1] // len(missing[0][1].key_norm)
    low, high = (
        np.repeat(np.stack(values), group, axis=1)
        for values in ([s.value_min for _, s in missing], [s.value_max for _, s in missing])
    )
    lse = log_sum_exp([lse for lse, _ in missing])
    # sigmoid(lse_T - lse); nothing arrived means all the weight is missing, nothing missing none of it.
    gone = np.where(np.isneginf(lse), -math.inf, np.where(np.isneginf(arrived.lse), math.inf, 0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.where(np.isinf(gone), gone, lse.astype(np.float64) - arrived.lse)
        tau = 1.0 / (1.0 + np.exp(-gap))
    # A shard a query does not see must not widen that query's range.
    seen = np.stack([~np.isneginf(lse) for lse, _ in missing])[..., None]
    top = np.where(seen, high[:, None], -np.inf).max(axis=0)
    bottom = np.where(seen, low[:, None], np.inf).min(axis=0)
    with np.errstate(invalid="ignore"):
        reach = np.maximum(np.abs(top - arrived.out), np.abs(bottom - arrived.out))
        bound = np.where(tau[..., None] > 0, tau[..., None] * reach, 0.0)
    # Rounded up: the certificate is about real numbers, and float32 must not undercut it.
    rounded: Float32 = bound.astype(np.float32) * np.float32(1 + 1e-6)
    up: Float32 = np.nextafter(rounded, np.float32(np.inf))
    return up
