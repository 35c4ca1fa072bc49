"""A transformer for token sequences: a classifier of whole sequences, or a model of the next token.

The causal one is GPT-2's (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).
"""

from __future__ import annotations

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.builders.layers import ModelBuilder, check_sizes
from edge_attention.graphs.models.parts import BATCH
from edge_attention.graphs.onnx_builder import INT64

__all__ = ["attention_sequences"]


def attention_sequences(
    vocabulary: int,
    length: int,
    dim: int = 64,
    heads: int = 4,
    blocks: int = 2,
    *,
    causal: bool = False,
    rotary: bool = False,
    classes: int | None = None,
    hidden: int = 0,
    seed: int = 0,
    input_name: str = "tokens",
) -> bytes:
    """A model of sequences of `length` tokens, as an ONNX file: embedding, positions, blocks, head.

    Input `input_name` [B, length] int64, each in [0, vocabulary). Outputs, float32: `logits` [B, length,
    vocabulary], of the token after each, where `causal`; else [B, classes], from the mean of all tokens;
    and `attention` [B, heads, length, length] (the first block's weights). `hidden` is the width inside a
    feed-forward layer, 0 for 4 * dim. With `rotary`, of causal ones, no parameters are of positions:
    queries and keys are turned by them, and `attention_decoder` makes the same weights a decoder.

    Raises InvalidGraph for a size below 1, a `dim` that `heads` does not divide, or unless either `causal`
    or `classes` is given; `rotary` of a model that is not causal, or
    with heads of an odd width.
    """
    if causal == (classes is not None):
        raise InvalidGraph("a model of sequences is either causal, or has classes; give one of the two")
    outputs = vocabulary if classes is None else classes
    hidden = hidden or 4 * dim
    check_sizes(
        "a model of sequences",
        dim,
        heads,
        vocabulary=vocabulary,
        length=length,
        blocks=blocks,
        classes=outputs,
        hidden=hidden,
    )
    if rotary and (not causal or dim // heads % 2):
        raise InvalidGraph("only causal models of sequences turn queries and keys, of heads of an even width")
    b = ModelBuilder("attention_sequences", seed)
    tokens = b.input(input_name, INT64, [BATCH, length])
    embedded = b("Gather", b.normal("embedding", (vocabulary, dim), dim**-0.5), tokens)
    if not rotary:
        embedded = b("Add", embedded, b.normal("positions", (length, dim), dim**-0.5))
    rows, weights = b.blocks(
        b.reshape(embedded, -1, dim), length, dim, heads, blocks, hidden, causal=causal, rotary=rotary
    )
    if classes is None:
        logits = b.reshape(b.linear("head", rows, dim, vocabulary), -1, length, vocabulary)
        return b.finish(logits, [BATCH, length, vocabulary], weights, heads, length)
    return b.finish(b.pooled_logits(rows, length, dim, classes), [BATCH, classes], weights, heads, length)
