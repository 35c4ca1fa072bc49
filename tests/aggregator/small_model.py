"""A logistic regression over five nodes' rows, small enough to train in a test, and its float64 twin."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from house import dataset
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.training import (
    FederatedJob,
    FederatedModel,
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    StrategySpec,
)

FEATURES, CLASSES, NODES = 4, 3, ("a", "b", "c", "d", "e")
RANDOM = np.random.default_rng(3)
CENTRES = 2 * RANDOM.standard_normal((CLASSES, FEATURES))
ROWS = {name: 24 + 8 * i for i, name in enumerate(NODES)}
Y = {name: RANDOM.integers(CLASSES, size=rows) for name, rows in ROWS.items()}
X = {
    name: (CENTRES[Y[name]] + RANDOM.standard_normal((rows, FEATURES))).astype(np.float32)
    for name, rows in ROWS.items()
}
W = (0.1 * RANDOM.standard_normal((FEATURES, CLASSES))).astype(np.float32)
B = np.array([0.01, -0.02, 0.03], np.float32)


def model():
    """x [batch, 4] -> logits [batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"])],
        "regression",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(W, "weight"), numpy_helper.from_array(B, "bias")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def job(house, **changed):
    """The job as it travels; its model is with the aggregator."""
    data = model()
    house.state.put_blob(data)
    fields = {
        "name": "small",
        "model": FederatedModel(
            hashlib.sha256(data).hexdigest(),
            LossSpec("cross_entropy", "logits", "labels"),
            inputs={"labels": "y"},
        ),
        "dataset": "rows",
        "nodes": NODES,
        "strategy": StrategySpec("fedavg"),
        "local": LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=3),
        "rounds": 4,
        "holdout": 0.25,
        **changed,
    }
    return FederatedJob(**fields)


def rows(name):
    """The dataset of node `name`."""
    return dataset("rows", x=X[name], y=Y[name])


def gradient(weight, bias, x, y):
    """The mean loss of softmax regression, and its gradients, in float64."""
    scores = x.astype(np.float64) @ weight + bias
    scores -= scores.max(1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return loss, x.T.astype(np.float64) @ p, p.sum(0)


__all__ = ["NODES", "ROWS", "B", "W", "X", "Y", "gradient", "job", "jobs", "model", "rows"]
