"""The digits model trained on one machine, and what trained ONNX files are worth on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnxruntime

from edge_attention.core.optimizers import Optimizer
from edge_attention.core.rounds.sampling import training_rows
from edge_attention.core.tensors import Array, Int64
from edge_attention.demo.digits import NODES, Digits, Images
from edge_attention.demo.federated_jobs import BATCH, LOSS, SEED, digit_model
from edge_attention.demo.text import Sequences
from edge_attention.graphs.gradients.gradients import Runner
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.onnx_file import serialize
from edge_attention.graphs.reading import read_graph


def train(
    batches: Iterable[Images], optimizer: Optimizer, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Array]:
    """The digits model's parameters by name, after one step for each of `batches`, which are of one size."""
    model = load_model(digit_model(), loss=LOSS)
    parameters: Mapping[str, Array] = model.parameters
    state = optimizer.init(parameters)
    backward: Runner | None = None
    outputs = [f"grad/{i}" for i in range(len(model.names))]
    for number, batch in enumerate(batches, start=1):
        if backward is None:
            backward = Runner(serialize(gradient_graph(model, len(batch.label))), model.place)
        feeds: dict[str, Array] = {"image": batch.image, "labels": batch.label}
        feeds |= {f"x/{i}": parameters[name] for i, name in enumerate(model.names)}
        gradients = dict(zip(model.names, backward(outputs, feeds), strict=True))
        parameters, state = optimizer.step(parameters, gradients, state)
        progress(number)
    return dict(parameters)


def shuffled(data: Images, steps: int) -> Iterable[Images]:
    """`steps` batches of all the data, epoch after epoch."""
    for rows in training_rows(len(data.label), 0.0, BATCH, steps, SEED, "one machine", 1):
        yield data.take(rows)


def joined(data: Digits, rounds: int) -> Iterable[Images]:
    """For each round the batches of all nodes, as one: the very rows that the fleet takes, a step a round."""
    for number in range(1, rounds + 1):
        parts = [
            images.take(training_rows(len(images.label), 0.0, BATCH, 1, SEED, node, number)[0])
            for node, images in ((node, data.nodes[node]) for node in NODES)
        ]
        yield Images(
            np.concatenate([part.image for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.id for part in parts]),
        )


def accuracy(model: bytes, images: Images) -> float:
    """The share of `images` that the ONNX file names right."""
    return float((_logits(model, {"image": images.image}).argmax(axis=1) == images.label).mean())


def text_loss(model: bytes, rows: Sequences) -> float:
    """The mean of -log p of every character that follows, in nats."""
    logits = _logits(model, {"tokens": rows.tokens}).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, rows.labels[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(logits).sum(axis=-1)) - chosen).mean())


def _logits(model: bytes, feeds: Mapping[str, Array | Int64]) -> Array:
    checked = read_graph(model, "the trained model")  # it came from an aggregator
    session = onnxruntime.InferenceSession(checked.data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], dict(feeds))
    return np.asarray(logits)
