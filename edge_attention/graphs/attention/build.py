"""All hand-written attention graphs by name; `build` makes one as an ONNX model.

attention_decode, _prefill   out and lse over tiles, for few and for many queries
attention_scores, _values    decode in two halves, so that lse leaves first
attention_lse                lse alone, for many queries
attention_weights            the global weights of a shard's tokens, the merged lse given
attention_backward           gradients over a shard's tokens, the merged lse given
segment_summary              key norms and value ranges, for bounds
attention_batch_forward, attention_batch_backward    one shard of a batch of samples, in training
stored_tiles                 some of what is stored, for exports and copies
cached_decode, cached_prefill    new rows over one of several stored sequences
cached_row       one row over one sequence
cached_biased    the same with biases by distance
cached_capped, cached_capped_prefill    as decode and prefill, with capped scores
likeliest        the token with the largest logit
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from edge_attention.core.errors import NotFound
from edge_attention.graphs.attention import batch as attention_batch
from edge_attention.graphs.attention import cached as attention_cached
from edge_attention.graphs.attention import likeliest as attention_likeliest
from edge_attention.graphs.attention import tiled as attention_tiled

__all__ = ["GRAPHS", "build"]

_BUILDERS: tuple[Callable[[], onnx.ModelProto], ...] = (
    attention_batch.attention_batch_backward,
    attention_batch.attention_batch_forward,
    attention_tiled.attention_backward,
    attention_tiled.attention_decode,
    attention_tiled.attention_lse,
    attention_tiled.attention_prefill,
    attention_tiled.attention_scores,
    attention_tiled.attention_values,
    attention_tiled.attention_weights,
    attention_cached.cached_biased,
    attention_cached.cached_capped,
    attention_cached.cached_capped_prefill,
    attention_cached.cached_decode,
    attention_cached.cached_prefill,
    attention_cached.cached_row,
    attention_likeliest.likeliest,
    attention_tiled.segment_summary,
    attention_tiled.stored_tiles,
)

GRAPHS: Mapping[str, Callable[[], onnx.ModelProto]] = MappingProxyType({b.__name__: b for b in _BUILDERS})


def build(name: str) -> onnx.ModelProto:
    """The graph called `name`: float32, every dimension symbolic. Raises NotFound for an unknown name."""
    if name not in GRAPHS:
        raise NotFound(f"There is no attention graph {name!r}; there are {', '.join(GRAPHS)}.")
    return GRAPHS[name]()
