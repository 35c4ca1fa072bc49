"""A decoder of three layers and some rows of letters, small enough to be trained through the split in a test;
and the same on one machine, the optimizer written plainly in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import plain_training
import safetensors.numpy

from edge_attention.core.messages.federated import LossSpec
from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.graphs.builders.sequences import attention_sequences
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.jobs.federated_job import FederatedModel
from edge_attention.jobs.split_job import SplitJob

LETTERS, LENGTH, COUNT, BATCH = 11, 6, 24, 8
NODES = ("a", "b", "c")
MODEL = attention_sequences(LETTERS, LENGTH, dim=8, heads=2, blocks=3, causal=True, seed=3)
TOKENS = np.random.default_rng(2).integers(0, LETTERS, (COUNT, LENGTH))
ROWS = {"tokens": TOKENS, "labels": (TOKENS * 3 + 1) % LETTERS}
LOSS = LossSpec("cross_entropy", "logits")


def job(house, **changed):
    """The job as it travels; its files are with the aggregator."""
    fields = {
        "name": "small",
        "model": FederatedModel(MODEL, LOSS),
        "split": "layers",
        "data": ROWS,
        "optimizer": OptimizerSpec("adam", {"lr": 0.01}),
        "rounds": 6,
        "batch": BATCH,
        "micro_batches": 2,
        "nodes": NODES,
    }
    sent, files = SplitJob(**(fields | changed)).prepare()
    for data in files.values():
        house.state.put_blob(data)
    return sent


async def started(house, raw=None, **changed):
    """The run's id, over three nodes. `raw`: of the job as it travels, what nobody who writes one could."""
    for name in NODES:
        if house.membership.get(name) is None:
            house.node(name)
    return (await house.runs.start(replace(job(house, **changed), **(raw or {})))).id


def parameters(house, run, version):
    """By the names of the model."""
    return safetensors.numpy.load(b"".join(house.runs.parameters(run, version).pieces))


class OneMachine:
    """The whole model's gradients in one graph."""

    def __init__(self):
        rows = {"data": {name: array.shape[1:] for name, array in ROWS.items()}}
        self.model = load_model(MODEL, loss=LOSS, rows=rows, place="small")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        graph = gradient_graph(self.model, BATCH).SerializeToString()
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def gradients(self, values, rows):
        """Of the samples `rows`: their loss, and a gradient for each of `values` (name -> array)."""
        feeds = {name: array[rows] for name, array in ROWS.items()}
        feeds |= {f"x/{i}": values[name].astype(np.float32) for i, name in enumerate(self.model.names)}
        made = [output.name for output in self.session.get_outputs()]
        taken = [value.name for value in self.session.get_inputs()]
        found = dict(zip(made, self.session.run(made, {n: feeds[n] for n in taken}), strict=True))
        return float(found["loss"]), {n: found[f"grad/{i}"] for i, n in enumerate(self.model.names)}


def trained(rounds, initial, schedule, clip, lr):
    """What `rounds` (records) come to from `initial` with SGD; and how many of them were clipped.

    Not with Adam: it makes steps of the rounding in gradients that are nothing, as those of keys' biases.
    """
    machine, names = OneMachine(), list(initial)
    values = {name: array.astype(np.float64) for name, array in initial.items()}
    clips = 0
    for record in rounds:
        _, found = machine.gradients(values, np.array(record.samples))
        gradients = plain_training.clipped([found[n] for n in names], clip)
        clips += not np.array_equal(gradients[0], found[names[0]])
        rate = plain_training.rate(schedule.name, lr, record.number, len(rounds), **schedule.options)
        values = {name: values[name] - rate * g for name, g in zip(names, gradients, strict=True)}
    return values, clips
