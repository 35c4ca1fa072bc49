"""The arithmetic of DESIGN section 4 in plain float64 NumPy: what the tests compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.partial import Partial

Float64 = NDArray[np.float64]


def scores(queries, keys, scale: float) -> Float64:
    """scale * q.k, float64 [queries, query_heads, tokens], query head h on key head h // group.

    queries [queries, query_heads, dim], keys [tokens, key_heads, dim].
    """
    group = queries.shape[1] // keys.shape[1]
    keys = np.repeat(keys.astype(np.float64), group, axis=1)
    return scale * np.einsum("qhd,thd->qht", queries.astype(np.float64), keys)


def attend(s: Float64, values, visible=None) -> tuple[Float64, Float64]:
    """(out [queries, query_heads, dim], lse [queries, query_heads]) of s [queries, query_heads, tokens].

    values [tokens, key_heads, dim]; visible, bool [queries, tokens], says what each query sees. A query
    that sees nothing has out 0 and lse -inf.
    """
    values = np.repeat(values.astype(np.float64), s.shape[1] // values.shape[1], axis=1)
    s = s if visible is None else np.where(visible[:, None, :], s, -np.inf)
    top = s.max(axis=2, initial=-np.inf)
    base = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(s - base[..., None])
    total = weights.sum(axis=2)
    out = np.einsum("qht,thd->qhd", weights, values) / np.where(total == 0, 1.0, total)[..., None]
    with np.errstate(divide="ignore"):
        return out, base + np.log(total)


def partial(s: Float64, values, visible=None) -> Partial:
    """The partial a perfect node would send: `attend`, rounded to float32."""
    out, lse = attend(s, values, visible)
    return Partial(out.astype(np.float32), lse.astype(np.float32))
