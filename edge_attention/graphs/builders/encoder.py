"""BERT's encoder (Devlin et al., 2018) as an ONNX file, of weights that somebody has trained.

Weights are named and laid out as `transformers` saves them: `encoder.layer.0.attention.self.query.weight` is
[outputs, inputs]. The file's initializers keep those names, with matrices the other way round, as products
want them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = ["attention_encoder"]

_HIDDEN = float(np.finfo(np.float32).min)
"""What is added to the score of a token that the mask leaves out."""


class _Encoder(Builder):
    def __init__(self, weights: Mapping[str, Array], heads: int, epsilon: float) -> None:
        super().__init__("encoder")
        self._weights = weights
        self._taken: dict[str, onnx.TensorProto] = {}
        self._heads, self._epsilon = heads, epsilon

    def weight(self, name: str, value: Array) -> str:
        """An initializer of that name."""
        if name not in self._taken:
            self._taken[name] = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        return name

    def given(self, name: str) -> Array:
        """Raises InvalidGraph: there is no such weight."""
        if name not in self._weights:
            raise InvalidGraph(f"a weight is missing: {name}; the file is of another architecture than BERT")
        return self._weights[name]

    def linear(self, name: str, tokens: str) -> str:
        """tokens [B, T, inputs] @ weight + bias: [B, T, outputs]."""
        weight = self.weight(f"{name}.weight", self.given(f"{name}.weight").T)
        bias = self.weight(f"{name}.bias", self.given(f"{name}.bias"))
        return self("Add", self("MatMul", tokens, weight), bias)

    def norm(self, name: str, tokens: str) -> str:
        gain = self.weight(f"{name}.weight", self.given(f"{name}.weight"))
        bias = self.weight(f"{name}.bias", self.given(f"{name}.bias"))
        return self("LayerNormalization", tokens, gain, bias, axis=-1, epsilon=self._epsilon)

    def attention(self, name: str, tokens: str, mask: str, width: int) -> str:
        """Multi-head self-attention of tokens [B, T, width], mask [B, 1, 1, T] added to the scores."""
        size = width // self._heads

        def split(part: str, order: list[int]) -> str:
            rows = self.reshape(self.linear(f"{name}.self.{part}", tokens), 0, 0, self._heads, size)
            return self("Transpose", rows, perm=order)

        scores = self("MatMul", split("query", [0, 2, 1, 3]), split("key", [0, 2, 3, 1]))
        scores = self("Add", self("Mul", scores, self.const(np.float32(size**-0.5))), mask)
        seen = self("MatMul", self("Softmax", scores, axis=-1), split("value", [0, 2, 1, 3]))
        seen = self.reshape(self("Transpose", seen, perm=[0, 2, 1, 3]), 0, 0, width)
        return self.linear(f"{name}.output.dense", seen)

    def layer(self, name: str, tokens: str, mask: str, width: int) -> str:
        """Tokens [B, T, width] to the same: each half's result is added to its input, then normed."""
        seen = self.attention(f"{name}.attention", tokens, mask, width)
        tokens = self.norm(f"{name}.attention.output.LayerNorm", self("Add", tokens, seen))
        inner = self("Gelu", self.linear(f"{name}.intermediate.dense", tokens))
        inner = self.linear(f"{name}.output.dense", inner)
        return self.norm(f"{name}.output.LayerNorm", self("Add", tokens, inner))

    def reshape(self, value: str, *dims: str | int) -> str:
        """Reshape to constant sizes; 0 is the size that was there."""
        return self("Reshape", value, self.ints(*(dim for dim in dims if isinstance(dim, int))))

    def graph(self) -> onnx.GraphProto:
        graph = super().graph()
        graph.initializer.extend(self._taken.values())
        return graph


def attention_encoder(
    weights: Mapping[str, Array], heads: int, *, epsilon: float = 1e-12, sentences: bool = False
) -> bytes:
    """A BERT encoder as an ONNX file, over token ids [batch, sequence] and their mask.

    Args:
        weights: by name, float32, as `transformers` saves a BertModel.
        heads: of each layer.
        epsilon: of the norms.
        sentences: whether the answer is one vector a text, of length 1: the mean of its tokens. Else it is a
            vector a token.

    Returns:
        Inputs `input_ids`, `attention_mask` int64 [batch, sequence]; output `last_hidden_state`
        float32 [batch, sequence, width], or with `sentences` `embedding` float32 [batch, width].

    Raises:
        InvalidGraph: a weight is missing, or has a shape that does not fit.
    """
    g = _Encoder(weights, heads, epsilon)
    words = g.given("embeddings.word_embeddings.weight")
    places = g.given("embeddings.position_embeddings.weight")
    kinds = g.given("embeddings.token_type_embeddings.weight")
    if words.ndim != 2 or places.shape[1:] != words.shape[1:] or kinds.shape[1:] != words.shape[1:]:
        raise InvalidGraph(
            f"embeddings of words {words.shape}, places {places.shape}, kinds {kinds.shape} differ in width"
        )
    width = words.shape[1]
    if width % heads:
        raise InvalidGraph(f"a width of {width} is no multiple of {heads} heads; say how many there are")

    ids = g.input("input_ids", INT64, ["batch", "sequence"])
    seen = g.input("attention_mask", INT64, ["batch", "sequence"])
    table = g.weight("embeddings.word_embeddings.weight", words)
    # All tokens are of the first kind: its embedding is a part of each place's.
    where = g.weight("embeddings.position_embeddings.weight", places + kinds[0])
    where = g("Slice", where, g.ints(0), g.dim(ids, 1), g.ints(0))
    tokens = g.norm("embeddings.LayerNorm", g("Add", g("Gather", table, ids), where))
    real = g("Cast", seen, to=TensorProto.FLOAT)
    hidden = g("Mul", g("Sub", g.const(np.float32(1)), real), g.const(np.float32(_HIDDEN)))
    mask = g("Unsqueeze", hidden, g.ints(1, 2))
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    for layer in range(len(layers)):
        tokens = g.layer(f"encoder.layer.{layer}", tokens, mask, width)
    if not sentences:
        g.output("last_hidden_state", tokens, FLOAT, ["batch", "sequence", width])
        return g.model().SerializeToString(deterministic=True)
    each = g("Unsqueeze", real, g.ints(2))
    total = g("ReduceSum", g("Mul", tokens, each), g.ints(1), keepdims=0)
    mean = g("Div", total, g("ReduceSum", each, g.ints(1), keepdims=0))
    length = g("ReduceL2", mean, g.ints(1), keepdims=1)
    g.output("embedding", g("Div", mean, length), FLOAT, ["batch", width])
    return g.model().SerializeToString(deterministic=True)
