"""A job of two labs and thirty samples, small enough to train in a test, and its one-machine twin."""

from __future__ import annotations

import numpy as np
from house import dataset

from aggregator.training.fusion import planner as fusion_planner
from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.core.optimizers import Adam
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.graphs.models.one_machine import OneMachine, one_machine_model
from edge_attention.jobs.job import Encoder, FusionJob, Head

SAMPLES, FEATURES, BATCH = 30, 3, 8
RANDOM = np.random.default_rng(5)
X = {lab: RANDOM.standard_normal((SAMPLES, FEATURES)).astype(np.float32) for lab in "ab"}
Y = (X["a"].sum(1) + X["b"].sum(1) > 0).astype(np.int64)
QUERIES = (0.1 * RANDOM.standard_normal((2, 2, 4))).astype(np.float32)
MODELS = {
    lab: tabular_encoder(FEATURES, key_heads=1, key_dim=4, value_dim=4, width=4, seed=seed)
    for seed, lab in enumerate("ab")
}
HEAD = classifier_head(queries=2, query_heads=2, value_dim=4, classes=2, seed=3)
IDS = [f"P{i}" for i in range(SAMPLES)]


def job(**changed):
    """The job as it travels, and its files by digest."""
    return said(**changed).prepare()


def said(**changed):
    """The job as a user writes it."""
    fields = {
        "name": "small",
        "encoders": tuple(Encoder(lab, "x", MODELS[lab], {"x": "x"}) for lab in "ab"),
        "head": Head("a", "labels", HEAD, {"y": "y"}, metrics=("correct",)),
        "queries": QUERIES,
        "optimizer": OptimizerSpec("adam", {"lr": 0.01}),
        "rounds": 6,
        "batch": BATCH,
        "holdout": 0.2,
        **changed,
    }
    return FusionJob(**fields)


def written(models, folder):
    """Where each file is: digest -> path."""
    for digest, data in models.items():
        (folder / digest).write_bytes(data)
    return {digest: folder / digest for digest in models}


def plan(job, models, folder):
    """The job's plan, made in this process."""
    return fusion_planner.plan(job, written(models, folder), folder)


def order(lab):
    """Each lab has the samples in an order of its own."""
    return np.random.default_rng(ord(lab)).permutation(SAMPLES)


def datasets(lab, rows=None):
    rows = order(lab) if rows is None else rows
    found = [dataset("x", [IDS[i] for i in rows], x=X[lab][rows])]
    return [*found, dataset("labels", IDS, y=Y)] if lab == "a" else found


def feeds(positions):
    return {"a/x": X["a"][positions], "b/x": X["b"][positions], "y": Y[positions]}


def one_machine():
    return OneMachine(one_machine_model(MODELS, HEAD, QUERIES, 0.5), BATCH)


def trained(batches, initial):
    """Parameters after a step for each of `batches` on one machine, and the losses."""
    machine, optimizer, losses = one_machine(), Adam(lr=0.01), []
    parameters, state = dict(initial), optimizer.init(initial)
    for positions in batches:
        loss, gradients = machine.gradients(parameters, feeds(np.array(positions)))
        parameters, state = optimizer.step(parameters, gradients, state)
        losses.append(float(loss))
    return parameters, losses
