"""A job made ready: what it runs, what leaves each node, and every way in which it does not fit."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import small_job
from small_job import HEAD, MODELS

from aggregator.store.tensor_file import TensorFile
from aggregator.training import planner
from aggregator.training.fusion import releases
from aggregator.training.fusion.plan import FusionPlan, unseen_view, view_of
from aggregator.training.fusion.planner import check
from edge_attention.core.errors import InvalidArgument, InvalidGraph, NotFound
from edge_attention.core.messages.link import Column, Dataset
from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.core.release import Release
from edge_attention.core.tensors import DataType
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.graphs.gradients.gradients import graph_inputs
from edge_attention.jobs.job import Encoder, Head


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The plan, by the process that makes it, and its folder."""
    folder = tmp_path_factory.mktemp("plan")
    job, models = small_job.job()
    text = asyncio.run(planner.make(job, small_job.written(models, folder), folder))
    return FusionPlan.from_json(text, job), folder


@pytest.fixture(scope="module")
def planned(made):
    return made[0]


def test_the_plan_says_what_leaves_each_node(planned):
    views = {part.prefix: unseen_view(planned, part) for part in planned.parts}
    released = {(g.node, g.role): g for g in releases.planned(planned, views)}
    assert {g.release for g in released.values() if g.role == "ids"} == {"alignment"}
    for graph in released.values():
        if graph.release_text:
            assert graph.release == f"sha256:{Release.parse(graph.release_text).digest}"
    assert released["b", "encoder"].outputs == (), "keys and values stay"
    assert all(name.startswith("grad/") for name in released["b", "encoder_gradient"].outputs)
    assert ("b", "head") not in released
    assert released["a", "head"].outputs == ("loss", "correct")
    assert planned.nodes == ("a", "b")
    assert set(planned.sources) == {"a/x", "b/x", "a/labels"}


def test_every_parameter_lies_there_under_its_node(made):
    planned, folder = made
    assert {name.split("/")[0] for name in planned.names} == {"a", "b", "head"}
    with TensorFile(folder / "initial.safetensors") as file:
        assert file.specs.keys() == set(planned.names)
        for part in planned.parts:
            for name, shape in part.parameters.items():
                assert file.specs[f"{part.prefix}/{name}"] == (np.dtype(np.float32), shape)
    assert planned.scale == np.float32(0.5)


def test_the_graphs_lie_there_by_their_digests(made):
    planned, folder = made
    for part in planned.parts:
        for graph in (part.forward, part.gradient):
            data = (folder / f"{graph.digest}.onnx").read_bytes()
            assert hashlib.sha256(data).hexdigest() == graph.digest
            assert graph.inputs == graph_inputs(data).keys()


def test_a_plan_is_the_same_after_it_was_kept(planned):
    again = FusionPlan.from_json(planned.to_json(), planned.job)
    assert again.parts == planned.parts


def encoder(**changed):
    sizes = {"key_heads": 1, "key_dim": 4, "value_dim": 4, "width": 4, **changed}
    return tabular_encoder(sizes.pop("features", 3), **sizes)


def with_b(model):
    return {"encoders": (Encoder("a", "x", MODELS["a"], {"x": "x"}), Encoder("b", "x", model, {"x": "x"}))}


def with_head(model=HEAD, inputs=None, **changed):
    return {"head": Head("a", "labels", model, inputs or {"y": "y"}, **changed)}


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"encoders": ()}, InvalidArgument, "at least one node"),
        ({"encoders": (Encoder("a", "x", MODELS["a"], {"x": "x"}),) * 2}, InvalidArgument, "two encoders"),
        ({"encoders": (Encoder("head", "x", MODELS["a"], {"x": "x"}),)}, InvalidArgument, "'head'"),
        ({"name": "../up"}, InvalidArgument, "run"),
        ({"batch": 100_000}, InvalidArgument, "batch is 100000"),
        ({"holdout": 1.0}, InvalidArgument, "holdout"),
        ({"holdout": float("nan")}, InvalidArgument, "holdout"),
        ({"scale": float("inf")}, InvalidArgument, "scale"),
        ({"patience_seconds": 0.0}, InvalidArgument, "patience"),
        ({"patience_seconds": float("inf")}, InvalidArgument, "patience"),
        ({"patience_seconds": float("nan")}, InvalidArgument, "patience"),
        ({"optimizer": OptimizerSpec("adamm")}, Exception, "adamm"),
        ({"optimizer": OptimizerSpec("adam", {"rate": 1.0})}, Exception, "rate"),
        ({"optimizer": OptimizerSpec("adam", {"lr": float("nan")})}, Exception, "lr"),
        (with_b(b"not ONNX at all"), InvalidGraph, "encoder 'b'"),
        (with_b(MODELS["b"][:-100]), InvalidGraph, "encoder 'b'"),
        (with_b(HEAD), InvalidGraph, "encoder 'b'"),
        (with_b(encoder(key_dim=5)), InvalidGraph, "keys have dimension 5"),
        (with_b(encoder(value_dim=5)), InvalidGraph, "values have dimension 5"),
        (with_b(encoder(key_heads=2)), InvalidGraph, "2 key heads, another encoder has 1"),
        (with_b(encoder(key_heads=3)), InvalidGraph, "do not divide"),
        (
            {"encoders": (Encoder("b", "x", MODELS["b"], {"z": "x"}),)},
            InvalidGraph,
            "bind each input to a column",
        ),
        (with_head(MODELS["a"]), InvalidGraph, "head"),
        (with_head(inputs={"label": "y"}), InvalidGraph, "the job binds"),
        (with_head(metrics=("f1",)), InvalidArgument, "'f1' is no output"),
        (with_head(metrics=("probabilities",)), InvalidArgument, "float32 scalar"),
        (
            with_head(classifier_head(queries=2, query_heads=2, value_dim=8, classes=2)),
            InvalidGraph,
            "fused has shape",
        ),
    ],
)
def test_what_does_not_fit_is_said(changed, error, said, tmp_path):
    with pytest.raises(error, match=said):
        small_job.plan(*small_job.job(**changed), tmp_path)


def test_a_wire_job_is_checked_though_the_client_would_have(planned):
    with pytest.raises(InvalidArgument, match="rounds is 0"):
        check(replace(planned.job, rounds=0))


COLUMN = Column("x", DataType.FLOAT32, (3,))


@pytest.mark.parametrize(
    ("datasets", "error", "said"),
    [
        ((), NotFound, "it has: none.*--data x=FILE"),
        ((Dataset("x", 30, (COLUMN,), identified=False),), InvalidArgument, "has no ids"),
        ((Dataset("x", 30, (replace(COLUMN, name="y"),), True),), NotFound, "no column 'x'; it has: y"),
        ((Dataset("x", 30, (replace(COLUMN, shape=(4,)),), True),), InvalidArgument, r"\[4\] a row"),
        ((Dataset("x", 30, (replace(COLUMN, shape=()),), True),), InvalidArgument, "a row"),
        ((Dataset("x", 30, (replace(COLUMN, data_type=DataType.INT64),), True),), InvalidArgument, "int64"),
    ],
)
def test_a_dataset_that_does_not_fit_is_said(planned, datasets, error, said):
    with pytest.raises(error, match=said):
        view_of(planned, planned.encoders[1], datasets)
    view_of(planned, planned.encoders[1], (Dataset("x", 30, (COLUMN,), identified=True),))
