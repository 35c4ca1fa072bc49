"""A causal model of sequences as a decoder: it is given keys and values of earlier tokens, and gives its own.

Its weights are those of `attention_sequences(..., causal=True, rotary=True)`, under the same names. Inputs
and outputs are called as `transformers` exports them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array
from edge_attention.graphs.builders.layers import EPSILON, rotary_tables, turned
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = ["attention_decoder"]

LENGTH = 2048
"""Places that a decoder has, unless it is built with others."""
_HIDDEN = np.float32(-1e9)
"""What is added to the score of a token that must not be seen."""


class _Decoder(Builder):
    def __init__(self, weights: Mapping[str, Array], heads: int) -> None:
        super().__init__("attention_decoder")
        self._weights = weights
        self._taken: dict[str, onnx.TensorProto] = {}
        self._heads = heads

    def given(self, name: str) -> Array:
        """Raises InvalidGraph: there is no such weight."""
        if name not in self._weights:
            raise InvalidGraph(
                f"a weight is missing: {name}; it is made of attention_sequences(causal=True, rotary=True)"
            )
        return self._weights[name]

    def weight(self, name: str) -> str:
        """An initializer of that name."""
        if name not in self._taken:
            value = np.ascontiguousarray(self.given(name), np.float32)
            self._taken[name] = numpy_helper.from_array(value, name)
        return name

    def linear(self, name: str, tokens: str) -> str:
        """tokens [B, S, inputs] @ weight + bias: [B, S, outputs]."""
        return self("Add", self("MatMul", tokens, self.weight(f"{name}.weight")), self.weight(f"{name}.bias"))

    def norm(self, name: str, tokens: str) -> str:
        gain, bias = self.weight(f"{name}.gain"), self.weight(f"{name}.bias")
        return self("LayerNormalization", tokens, gain, bias, axis=-1, epsilon=EPSILON)

    def attention(self, layer: int, tokens: str, hidden: str, places: tuple[str, str], width: int) -> str:
        """Multi-head attention of new tokens [B, S, width] over past and new ones, `hidden` [S, P + S] added
        to the scores; the layer's past is an input, and past with new an output.

        `places`: cosines and sines of the new tokens' places, [B, S, 1, size / 2].
        """
        name, size = f"blocks.{layer}.attention", width // self._heads
        cache: list[str | int] = ["batch", self._heads, "past", size]

        def split(part: str) -> str:
            rows = self("Reshape", self.linear(f"{name}.{part}", tokens), self.ints(0, 0, self._heads, size))
            rows = rows if part == "value" else turned(self, rows, *places)
            return self("Transpose", rows, perm=[0, 2, 1, 3])

        def grown(part: str) -> str:
            past = self.input(f"past_key_values.{layer}.{part}", FLOAT, cache)
            whole = self("Concat", past, split(part), axis=2)
            self.output(f"present.{layer}.{part}", whole, FLOAT, ["batch", self._heads, "total", size])
            return whole

        keys, values = grown("key"), grown("value")
        scores = self("MatMul", split("query"), self("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = self("Add", self("Mul", scores, self.const(np.float32(size**-0.5))), hidden)
        seen = self("Transpose", self("MatMul", self("Softmax", scores, axis=-1), values), perm=[0, 2, 1, 3])
        return self.linear(f"{name}.output", self("Reshape", seen, self.ints(0, 0, width)))

    def hidden(self, ids: str, past: str) -> str:
        """What is added to the scores of later tokens, [S, P + S]."""
        zero, one = self.const(np.int64(0)), self.const(np.int64(1))
        known = self("Squeeze", self.dim(past, 2), self.ints(0))
        total = self("Add", known, self("Squeeze", self.dim(ids, 1), self.ints(0)))
        queries = self("Unsqueeze", self("Range", known, total, one), self.ints(1))
        keys = self("Unsqueeze", self("Range", zero, total, one), self.ints(0))
        later = self("Greater", keys, queries)
        return self("Where", later, self.const(_HIDDEN), self.const(np.float32(0)))

    def places(self, positions: str, length: int, size: int) -> tuple[str, str]:
        """Cosines and sines of the places of tokens [B, S], each [B, S, 1, size / 2]."""
        found = []
        for name, table in zip(("cos", "sin"), rotary_tables(length, size), strict=True):
            self._taken[name] = numpy_helper.from_array(table, name)
            found.append(self("Unsqueeze", self("Gather", name, positions), self.ints(2)))
        return found[0], found[1]

    def graph(self) -> onnx.GraphProto:
        graph = super().graph()
        graph.initializer.extend(self._taken.values())
        logits_first = sorted(graph.output, key=lambda one: one.name != "logits")
        del graph.output[:]
        graph.output.extend(logits_first)
        return graph


def attention_decoder(weights: Mapping[str, Array], heads: int, length: int = LENGTH) -> bytes:
    """A decoder as an ONNX file.

    Args:
        weights: by name, float32, of a model that `attention_sequences(causal=True, rotary=True)` has built.
        heads: of each layer, as it was built.
        length: tokens that a sequence may have; more than it was trained with it has not learnt to use.

    Returns:
        Inputs `input_ids`, `position_ids` int64 [batch, sequence], and for each layer `past_key_values.N.key`
        and `.value` float32 [batch, heads, past, width / heads]. Outputs `logits` float32 [batch, sequence,
        vocabulary] and `present.N.key`, `.value`, past with new.

    Raises:
        InvalidGraph: a weight is missing, or `heads` does not divide the width.
    """
    g = _Decoder(weights, heads)
    table = g.given("embedding")
    width = int(table.shape[1])
    layers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    if heads < 1 or width % (2 * heads) or not layers:
        raise InvalidGraph(f"a width of {width} is no even multiple of {heads} heads, or there are no layers")
    ids = g.input("input_ids", INT64, ["batch", "sequence"])
    positions = g.input("position_ids", INT64, ["batch", "sequence"])
    hidden = g.hidden(ids, "past_key_values.0.key")
    places = g.places(positions, length, width // heads)
    tokens = g("Gather", g.weight("embedding"), ids)
    for layer in range(len(layers)):
        seen = g.attention(layer, g.norm(f"blocks.{layer}.attention.norm", tokens), hidden, places, width)
        tokens = g("Add", tokens, seen)
        name = f"blocks.{layer}.feed_forward"
        inner = g("Gelu", g.linear(f"{name}.hidden", g.norm(f"{name}.norm", tokens)))
        tokens = g("Add", tokens, g.linear(f"{name}.output", inner))
    logits = g.linear("head", g.norm("norm", tokens))
    g.output("logits", logits, FLOAT, ["batch", "sequence", int(g.given("head.weight").shape[1])])
    return g.model().SerializeToString(deterministic=True)
