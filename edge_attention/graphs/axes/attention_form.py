"""Attention as plain operators: what the lowerings of the fused ones have in common.

Queries are `[b, g, r, t, d]` where r of them share one of g key heads, keys and values `[b, g, 1, s, d]`;
where each has its own, `[b, h, t, d]` and `[b, h, s, d]`. So nothing is repeated, and what parts of the
tokens gather is as small as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.graphs.axes.lowering import Lowering

__all__ = ["LOWEST", "AttentionForm", "attention"]

LOWEST = float(np.finfo(np.float32).min)
"""What is added where nothing may be seen: a softmax of nothing else is even, not NaN."""


@dataclass(frozen=True)
class AttentionForm:
    """Sizes of one attention: batch, tokens of queries and keys, heads of both, widths of keys and values."""

    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    width: int
    value_width: int

    @property
    def shared(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.groups

    def query_heads(self, write: Lowering, x: str) -> str:
        """`[b, t, h * d]` by heads."""
        if self.shared == 1:
            split = write.reshape(x, self.batch, self.queries, self.heads, self.width)
            return write("Transpose", split, perm=[0, 2, 1, 3])
        split = write.reshape(x, self.batch, self.queries, self.groups, self.shared, self.width)
        return write("Transpose", split, perm=[0, 2, 3, 1, 4])

    def grouped(self, write: Lowering, x: str) -> str:
        """`[b, h, t, d]` as queries are taken here."""
        if self.shared == 1:
            return x
        return write.reshape(x, self.batch, self.groups, self.shared, self.queries, self.width)

    def joined(self, write: Lowering, x: str, out: str) -> str:
        """The result, `[b, t, h * d]`."""
        order = [0, 2, 1, 3] if self.shared == 1 else [0, 3, 1, 2, 4]
        turned = write("Transpose", x, perm=order)
        return write.reshape(turned, self.batch, self.queries, self.heads * self.value_width, out=out)

    def by_head(self, write: Lowering, x: str, out: str) -> str:
        """The result, `[b, h, t, d]`."""
        if self.shared == 1:
            return write("Identity", x, out=out)
        return write.reshape(x, self.batch, self.heads, self.queries, self.value_width, out=out)

    def bias(self, write: Lowering, x: str, shape: Sequence[int]) -> str:
        """What is added to scores, of a shape that is broadcast to `[b, h, t, s]`, as scores are here."""
        shape = (*[1] * (4 - len(shape)), *shape)
        if self.shared == 1:
            return x
        heads = (1, 1) if shape[1] == 1 else (self.groups, self.shared)
        return write.reshape(x, shape[0], *heads, *shape[2:])


def attention(
    write: Lowering,
    form: AttentionForm,
    query: str,
    key: str,
    value: str,
    *,
    scale: float,
    biases: Sequence[str] = (),
    softcap: float = 0.0,
    out: str = "",
) -> str:
    """`softmax(scale * q k^T + biases) v`.

    Args:
        query: as `AttentionForm.query_heads` or `grouped` give it.
        key, value: `[b, g, s, d]`.
        biases: as `AttentionForm.bias` gives them.
        softcap: c of `c * tanh(scores / c)`, before biases are added; 0: none.
    """
    turned = write("Transpose", key, perm=[0, 1, 3, 2])
    if form.shared > 1:
        turned = write("Unsqueeze", turned, write.const([2], np.int64))
        value = write("Unsqueeze", value, write.const([2], np.int64))
    scores = write("MatMul", query, turned)
    if (
        scale != 1.0
    ):  # After the product, where ONNX Runtime's kernels have it: the same bits. It fuses the two.
        scores = write("Mul", scores, write.const(scale, np.float32))
    if softcap:
        cap = write.const(softcap, np.float32)
        scores = write("Mul", write("Tanh", write("Div", scores, cap)), cap)
    for bias in biases:
        scores = write("Add", scores, bias)
    return write("MatMul", write("Softmax", scores, axis=-1), value, out=out)
