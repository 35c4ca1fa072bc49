"""Jobs as users write them, and what they become."""

import hashlib

import numpy as np
import pytest
from onnx import ModelProto

from edge_attention import (
    Encoder,
    FusionJob,
    Head,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
    QueriesSpec,
    read_job,
)
from edge_attention.core.messages.training import MissingSamples, OptimizerSpec

TOML = """
name = "patients"
rounds = 100
batch = 64
seed = 7
holdout = 0.2
evaluate_every = 10
missing = "attend"
scale = 0.5
patience_seconds = 30

[queries]
count = 4
heads = 2
dim = 16
seed = 3

[optimizer]
name = "adam"
lr = 0.01

[[encoders]]
node = "a"
dataset = "patients"
model = "models/a.onnx"
inputs = { x = "features" }
trainable = ["w"]

[[encoders]]
node = "b"
dataset = "patients"
model = "models/b.onnx"
inputs = { x = "features" }

[head]
node = "a"
dataset = "patients"
model = "models/h.onnx"
inputs = { label = "label" }
metrics = ["correct"]
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "models").mkdir()
    for name in "abh":
        (tmp_path / "models" / f"{name}.onnx").write_bytes(name.encode())
    (tmp_path / "job.toml").write_text(TOML)
    return tmp_path / "job.toml"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_becomes_a_job(file):
    job, files = read_job(file).prepare()
    assert files == {digest(data): data for data in (b"a", b"b", b"h")}
    assert (job.name, job.rounds, job.batch, job.seed) == ("patients", 100, 64, 7)
    assert (job.holdout, job.evaluate_every, job.scale, job.patience_seconds) == (0.2, 10, 0.5, 30.0)
    assert job.missing is MissingSamples.ATTEND
    assert job.optimizer == OptimizerSpec("adam", {"lr": 0.01})
    assert [(e.node, e.graph, e.trainable) for e in job.encoders] == [
        ("a", digest(b"a"), ("w",)),
        ("b", digest(b"b"), ()),
    ]
    assert (job.head.graph, job.head.metrics, job.head.inputs) == (
        digest(b"h"),
        ("correct",),
        {"label": "label"},
    )
    assert job.queries.shape == (4, 2, 16)
    assert job.queries.dtype == np.float32
    np.testing.assert_array_equal(job.queries, QueriesSpec(4, 2, 16, 3).draw())
    assert not np.array_equal(job.queries, QueriesSpec(4, 2, 16, 4).draw())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 7", "sed = 7", "the key 'sed' is unknown; did you mean 'seed'?"),
        ("rounds = 100", "round = 100", "the key 'round' is unknown; did you mean 'rounds'?"),
        ("rounds = 100", "zzz = 100", "the key 'zzz' is unknown; there are batch, "),
        ("heads = 2", 'heads = 2\nfile = "q.npy"', "the key 'queries.count' is unknown; there are file"),
        ("heads = 2", "heads = 2\nhead = 3", "the key 'queries.head' is unknown"),
        ("rounds = 100", "", "the key 'rounds' is missing"),
        ("rounds = 100", 'rounds = "many"', "rounds is 'many'; it must be a whole number"),
        ("rounds = 100", "rounds = true", "rounds is True"),
        ('metrics = ["correct"]', "metrics = [1]", "head.metrics must hold strings"),
        ('metrics = ["correct"]', "metric = 1", "the key 'head.metric' is unknown"),
        ('trainable = ["w"]', 'outputs = "w"', "the key 'encoders.outputs' is unknown"),
        ("lr = 0.01", 'lr = "fast"', "optimizer.lr is 'fast'; it must be a number"),
        ('missing = "attend"', 'missing = "never"', "must be 'leave_out' or 'attend'"),
        ('inputs = { label = "label" }', "inputs = { label = 1 }", "head.inputs.label must name a column"),
        ("[queries]", "[queries", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_naming_key_and_file(file, old, new, said):
    assert TOML.count(old) == 1
    file.write_text(TOML.replace(old, new))
    with pytest.raises(InvalidArgument) as refused:
        read_job(file)
    assert said in refused.value.message
    assert str(file) in refused.value.message


def test_queries_of_a_file(file):
    queries = np.random.default_rng(0).standard_normal((4, 2, 16), np.float32)
    np.save(file.parent / "q.npy", queries)
    start, stop = TOML.index("count = 4"), TOML.index("[optimizer]")
    file.write_text(TOML[:start] + 'file = "q.npy"\n' + TOML[stop:])
    np.testing.assert_array_equal(read_job(file).prepare()[0].queries, queries)


def test_an_empty_trainable_is_not_all(file):
    file.write_text(TOML.replace('trainable = ["w"]', "trainable = []"))
    with pytest.raises(InvalidArgument, match="leave it out to train all"):
        read_job(file).prepare()


def test_missing_files_are_named(tmp_path, file):
    with pytest.raises(InvalidArgument, match=r"none\.toml cannot be read"):
        read_job(tmp_path / "none.toml")
    (tmp_path / "models" / "h.onnx").unlink()
    with pytest.raises(InvalidGraph, match=r"h\.onnx' cannot be read"):
        read_job(file).prepare()


def job(**changes):
    part = ("a", "d", b"model", {"x": "f"})
    fields = {
        "name": "j",
        "encoders": (Encoder(*part),),
        "head": Head(*part),
        "queries": QueriesSpec(1, 2, 4),
        "optimizer": "sgd",
        "rounds": 1,
        "batch": 2,
    }
    return FusionJob(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rounds": 0}, InvalidArgument, "rounds is 0; it must be a whole number from 1 to 10000000"),
        ({"head": Head("a", "d", b"m", {}, trainable=())}, InvalidArgument, "head.trainable is"),
        ({"head": Head("a", "d", b"m", {}, trainable="w")}, InvalidArgument, "head.trainable is 'w'"),
        (
            {"encoders": (Encoder("b", "d", b"m", {}, []),)},
            InvalidArgument,
            r"encoders\[0\].trainable is \[\]",
        ),
        ({"batch": -1}, InvalidArgument, "batch is -1"),
        ({"seed": 1.5}, InvalidArgument, "seed is 1.5"),
        ({"queries": QueriesSpec(0, 2, 4)}, InvalidArgument, "queries: count is 0"),
        ({"queries": np.zeros((1, 2, 4), complex)}, InvalidTensor, "no plain numbers"),
        ({"queries": "x"}, InvalidTensor, "QueriesSpec"),
        ({"queries": [[1.0]]}, InvalidTensor, r"queries has shape \[1, 1\]"),
        ({"head": Head("a", "d", b"", {})}, InvalidGraph, "empty"),
        ({"head": Head("a", "d", 3, {})}, InvalidArgument, "a model is int"),
    ],
)
def test_a_wrong_job_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        job(**changes).prepare()


def test_models_are_paths_bytes_or_onnx_models(tmp_path):
    model = ModelProto(ir_version=8, producer_name="test")
    data = model.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    for given in (model, data, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        _, files = job(head=Head("a", "d", given, {})).prepare()
        assert data in files.values()
