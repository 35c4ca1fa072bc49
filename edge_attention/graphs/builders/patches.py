"""An attention classifier for small images, cut in patches (Dosovitskiy et al., "An Image is Worth 16x16
Words", 2021), with the mean of all tokens in place of a class token."""

from __future__ import annotations

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.builders.layers import ModelBuilder, check_sizes
from edge_attention.graphs.models.parts import BATCH
from edge_attention.graphs.onnx_builder import FLOAT

__all__ = ["attention_patches"]


def attention_patches(
    height: int,
    width: int,
    patch: int,
    classes: int,
    *,
    dim: int = 32,
    heads: int = 2,
    blocks: int = 1,
    hidden: int = 0,
    seed: int = 0,
    input_name: str = "image",
) -> bytes:
    """A classifier of grey images, as an ONNX file. T = height * width / patch^2 tokens.

    Input `input_name` [B, height, width] float32. Outputs `logits` [B, classes] and `attention`
    [B, heads, T, T] (the first block's weights; patches row by row), float32. `hidden` is the width inside
    a feed-forward layer, 0 for 2 * dim.

    Raises InvalidGraph for a size below 1, or one that `patch` or `heads` does not divide.
    """
    hidden = hidden or 2 * dim
    check_sizes(
        "a classifier of patches",
        dim,
        heads,
        height=height,
        width=width,
        patch=patch,
        classes=classes,
        blocks=blocks,
        hidden=hidden,
    )
    if height % patch or width % patch:
        raise InvalidGraph(f"an image of {height} x {width} cannot be cut in patches of {patch} x {patch}")
    down, across, pixels = height // patch, width // patch, patch * patch
    tokens = down * across
    b = ModelBuilder("attention_patches", seed)
    image = b.reshape(b.input(input_name, FLOAT, [BATCH, height, width]), -1, down, patch, across, patch)
    cut = b.reshape(b("Transpose", image, perm=[0, 1, 3, 2, 4]), -1, pixels)
    embedded = b.reshape(b.linear("patches", cut, pixels, dim), -1, tokens, dim)
    embedded = b("Add", embedded, b.normal("positions", (tokens, dim), dim**-0.5))
    rows, weights = b.blocks(b.reshape(embedded, -1, dim), tokens, dim, heads, blocks, hidden)
    logits = b.pooled_logits(rows, tokens, dim, classes)
    return b.finish(logits, [BATCH, classes], weights, heads, tokens)
