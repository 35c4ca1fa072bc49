"""Federated jobs as users write them, and what they become."""

import hashlib

import numpy as np
import pytest

from edge_attention import (
    ConsensusSpec,
    EncodingSpec,
    FailedPrecondition,
    FederatedJob,
    FederatedModel,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    PushSpec,
    SelectionSpec,
    StopSpec,
    StrategySpec,
    read_job,
)
from edge_attention.core.errors import DataLoss
from edge_attention.core.messages import training as jobs
from edge_attention.jobs.parameters import read_safetensors, write_safetensors
from edge_attention.wire.services import START_RUN
from protos.edge_attention.v1 import training_pb2

TOML = """
name = "digits"
dataset = "images"
nodes = ["a", "b"]
rounds = 50
seed = 7
weighting = "equal"
holdout = 0.2
evaluate_every = 5
patience_seconds = 30
keep_versions = 3

[model]
file = "digits.onnx"
loss = { name = "cross_entropy", output = "logits", labels = "y" }
inputs = { x = "pixels", y = "digit" }
parameters = ["w", "b"]
initial = "start.safetensors"
metrics = ["error"]

[strategy]
name = "fedadam"
lr = 0.01

[combine]
name = "trimmed_mean"
trim = 0.2

[local]
optimizer = { name = "momentum", lr = 0.1, nesterov = true }
batch = 32
epochs = 1.5
clip = 2

[selection]
fraction = 0.5
minimum = 2
quorum = 0.8
deadline_seconds = 60
adaptive = 2

[update]
name = "int8"
block = 128
feedback = false

[push]
difference = true
encoding = "float16"

[consensus]
attention = "attention"
probe = "probe.npz"
attention_weight = 0.1
parameter_weight = 0.01

[stop]
loss = 0.1
metrics = { correct = 0.97 }
seconds = 600
"""

START = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "digits.onnx").write_bytes(b"digits")
    (tmp_path / "start.safetensors").write_bytes(write_safetensors(START))
    np.savez(tmp_path / "probe.npz", x=np.zeros((4, 8), np.float32))
    (tmp_path / "job.toml").write_text(TOML)
    return tmp_path / "job.toml"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def travelled(job):
    """The job as the aggregator reads it."""
    return START_RUN.request.decode(START_RUN.request.encode(jobs.StartRunRequest(federated=job))).federated


def test_a_file_becomes_a_job_that_travels(file):
    prepared, files = read_job(file).prepare()
    start = write_safetensors(START)
    assert files == {digest(data): data for data in (b"digits", start)}
    job = travelled(prepared)
    assert (job.name, job.dataset, job.nodes, job.rounds, job.seed) == ("digits", "images", ("a", "b"), 50, 7)
    assert (job.weighting, job.holdout, job.evaluate_every) == ("equal", 0.2, 5)
    assert (job.patience_seconds, job.keep_versions) == (30.0, 3)
    assert job.model == jobs.FederatedModel(
        digest(b"digits"),
        LossSpec("cross_entropy", "logits", "y"),
        ("w", "b"),
        {"x": "pixels", "y": "digit"},
        digest(start),
        {},
        ("error",),
    )
    assert job.strategy == StrategySpec("fedadam", {"lr": 0.01})
    assert job.combine == StrategySpec("trimmed_mean", {"trim": 0.2})
    momentum = OptimizerSpec("momentum", {"lr": 0.1, "nesterov": 1.0})
    assert job.local == LocalSpec(momentum, 32, 0, 1.5, 2.0)
    assert job.selection == SelectionSpec(0.5, 2, 0.8, 60.0, 2.0)
    assert job.update == EncodingSpec("int8", {"block": 128.0, "feedback": 0.0})
    assert job.push == PushSpec(True, EncodingSpec("float16"))
    consensus = job.consensus
    assert (consensus.attention, consensus.attention_weight) == ("attention", 0.1)
    assert consensus.parameter_weight == 0.01
    assert consensus.probe["x"].shape == (4, 8)
    assert job.stop == StopSpec(0.1, {"correct": 0.97}, 600.0)


SHORT = """
dataset = "d"
rounds = 3
strategy = "fedavg"
[model]
file = "digits.onnx"
[local]
optimizer = "sgd"
batch = 8
steps = 1
"""


def test_what_a_file_leaves_out_is_the_default(file):
    file.write_text(SHORT)
    read = travelled(read_job(file).prepare()[0])
    local = LocalSpec(OptimizerSpec("sgd"), 8, steps=1)
    model = FederatedModel(file.parent / "digits.onnx")
    written = FederatedJob("job", model, "d", "fedavg", local, 3).prepare()[0]
    for name in jobs.FederatedJob.__dataclass_fields__:
        if name != "consensus":
            assert getattr(read, name) == getattr(written, name), name
    assert read.model.loss == LossSpec("output")
    assert (read.combine.name, read.update.name, read.keep_versions) == ("mean", "float32", 10)
    assert (read.consensus.probe, read.consensus.attention) == ({}, "")


def test_what_another_client_leaves_out_is_the_default():
    sent = training_pb2.StartRunRequest(
        federated=training_pb2.FederatedJob(name="x", selection=training_pb2.Selection(minimum=2))
    )
    job = START_RUN.request.decode(sent.SerializeToString()).federated
    assert (job.weighting, job.keep_versions, job.combine.name, job.update.name) == (
        "samples",
        10,
        "mean",
        "float32",
    )
    assert job.selection == SelectionSpec(minimum=2)
    assert job.stop == StopSpec()


def test_the_kind_is_in_the_file(file):
    assert isinstance(read_job(file), FederatedJob)
    file.write_text('kind = "federated"\n' + TOML)
    assert isinstance(read_job(file), FederatedJob)
    file.write_text('kind = "fusion"\n' + TOML)
    with pytest.raises(InvalidArgument, match="is unknown"):
        read_job(file)
    file.write_text('kind = "split"\n' + TOML)
    with pytest.raises(InvalidArgument, match="is unknown"):
        read_job(file)
    file.write_text('kind = "splits"\n' + TOML)
    with pytest.raises(
        InvalidArgument, match=r"kind is 'splits'; it must be 'fusion' or 'federated' or 'split'"
    ):
        read_job(file)
    file.write_text("rounds = 3\nencoders = []\nqueries = {count = 1, heads = 1, dim = 1}\nbatch = 1\n")
    with pytest.raises(InvalidArgument, match="the key 'head' is missing"):
        read_job(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 7", "sed = 7", "the key 'sed' is unknown; did you mean 'seed'?"),
        ("rounds = 50", "", "the key 'rounds' is missing"),
        ("rounds = 50", "rounds = 1.5", "rounds is 1.5; it must be a whole number"),
        ('file = "digits.onnx"', "", "the key 'model.file' is missing"),
        ('output = "logits"', 'outputs = "logits"', "the key 'model.loss.outputs' is unknown"),
        ('x = "pixels"', "x = 3", "model.inputs.x must name a column"),
        ("lr = 0.01", 'lr = "fast"', "strategy.lr is 'fast'; it must be a number"),
        ("batch = 32", "batches = 32", "the key 'local.batches' is unknown; did you mean 'batch'?"),
        ("batch = 32", "", "the key 'local.batch' is missing"),
        ("quorum = 0.8", "qorum = 0.8", "the key 'selection.qorum' is unknown; did you mean 'quorum'?"),
        ("difference = true", "difference = 1", "push.difference is 1; it must be true or false"),
        ('probe = "probe.npz"', 'probe = "none.npz"', "none.npz cannot be read"),
        ("metrics = { correct = 0.97 }", "metrics = 3", "stop.metrics is 3; it must be a table"),
        ('name = "int8"\n', "", "the key 'update.name' is missing"),
    ],
)
def test_a_wrong_file_is_refused_naming_key_and_file(file, old, new, said):
    assert TOML.count(old) == 1
    file.write_text(TOML.replace(old, new))
    with pytest.raises(InvalidArgument) as refused:
        read_job(file)
    assert said in refused.value.message
    assert str(file.parent) in refused.value.message


LOCAL = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=1)
PROBE = {"x": np.zeros((2, 3), np.float32)}


def job(**changes):
    fields = {
        "name": "j",
        "model": FederatedModel(b"model", LossSpec("output", "loss")),
        "dataset": "d",
        "strategy": "fedavg",
        "local": LOCAL,
        "rounds": 1,
    }
    return FederatedJob(**fields | changes)


def model(**changes):
    return {"model": FederatedModel(**{"file": b"model"} | changes)}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"name": ""}, InvalidArgument, "name is ''; it must be a string and not empty"),
        ({"rounds": 0}, InvalidArgument, "rounds is 0; it must be a whole number from 1"),
        ({"nodes": "ab"}, InvalidArgument, "nodes is 'ab'; it must be a list of strings"),
        ({"nodes": ("a", "a")}, InvalidArgument, "nodes names one twice"),
        ({"weighting": "size"}, InvalidArgument, "weighting is 'size'; it must be one of samples, equal"),
        ({"holdout": 1.0}, InvalidArgument, "holdout is 1.0; it must be 0 or above, and below 1"),
        ({"strategy": StrategySpec("fedavg", {"lr": float("nan")})}, InvalidArgument, r"strategy\.lr is nan"),
        ({"strategy": 3}, InvalidArgument, "strategy is 3; give a name or a StrategySpec"),
        ({"update": StrategySpec("int8")}, InvalidArgument, "give a name or an EncodingSpec"),
        ({"local": LocalSpec(OptimizerSpec("sgd"), 8, 1, 1)}, InvalidArgument, r"local\.steps is 1 and"),
        ({"local": LocalSpec(OptimizerSpec("sgd"), 0, 1)}, InvalidArgument, r"local\.batch is 0"),
        ({"local": LocalSpec(OptimizerSpec("sgd"), 8, 1, clip=-1)}, InvalidArgument, r"local\.clip is -1"),
        ({"selection": SelectionSpec(fraction=0)}, InvalidArgument, r"selection\.fraction is 0"),
        ({"selection": SelectionSpec(quorum=1.1)}, InvalidArgument, r"selection\.quorum is 1\.1"),
        ({"selection": SelectionSpec(deadline_seconds=0)}, InvalidArgument, "deadline_seconds is 0"),
        ({"stop": StopSpec(seconds=-1)}, InvalidArgument, r"stop\.seconds is -1"),
        ({"keep_versions": 0}, InvalidArgument, "keep_versions is 0"),
        ({"patience_seconds": 0}, InvalidArgument, "patience_seconds is 0"),
        ({"consensus": ConsensusSpec("attention")}, InvalidArgument, "give consensus.probe"),
        ({"consensus": ConsensusSpec(attention_weight=1)}, InvalidArgument, "needs consensus.attention"),
        ({"consensus": ConsensusSpec("a", {"x": 1.0})}, InvalidTensor, r"consensus\.probe\.x is one number"),
        ({"consensus": ConsensusSpec("a", PROBE | {"y": np.zeros(3)})}, InvalidTensor, "differ in length"),
        (model(file=b""), InvalidGraph, "empty"),
        (model(loss=3), InvalidArgument, r"model\.loss is 3; give a name or a LossSpec"),
        (model(loss=LossSpec("hinge", "y")), InvalidArgument, r"model\.loss\.name is 'hinge'"),
        (model(loss="hinge"), InvalidArgument, r"model\.loss\.name is 'hinge'; it must be one of output, "),
        (model(parameters=()), InvalidArgument, r"model\.parameters is empty"),
        (model(inputs={"x": 1}), InvalidArgument, r"model\.inputs\.x is 1"),
        (model(initial={"w": ["x"]}), InvalidTensor, r"model\.initial\['w'\]: list holds no plain numbers"),
        (model(initial="no/file"), InvalidArgument, "'no/file', cannot be read"),
        (model(initial=__file__), InvalidArgument, "is no safetensors file"),
        ({"model": "m.onnx"}, InvalidArgument, "model is str; give a FederatedModel"),
    ],
)
def test_a_wrong_job_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        job(**changes).prepare()


def test_initial_values_are_a_file_or_arrays(file):
    of_file = job(**model(initial=file.parent / "start.safetensors")).prepare()
    strided = {"w": np.asfortranarray(START["w"]), "b": START["b"]}
    of_arrays = job(**model(initial=strided)).prepare()
    assert of_file[1] == of_arrays[1]
    initial = of_file[0].model.initial
    read = read_safetensors(of_file[1][initial])
    assert read.keys() == START.keys()
    for name, array in START.items():
        np.testing.assert_array_equal(read[name], array)


def test_the_client_trains_either_kind(client, fake):
    fake.federated = True
    run = client.train(job(**model(initial=START)))
    (sent,) = (call[1] for call in fake.calls if call[0] == "start")
    assert isinstance(sent, jobs.FederatedJob)
    assert sent.local == LOCAL
    rounds = list(run)
    assert [round.number for round in rounds] == [1, 2, 3, 4, 5]
    assert rounds[0].nodes["b"] == jobs.NodeRound(64, 2, 1.0, 0.05, 1, 1.5, 4096, 8192)
    assert rounds[0].evaluation.share("correct") == 0.86
    assert rounds[-1].left_out == {"b": "the deadline of 2 s passed"}
    assert rounds[-1].consensus == {"global": 0.125}
    assert client.plan(job())[0].release == "fusion"
    with pytest.raises(InvalidArgument, match="give a FusionJob, a FederatedJob or a SplitJob"):
        client.train("job.toml")


def test_the_trained_model_comes_as_onnx(client, fake, tmp_path):
    run = client.run("r1")
    assert run.onnx() == fake.trained
    assert run.save_onnx(tmp_path / "m.onnx", version=2) == 2
    assert (tmp_path / "m.onnx").read_bytes() == fake.trained
    fake.lost = 1
    with pytest.raises(DataLoss, match="600 of 601 bytes of the model of run r1 came"):
        run.onnx()
    with pytest.raises(InvalidArgument, match="version is -1"):
        run.onnx(version=-1)


def test_a_stopped_run_goes_on(client, fake):
    run = client.run("r1")
    with pytest.raises(FailedPrecondition, match="is finished"):
        run.resume()
    fake.end = jobs.TrainingRun("r1", "job", jobs.RunState.STOPPED, "", 3, 5, 3, 0.0)
    assert run.resume().state is jobs.RunState.RUNNING
    assert run.info.round == 3


def test_shares_of_a_metric():
    assert jobs.Evaluation(0, 0.0, {"correct": 0.0}).share("correct") == 0
    assert jobs.Evaluation(4, 0.0, {"correct": 6.0, "tokens": 12.0}).share("correct") == 0.5
