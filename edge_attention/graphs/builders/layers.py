"""The layers that the builders share: a pre-norm transformer block and what it is made of.

Tokens travel as rows [B * T, dim]: matrix products in two dimensions have the cheapest gradients. The block
is that of Xiong et al., "On Layer Normalization in the Transformer Architecture" (2020): first
x + attention(norm(x)), then x + feed_forward(norm(x)).

Weights start at normal / sqrt(inputs) (LeCun et al., "Efficient BackProp", 1998), the two projections of a
block that write to the residual stream also at 1 / sqrt(2 blocks) (GPT-2), embeddings and positions at
normal / sqrt(dim). Biases start near zero and gains near one, but all differ: tools merge initializers of
equal value, which would tie them for good.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Float32
from edge_attention.graphs.onnx_builder import FLOAT, Builder

__all__ = ["EPSILON", "ModelBuilder", "check_sizes", "rotary_tables", "turned"]

EPSILON = 1e-5  # of layer norm
_JITTER = 0.01
_HIDDEN = -1e9  # added to the score of a token that must not be seen: its weight is exactly 0


class ModelBuilder(Builder):
    """A Builder with parameters: every float32 initializer is one, so float constants are nodes."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name)
        self._rng = np.random.default_rng(seed)
        self._parameters: list[onnx.TensorProto] = []

    def const(self, value: npt.ArrayLike) -> str:
        array = np.asarray(value)
        if array.dtype.kind != "f":
            return super().const(array)
        return self("Constant", value=numpy_helper.from_array(array))

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> str:
        """The parameter `name`, float32 of `shape`, drawn from the normal distribution."""
        value = (mean + scale * self._rng.standard_normal(shape)).astype(np.float32)
        self._parameters.append(numpy_helper.from_array(value, name))
        return name

    def linear(self, name: str, rows: str, inputs: int, outputs: int, scale: float = 1.0) -> str:
        """rows [N, inputs] @ `name`.weight [inputs, outputs] + `name`.bias: [N, outputs]."""
        weight = self.normal(f"{name}.weight", (inputs, outputs), scale * inputs**-0.5)
        return self("Gemm", rows, weight, self.normal(f"{name}.bias", (outputs,), _JITTER))

    def norm(self, name: str, rows: str, dim: int) -> str:
        """Layer norm over the last axis, of size `dim`, with `name`.gain and `name`.bias."""
        gain = self.normal(f"{name}.gain", (dim,), _JITTER, mean=1.0)
        bias = self.normal(f"{name}.bias", (dim,), _JITTER)
        return self("LayerNormalization", rows, gain, bias, axis=-1, epsilon=EPSILON)

    def attention(
        self,
        name: str,
        rows: str,
        tokens: int,
        dim: int,
        heads: int,
        causal: bool,
        scale: float,
        rotary: bool = False,
    ) -> tuple[str, str]:
        """Multi-head self-attention: rows [B * T, dim] to the same, and its weights [B, heads, T, T].

        `rotary`: queries and keys are turned by their places (`rotary_tables`).
        """
        size = dim // heads

        def split(part: str, order: list[int]) -> str:
            projected = self.linear(f"{name}.{part}", rows, dim, dim)
            by_head = self.reshape(projected, -1, tokens, heads, size)
            if rotary and part != "value":
                cos, sin = (self.const(table[:, None]) for table in rotary_tables(tokens, size))
                by_head = turned(self, by_head, cos, sin)
            return self("Transpose", by_head, perm=order)

        queries, values = split("query", [0, 2, 1, 3]), split("value", [0, 2, 1, 3])
        scores = self("MatMul", queries, split("key", [0, 2, 3, 1]))
        scores = self("Mul", scores, self.const(np.float32(size**-0.5)))
        if causal:
            hidden = np.triu(np.full((tokens, tokens), _HIDDEN, np.float32), 1)
            scores = self("Add", scores, self.const(hidden))
        weights = self("Softmax", scores, axis=-1)
        seen = self("Transpose", self("MatMul", weights, values), perm=[0, 2, 1, 3])
        return self.linear(f"{name}.output", self.reshape(seen, -1, dim), dim, dim, scale), weights

    def blocks(
        self,
        rows: str,
        tokens: int,
        dim: int,
        heads: int,
        count: int,
        hidden: int,
        *,
        causal: bool = False,
        rotary: bool = False,
    ) -> tuple[str, str]:
        """`count` blocks and a last norm: rows [B * T, dim] to the same, and the first block's weights."""
        first, scale = "", (2 * count) ** -0.5
        for i in range(count):
            normed = self.norm(f"blocks.{i}.attention.norm", rows, dim)
            seen, weights = self.attention(
                f"blocks.{i}.attention", normed, tokens, dim, heads, causal, scale, rotary
            )
            rows = self("Add", rows, seen)
            normed = self.norm(f"blocks.{i}.feed_forward.norm", rows, dim)
            inner = self("Gelu", self.linear(f"blocks.{i}.feed_forward.hidden", normed, dim, hidden))
            rows = self(
                "Add", rows, self.linear(f"blocks.{i}.feed_forward.output", inner, hidden, dim, scale)
            )
            first = first or weights
        return self.norm("norm", rows, dim), first

    def pooled_logits(self, rows: str, tokens: int, dim: int, classes: int) -> str:
        """The classifier's head over the mean of all tokens: rows [B * T, dim] to logits [B, classes]."""
        mean = self("ReduceMean", self.reshape(rows, -1, tokens, dim), self.ints(1), keepdims=0)
        return self.linear("head", mean, dim, classes)

    def reshape(self, value: str, *dims: str | int) -> str:
        """Reshape to constant sizes, -1 for the batch's: nothing for the gradient to work out."""
        assert all(isinstance(dim, int) for dim in dims)
        return self("Reshape", value, self.ints(*(dim for dim in dims if isinstance(dim, int))))

    def finish(self, logits: str, shape: list[str | int], weights: str, heads: int, tokens: int) -> bytes:
        """Declare the outputs; the ONNX file. The same calls give the same bytes."""
        self.output("logits", logits, FLOAT, shape)
        self.output("attention", weights, FLOAT, ["batch", heads, tokens, tokens])
        return self.model().SerializeToString(deterministic=True)

    def graph(self) -> onnx.GraphProto:
        graph = super().graph()
        graph.initializer.extend(self._parameters)
        return graph


def rotary_tables(length: int, size: int) -> tuple[Float32, Float32]:
    """Cosines and sines by which heads of `size` numbers are turned at each of `length` places, float32
    [length, size / 2] (Su et al., "RoFormer", 2021): scores of what is so turned know distances alone."""
    angles = np.arange(length)[:, None] * 10_000.0 ** (-2.0 * np.arange(size // 2) / size)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turned(g: Builder, heads: str, cos: str, sin: str) -> str:
    """`heads` [..., size], each turned by `cos`, `sin` [..., size / 2]: pairs are a half apart."""
    first, second = g.nodes("Split", 2, heads, axis=-1, num_outputs=2)
    left = g("Sub", g("Mul", first, cos), g("Mul", second, sin))
    right = g("Add", g("Mul", second, cos), g("Mul", first, sin))
    return g("Concat", left, right, axis=-1)


def check_sizes(what: str, dim: int, heads: int, **sizes: int) -> None:
    """Raises InvalidGraph for a size below 1, or where `heads` does not divide `dim`."""
    for name, size in (("dim", dim), ("heads", heads), *sizes.items()):
        if size < 1:
            raise InvalidGraph(f"cannot build {what} with {name}={size}; it must be 1 or more")
    if dim % heads:
        raise InvalidGraph(
            f"cannot build {what}: dim={dim} is no multiple of heads={heads}; choose one that is"
        )
