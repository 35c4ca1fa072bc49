"""How outputs of an ensemble's members meet.

mean          sum_i w_i y_i / sum_i w_i, over the members that answered
concatenate   side by side, in the members' order
attention     out_i, lse_i of the queries over the keys of each member, merged (core.partial); a member's
              mass is the share of attention that its keys received
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attention.core.ensembles.ensemble import Absent, EnsembleSpec, How
from edge_attention.core.errors import InvalidTensor, ResourceExhausted
from edge_attention.core.partial import Partial, identity, mass, merge
from edge_attention.core.tensors import Array, Float32

__all__ = ["PRODUCTS", "SCORES_BYTES", "attended", "attention_of", "met", "require_attendable"]

SCORES_BYTES = 64 * 1024 * 1024
"""Of the scores of one member that are there at a time."""
PRODUCTS = 1 << 35
"""Multiplications of queries with the keys and values of all members: some ten seconds of a processor."""


def met(
    ensemble: EnsembleSpec, outputs: Mapping[str, Array], absent_shapes: Mapping[str, tuple[int, ...]]
) -> Array:
    """The outputs of a MEAN or CONCATENATE.

    Args:
        outputs: member -> its output, of those that answered; one at least.
        absent_shapes: of CONCATENATE: member that did not -> the shape of the zeros that stand for it.

    Raises:
        InvalidTensor: they do not fit together; names the members.
    """
    there = [member for member in ensemble.members if member.name in outputs]
    if ensemble.how is How.MEAN:
        first = outputs[there[0].name]
        for member in there:
            one = outputs[member.name]
            if one.dtype.kind != "f" or one.shape != first.shape:
                raise InvalidTensor(
                    f"the mean of {list(first.shape)} of member '{there[0].name}' and {one.dtype} "
                    f"{list(one.shape)} of '{member.name}' is none: both must be numbers of one shape"
                )
        total = sum(member.weight for member in there)
        if not total > 0:
            raise InvalidTensor("the members that answered have no weight")
        # In the members' order, in float64: the same members give the same bits.
        sum_ = sum(member.weight * outputs[member.name].astype(np.float64) for member in there)
        return np.asarray(sum_ / total).astype(np.result_type(*(outputs[m.name] for m in there)))
    assert ensemble.how is How.CONCATENATE
    dtype = outputs[there[0].name].dtype
    pieces = [
        outputs[member.name] if member.name in outputs else np.zeros(absent_shapes[member.name], dtype)
        for member in ensemble.members
        if member.name in outputs or ensemble.absent is Absent.ZEROS
    ]
    if len({piece.dtype for piece in pieces}) > 1:
        raise InvalidTensor(f"members answer {' and '.join(sorted({str(p.dtype) for p in pieces}))}")
    try:
        return np.concatenate(pieces, axis=ensemble.axis)
    except ValueError as error:
        shapes = ", ".join(str(list(piece.shape)) for piece in pieces)
        raise InvalidTensor(f"members answer {shapes}, which do not go side by side: {error}") from None


def require_attendable(queries: Float32, members: Sequence[tuple[Array, Array]]) -> None:
    """Refuse more than PRODUCTS. `members`: keys and values of each.

    Raises:
        ResourceExhausted: says how many there would be.
    """
    batch, asked, heads, _ = queries.shape
    each = (
        math.prod(keys.shape[1:2]) * (sum(keys.shape[-1:]) + sum(values.shape[-1:]))
        for keys, values in members
    )
    products = batch * asked * heads * sum(each)
    if products > PRODUCTS:
        raise ResourceExhausted(
            f"bound attended-products: {batch * asked:,} queries of {heads} heads take {products:,} "
            f"multiplications with the members' keys and values, and may take {PRODUCTS:,}: send fewer "
            "queries at a time, or shorter inputs"
        )


def attention_of(queries: Float32, keys: Array, values: Array, scale: float | None, what: str) -> Partial:
    """The partial of `queries` over one member's keys.

    Args:
        queries: float32 [batch, queries, heads, dim].
        keys, values: float32 [batch, tokens, heads, dim] and [batch, tokens, heads, value_dim].
        scale: None: one by the root of dim.

    Raises:
        InvalidTensor: they do not fit; names `what` they are of.
    """
    batch, _, heads, dim = queries.shape
    fits = keys.ndim == values.ndim == 4 and keys.shape[:3] == values.shape[:3]
    if not fits or keys.shape[0] != batch or keys.shape[2:] != (heads, dim):
        raise InvalidTensor(
            f"{what} answers keys {list(keys.shape)} and values {list(values.shape)}; queries "
            f"{list(queries.shape)} attend to keys [{batch}, tokens, {heads}, {dim}] and values that have "
            "the same first three"
        )
    if not keys.shape[1]:
        return identity((*queries.shape[:3], values.shape[3]))
    shape = (*queries.shape[:3], values.shape[3])
    # So many queries at a time that their scores have SCORES_BYTES.
    rows = max(SCORES_BYTES // max(4 * batch * heads * keys.shape[1], 1), 1)
    if rows < queries.shape[1]:
        blocks = [
            attention_of(queries[:, at : at + rows], keys, values, scale, what)
            for at in range(0, queries.shape[1], rows)
        ]
        out, lse = (np.concatenate([getattr(one, name) for one in blocks], 1) for name in ("out", "lse"))
        return Partial(out, lse).check(shape, what)
    factor = np.float32(1 / math.sqrt(dim) if scale is None else scale)
    scores = factor * np.einsum("bqhd,bthd->bqht", queries, keys.astype(np.float32), optimize=True)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = np.einsum("bqht,bthd->bqhd", weights / total, values.astype(np.float32), optimize=True)
    lse = (top + np.log(total))[..., 0]
    return Partial(out.astype(np.float32), lse.astype(np.float32)).check(shape, what)


def attended(partials: Sequence[Partial]) -> tuple[Float32, Float32]:
    """What queries attended to over all members: out float32 [batch, queries, heads, value_dim], and each
    member's mass, float32 [batch, members], its share of attention over queries and heads.

    Raises:
        InvalidTensor: members' values have different sizes.
    """
    if len({partial.out.shape for partial in partials}) > 1:
        sizes = ", ".join(str(partial.out.shape[-1]) for partial in partials)
        raise InvalidTensor(f"members' values have the sizes {sizes}; they must be one")
    whole = partials[0]
    for partial in partials[1:]:
        whole = merge(whole, partial)
    shares = [mass(partial.lse, whole.lse).mean(axis=(1, 2)) for partial in partials]
    return whole.out, np.stack(shares, 1).astype(np.float32)
