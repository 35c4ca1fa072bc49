"""An attention classifier for tabular rows: a token per column.

The tokens are those of Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data" (2021):
token_j = x_j * w_j + b_j.
"""

from __future__ import annotations

from edge_attention.graphs.builders.layers import ModelBuilder, check_sizes
from edge_attention.graphs.models.parts import BATCH
from edge_attention.graphs.onnx_builder import FLOAT

__all__ = ["attention_rows"]


def attention_rows(
    features: int,
    classes: int,
    *,
    dim: int = 16,
    heads: int = 2,
    blocks: int = 1,
    hidden: int = 0,
    seed: int = 0,
    input_name: str = "features",
) -> bytes:
    """A classifier of rows of `features` numbers, as an ONNX file.

    Input `input_name` [B, features] float32, best standardised. Outputs `logits` [B, classes] and
    `attention` [B, heads, features, features] (the first block's weights), float32. `hidden` is the width
    inside a feed-forward layer, 0 for 2 * dim.

    Raises InvalidGraph for a size below 1, or a `dim` that `heads` does not divide.
    """
    hidden = hidden or 2 * dim
    check_sizes(
        "a classifier of rows", dim, heads, features=features, classes=classes, blocks=blocks, hidden=hidden
    )
    b = ModelBuilder("attention_rows", seed)
    column = b.reshape(b.input(input_name, FLOAT, [BATCH, features]), -1, features, 1)
    tokens = b("Mul", column, b.normal("columns.weight", (features, dim), dim**-0.5))
    tokens = b("Add", tokens, b.normal("columns.bias", (features, dim), dim**-0.5))
    rows, weights = b.blocks(b.reshape(tokens, -1, dim), features, dim, heads, blocks, hidden)
    logits = b.pooled_logits(rows, features, dim, classes)
    return b.finish(logits, [BATCH, classes], weights, heads, features)
