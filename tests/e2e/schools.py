"""A federated job of five schools, each with its own share of the digits, small enough to train in a test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fleets import Fleet
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec
from edge_attention.demo.digits import CLASSES, DATASET, SIDE, Digits
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel

SCHOOLS = ("a", "b", "c", "d", "e")
PIXELS = SIDE * SIDE


def model():
    """image float32 [batch, 8, 8] -> logits [batch, 10]: softmax regression."""
    random = np.random.default_rng(5)
    weight = (0.01 * random.standard_normal((PIXELS, CLASSES))).astype(np.float32)
    bias = (0.01 * random.standard_normal(CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("Gemm", ["pixels", "weight", "bias"], ["logits"]),
        ],
        "regression",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


MODEL = model()


def job(rounds=20, **changed):
    fields = {
        "name": "schools",
        "model": FederatedModel(MODEL, LossSpec("cross_entropy", "logits", "labels"), {"labels": "label"}),
        "dataset": DATASET,
        "strategy": "fedavg",
        "local": LocalSpec(OptimizerSpec("sgd", {"lr": 0.5}), batch=16, steps=10),
        "nodes": SCHOOLS,
        **changed,
    }
    return FederatedJob(rounds=rounds, **fields)


def images(seed=0):
    """Each school's share of the images, an even one at random, and the images nobody has."""
    digits = Digits.load(seed)
    order = np.random.default_rng(seed).permutation(len(digits.train.label))
    shares = {s: digits.train.take(np.sort(order[i :: len(SCHOOLS)])) for i, s in enumerate(SCHOOLS)}
    return shares, digits.test


def values(file):
    """The initializers of an ONNX file, which is its bytes or its path."""
    loaded = onnx.load_from_string(file) if isinstance(file, bytes) else onnx.load(file)
    return {one.name: numpy_helper.to_array(one) for one in loaded.graph.initializer}


def right(file, tested):
    """How many of the images `tested` ONNX Runtime, with an ONNX file, gets right."""
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(["logits"], {"image": tested.image})
    return int((logits.argmax(1) == tested.label).sum())


class Schools:
    """A fleet whose nodes are schools; started with what `planned`, jobs of a test, have to release."""

    def __init__(self, folder, *flags, names=SCHOOLS, state=True, store=False):
        self.fleet = Fleet(folder, *flags, state=state)
        self.client = self.fleet.client(patience=60)
        self.shares, self.tested = images()
        self.names, self.store = names, store
        self.files = {name: self.shares[name].write(folder / f"{name}.npz") for name in names}
        self.released = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        for child in self.fleet.children.values():
            if child.running:
                child.process.send_signal(18)  # SIGCONT: what is frozen cannot end
        self.fleet.stop()

    def allow(self, *jobs):
        """The nodes started from now on release what these jobs need."""
        for one in jobs:
            self.released |= {graph.release for graph in self.client.plan(one) if graph.release}

    def start(self, *names):
        for name in names or self.names:
            self.begin(name)
        for name in names or self.names:
            self.fleet.wait_ready(name)

    def start_hostile(self, name, lie):
        """As start; tests/e2e/hostile_node.py says what it does."""
        with pytest.MonkeyPatch.context() as changed:
            changed.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            changed.setattr(self.fleet, "node_module", "hostile_node")
            self.begin(name, "--lie", lie)
        self.fleet.wait_ready(name)

    def begin(self, name, *flags):
        """Start a node and do not wait until it is there."""
        store = ("--store", str(self.fleet.folder / f"store-{name}")) if self.store else ()
        self.fleet.start_node(
            name,
            *("--threads", "1", *store, *flags),
            data={DATASET: self.files[name]},
            allow_release=sorted(self.released),
            wait=False,
        )
