"""Whole attention models to train where the data lives, each a page: rows, patches, sequences.

Every one returns an ONNX file: data inputs whose dimension 0 is the batch, output `logits`, output
`attention` (the first block's weights [B, heads, T, T]), and float32 initializers, the parameters, with
names like `blocks.0.attention.query.weight`. The loss is added when a job's model is loaded.
`attention_decoder` makes of such parameters a file that serves: with keys and values of earlier tokens.
"""

from edge_attention.graphs.builders.decoder import attention_decoder
from edge_attention.graphs.builders.patches import attention_patches
from edge_attention.graphs.builders.rows import attention_rows
from edge_attention.graphs.builders.sequences import attention_sequences

__all__ = ["attention_decoder", "attention_patches", "attention_rows", "attention_sequences"]
