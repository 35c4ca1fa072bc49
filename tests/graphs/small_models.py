"""Small ONNX models for tests, written by hand, and their arithmetic in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[np.float64]
Feeds = dict[str, NDArray[np.generic]]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[str | int]]],
    outputs: Mapping[str, tuple[int, Sequence[str | int]]],
    initializers: Mapping[str, NDArray[np.generic]],
    opset: int = 18,
) -> bytes:
    sides = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    values = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    graph = helper.make_graph(list(nodes), "model", sides[0], sides[1], values)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return made.SerializeToString()


def linear(outputs: int = 3, batch: str | int = "n") -> bytes:
    """logits [n, outputs] = x [n, 4] @ w + b."""
    return model(
        [node("MatMul", ["x", "w"], ["xw"]), node("Add", ["xw", "b"], ["logits"])],
        {"x": (FLOAT, [batch, 4])},
        {"logits": (FLOAT, [batch, outputs])},
        {"w": normal(1, 4, outputs), "b": normal(2, outputs)},
    )


def attending(classes: int = 3) -> bytes:
    """Tokens [n, 5] to logits [n, classes] and the attention weights [n, 5] of one query over them."""
    return model(
        [
            node("Gather", ["table", "tokens"], ["embedded"]),
            node("MatMul", ["embedded", "query"], ["scores"]),
            node("Squeeze", ["scores", "last"], ["flat"]),
            node("Softmax", ["flat"], ["weights"], axis=-1),
            node("Unsqueeze", ["weights", "one"], ["row"]),
            node("MatMul", ["row", "embedded"], ["pooled"]),
            node("Squeeze", ["pooled", "one"], ["summary"]),
            node("Gemm", ["summary", "head", "bias"], ["logits"]),
        ],
        {"tokens": (INT64, ["rows", 5])},
        {"logits": (FLOAT, ["rows", classes]), "weights": (FLOAT, ["rows", 5])},
        {
            "table": normal(3, 7, 4),
            "query": normal(4, 4, 1),
            "head": normal(5, 4, classes),
            "bias": normal(6, classes),
            "last": np.array([-1], np.int64),
            "one": np.array([1], np.int64),
        },
    )


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def run(
    graph: bytes | ModelProto, feeds: Mapping[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """The graph's outputs; feeds that it has no input for are ignored."""
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def close(found: NDArray[np.generic], expected: Array | float, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest entry expected."""
    wanted = np.asarray(expected, np.float64)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1e-6))
