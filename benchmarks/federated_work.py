"""The work both sides of the federated benchmark do: data files, initial parameters, and our ONNX models.

Idle work: parameters p [k, m] of random numbers, a row x [k] a round, loss = sum over parameters of
mean(x @ p), so the gradient is x / m in every column: it differs by node and round and costs next to nothing.
Digits: a network of one hidden layer over the demo's split of the UCI digits, softmax and cross entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention import FederatedJob, FederatedModel
from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.core.tensors import Array, Float32
from edge_attention.demo import digits

__all__ = ["DIGITS", "SIZES", "Work", "digits_accuracy", "digits_work", "idle_work"]

Arrays = Mapping[str, Float32]

DIGITS = "digits"
SIZES = {"10 KB": (1, 25, 100), "50 MB": (5, 1000, 2500)}
"""Arrays, and k and m of each."""
ROWS, HIDDEN, LR, BATCH = 64, 32, 0.1, 16


@dataclass(frozen=True, eq=False)
class Work:
    """What to train, on what: `data` has a .npz a node; columns of `inputs` (ours) and the whole (Flower)."""

    name: str
    initial: Arrays
    model: ModelProto
    loss: LossSpec
    inputs: Mapping[str, str]
    data: Mapping[str, Mapping[str, Array]]
    local: LocalSpec

    def write(self, folder: Path) -> dict[str, Path]:
        """Node -> its file."""
        files = {}
        for node, columns in self.data.items():
            files[node] = folder / f"{node}.npz"
            np.savez(files[node], allow_pickle=False, **columns)
        return files

    def write_initial(self, folder: Path) -> Path:
        np.savez(folder / "initial.npz", allow_pickle=False, **self.initial)
        return folder / "initial.npz"

    def job(self, rounds: int) -> FederatedJob:
        """Ours: FedAvg over all nodes, weighted by samples."""
        return FederatedJob(
            name=self.name.replace(" ", "-"),
            model=FederatedModel(self.model, self.loss, self.inputs),
            dataset=self.name.replace(" ", "-"),
            strategy="fedavg",
            local=self.local,
            rounds=rounds,
            nodes=tuple(self.data),
            keep_versions=2,
        )


def idle_work(size: str, nodes: int, seed: int = 0) -> Work:
    """Of a size in SIZES."""
    count, k, m = SIZES[size]
    rng = np.random.default_rng(seed)
    initial = {f"p{i}": rng.standard_normal((k, m), dtype=np.float32) for i in range(count)}
    data: dict[str, dict[str, Array]] = {
        f"node-{i}": {"x": rng.standard_normal((ROWS, k), dtype=np.float32)} for i in range(nodes)
    }
    steps: list[NodeProto] = []
    for name in initial:
        steps.append(helper.make_node("MatMul", ["x", name], [f"{name}.y"]))
        steps.append(helper.make_node("ReduceMean", [f"{name}.y"], [f"{name}.mean"], keepdims=0))
    if count == 1:
        steps.append(helper.make_node("Identity", ["p0.mean"], ["loss"]))
    else:
        steps.append(helper.make_node("Sum", [f"{name}.mean" for name in initial], ["loss"]))
    model = _model(size, steps, {"x": (k,)}, {"loss": None}, initial)
    local = LocalSpec(OptimizerSpec("sgd", {"lr": LR}), batch=1, steps=1)
    return Work(size, initial, model, LossSpec("output", "loss"), {"x": "x"}, data, local)


def digits_work() -> tuple[Work, digits.Images]:
    """Five nodes, an epoch a round; and the test set that nobody trains on."""
    split = digits.Digits.load()
    pixels = digits.SIDE**2
    rng = np.random.default_rng(0)
    classes = digits.CLASSES
    shapes = {"w0": (pixels, HIDDEN), "b0": (HIDDEN,), "w1": (HIDDEN, classes), "b1": (classes,)}
    spread = {"w0": pixels**-0.5, "b0": 0.01, "w1": HIDDEN**-0.5, "b1": 0.01}
    initial = {
        name: (spread[name] * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
    }
    steps = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w0", "b0"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w1", "b1"], ["logits"]),
    ]
    side = (digits.SIDE, digits.SIDE)
    model = _model(DIGITS, steps, {"image": side}, {"logits": classes}, initial)
    data: dict[str, dict[str, Array]] = {
        node: {"image": held.image, "label": held.label} for node, held in split.nodes.items()
    }
    local = LocalSpec(OptimizerSpec("sgd", {"lr": LR}), batch=BATCH, epochs=1)
    loss, inputs = LossSpec("cross_entropy", "logits"), {"image": "image", "labels": "label"}
    return Work(DIGITS, initial, model, loss, inputs, data, local), split.test


def digits_accuracy(parameters: Arrays, test: digits.Images) -> float:
    """The share of the test images whose highest logit is their digit's."""
    flat = test.image.reshape(len(test.label), -1)
    hidden = np.maximum(flat @ parameters["w0"] + parameters["b0"], 0)
    logits = hidden @ parameters["w1"] + parameters["b1"]
    return float((logits.argmax(1) == test.label).mean())


def _model(
    name: str,
    steps: list[NodeProto],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, int | None],
    initial: Arrays,
) -> ModelProto:
    """`inputs`: shapes behind the batch; `outputs`: width behind the batch, None for a scalar."""
    graph = helper.make_graph(
        steps,
        name.replace(" ", ""),
        [
            helper.make_tensor_value_info(given, TensorProto.FLOAT, ["batch", *shape])
            for given, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(made, TensorProto.FLOAT, [] if width is None else ["batch", width])
            for made, width in outputs.items()
        ],
        [numpy_helper.from_array(values, parameter) for parameter, values in initial.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
