"""Model parts for tabular data: an encoder with a token per feature, and a classifying head.

The encoder is the feature tokenizer of Gorishniy et al., "Revisiting Deep Learning Models for Tabular
Data" (2021), token_j = x_j * w_j + E_j, followed by a residual GELU layer and the two projections. There
is no norm over a token: it would take away how large the value is, which costs accuracy on small tables.
Learned queries that start small (0.1 * normal) begin with the mean of all tokens, and train best.

Parameters start at random values that differ from each other even where zeros or ones are usual (biases,
gains): tools merge initializers of equal value, which would tie them for good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.parts import BATCH, serialize

__all__ = ["classifier_head", "tabular_encoder"]

OPSET, IR_VERSION = 20, 10  # the first opset with Gelu; an ir_version that old ONNX Runtimes read


def tabular_encoder(
    features: int,
    *,
    key_heads: int,
    key_dim: int,
    value_dim: int,
    width: int = 16,
    seed: int = 0,
    input_name: str = "x",
    prefix: str = "",
) -> bytes:
    """An encoder of `features` columns: one token each, `width` wide inside.

    Input `input_name` [B, features] float32, best standardised. Outputs `keys` [B, features, key_heads,
    key_dim] and `values` [B, features, key_heads, value_dim], float32. Parameter names start with `prefix`.

    Raises InvalidGraph for a size below 1.
    """
    _positive(features=features, key_heads=key_heads, key_dim=key_dim, value_dim=value_dim, width=width)
    graph = _Graph(seed, prefix)
    column = graph.op("Unsqueeze", input_name, graph.ints(-1))  # [B, F, 1]
    tokens = graph.op(
        "Add",
        graph.op("Mul", column, graph.normal("feature_weight", (features, width), 0.5)),
        graph.normal("feature_bias", (features, width), 0.5),
    )
    # Rows of tokens: matrix products in two dimensions have the cheapest gradients.
    rows = graph.op("Reshape", tokens, graph.ints(-1, width))
    hidden = graph.op("Gelu", graph.dense("hidden", rows, width, width))
    rows = graph.op("Add", rows, hidden)
    for name, dim in (("keys", key_dim), ("values", value_dim)):
        projected = graph.dense(name, rows, width, key_heads * dim)
        graph.op("Reshape", projected, graph.ints(-1, features, key_heads, dim), to=name)
    return graph.model(
        "tabular_encoder",
        {input_name: (TensorProto.FLOAT, [BATCH, features])},
        {
            "keys": (TensorProto.FLOAT, [BATCH, features, key_heads, key_dim]),
            "values": (TensorProto.FLOAT, [BATCH, features, key_heads, value_dim]),
        },
    )


def classifier_head(
    *,
    queries: int,
    query_heads: int,
    value_dim: int,
    classes: int,
    hidden: int = 16,
    seed: int = 0,
    label_name: str = "y",
) -> bytes:
    """A head with one hidden layer, and softmax cross-entropy as its loss.

    Inputs `fused` [B, queries, query_heads, value_dim] float32 and `label_name` [B] int64 in [0, classes).
    Outputs `loss` (scalar, mean over the batch, natural logarithm), `correct` (float32 scalar: how many of
    the batch the likeliest class is right for), `probabilities` [B, classes].

    Raises InvalidGraph for a size below 1.
    """
    _positive(queries=queries, query_heads=query_heads, value_dim=value_dim, classes=classes, hidden=hidden)
    graph = _Graph(seed, "")
    size = queries * query_heads * value_dim
    rows = graph.op("Reshape", "fused", graph.ints(-1, size))
    gain, bias = graph.normal("norm_gain", (size,), 0.01, mean=1.0), graph.normal("norm_bias", (size,), 0.01)
    rows = graph.op("LayerNormalization", rows, gain, bias, axis=-1)
    rows = graph.op("Gelu", graph.dense("hidden", rows, size, hidden))
    logits = graph.dense("logits", rows, hidden, classes)
    # GatherElements rather than OneHot: a label out of range is an error, not a loss of zero.
    picked = graph.op(
        "GatherElements",
        graph.op("LogSoftmax", logits, axis=-1),
        graph.op("Unsqueeze", label_name, graph.ints(-1)),
        axis=1,
    )
    graph.op("Neg", graph.op("ReduceMean", picked, graph.ints(0, 1), keepdims=0), to="loss")
    right = graph.op("Equal", graph.op("ArgMax", logits, axis=1, keepdims=0), label_name)
    hits = graph.op("Cast", right, to_type=TensorProto.FLOAT)
    graph.op("ReduceSum", hits, graph.ints(0), keepdims=0, to="correct")
    graph.op("Softmax", logits, axis=-1, to="probabilities")
    return graph.model(
        "classifier_head",
        {
            "fused": (TensorProto.FLOAT, [BATCH, queries, query_heads, value_dim]),
            label_name: (TensorProto.INT64, [BATCH]),
        },
        {
            "loss": (TensorProto.FLOAT, []),
            "correct": (TensorProto.FLOAT, []),
            "probabilities": (TensorProto.FLOAT, [BATCH, classes]),
        },
    )


class _Graph:
    """Collects nodes and parameters. Constants are nodes, since every float initializer is a parameter."""

    def __init__(self, seed: int, prefix: str) -> None:
        self._rng = np.random.default_rng(seed)
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._parameters: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, to: str = "", to_type: int | None = None, **attributes: Any) -> str:
        name = to or f"{kind.lower()}_{len(self._nodes)}"
        if to_type is not None:
            attributes["to"] = to_type
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def ints(self, *values: int) -> str:
        name = f"ints_{len(self._nodes)}"
        return self.op("Constant", value=numpy_helper.from_array(np.array(values, np.int64), name), to=name)

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> str:
        name = self._prefix + name
        value = (mean + scale * self._rng.standard_normal(shape)).astype(np.float32)
        self._parameters.append(numpy_helper.from_array(value, name))
        return name

    def dense(self, name: str, rows: str, inputs: int, outputs: int) -> str:
        weight = self.normal(f"{name}_weight", (inputs, outputs), inputs**-0.5)
        return self.op("Gemm", rows, weight, self.normal(f"{name}_bias", (outputs,), 0.01))

    def model(
        self,
        name: str,
        inputs: dict[str, tuple[int, list[str | int]]],
        outputs: dict[str, tuple[int, list[str | int]]],
    ) -> bytes:
        sides = [
            [helper.make_tensor_value_info(key, dtype, shape) for key, (dtype, shape) in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, name, sides[0], sides[1], self._parameters)
        opset = helper.make_opsetid("", OPSET)
        return serialize(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION))


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InvalidGraph(f"cannot build a part with {name}={size}; it must be 1 or more")
