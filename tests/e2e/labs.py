"""A fusion job of three labs, small enough to train in a test: its data, its model parts, its nodes."""

from __future__ import annotations

import numpy as np

from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.jobs.job import Encoder, FusionJob, Head

LABS, SAMPLES, FEATURES = "abc", 60, 4
RANDOM = np.random.default_rng(8)
X = {lab: RANDOM.standard_normal((SAMPLES, FEATURES)).astype(np.float32) for lab in LABS}
Y = (sum(x.sum(1) for x in X.values()) > 0).astype(np.int64)
MODELS = {
    lab: tabular_encoder(FEATURES, key_heads=1, key_dim=4, value_dim=4, width=4, seed=seed)
    for seed, lab in enumerate(LABS)
}
HEAD = classifier_head(queries=2, query_heads=2, value_dim=4, classes=2, seed=3)
QUERIES = (0.1 * np.random.default_rng(4).standard_normal((2, 2, 4))).astype(np.float32)


def job(rounds=60, **changed):
    fields = {
        "name": "labs",
        "encoders": tuple(Encoder(lab, "x", MODELS[lab], {"x": "x"}) for lab in LABS),
        "head": Head("a", "labels", HEAD, {"y": "y"}, metrics=("correct",)),
        "queries": QUERIES,
        "optimizer": OptimizerSpec("adam", {"lr": 0.01}),
        "batch": 16,
        "holdout": 0.2,
    }
    return FusionJob(rounds=rounds, **{**fields, **changed})


def write(folder):
    """Each lab's datasets, its rows in an order of its own: lab -> name -> file."""
    files = {}
    for lab in LABS:
        rows = np.random.default_rng(ord(lab)).permutation(SAMPLES)
        files[lab] = {"x": folder / f"{lab}.npz"}
        np.savez(files[lab]["x"], id=np.array([f"P{i}" for i in rows]), x=X[lab][rows])
    files["a"]["labels"] = folder / "labels.npz"
    np.savez(files["a"]["labels"], id=np.array([f"P{i}" for i in range(SAMPLES)]), y=Y)
    return files


def releases(client, lab, planned=None):
    """What `lab` must let leave."""
    planned = planned or client.plan(job())
    return sorted({graph.release for graph in planned if graph.node == lab and graph.release})
