"""Jobs through the split as people write them, in Python and TOML: what they travel as, and what is
refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_attention import (
    FederatedModel,
    LossSpec,
    OptimizerSpec,
    ScheduleSpec,
    SplitData,
    SplitJob,
    StrategySpec,
    read_job,
)
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages.training import StartRunRequest
from edge_attention.graphs.builders.sequences import attention_sequences
from edge_attention.jobs.parameters import read_safetensors
from edge_attention.wire.services import START_RUN

MODEL = attention_sequences(8, 4, dim=8, heads=2, blocks=1, causal=True)
ROWS = {"tokens": np.zeros((6, 4), np.int64), "labels": np.ones((6, 4), np.int64)}


def job(**changed):
    fields = {
        "name": "small",
        "model": FederatedModel(MODEL, LossSpec("cross_entropy", "logits")),
        "split": "layers",
        "data": ROWS,
        "optimizer": OptimizerSpec("adam", {"lr": 0.01}),
        "rounds": 3,
        "batch": 4,
    }
    return SplitJob(**(fields | changed))


def test_it_travels_with_its_model_and_its_samples():
    sent, files = job(
        schedule=ScheduleSpec("cosine", {"warmup": 2}),
        micro_batches=2,
        recompute=True,
        clip=1.0,
        nodes=("a", "b"),
    ).prepare()
    assert files[sent.model.graph] == MODEL
    samples = read_safetensors(files[sent.data.file])
    assert {name: array.dtype for name, array in samples.items()} == dict.fromkeys(ROWS, np.int64)
    request = START_RUN.request.decode(START_RUN.request.encode(StartRunRequest(split=sent)))
    assert request.any_job == sent


TOML = """
name = "reviews"
split = "heads"
steps = 5
batch = 4
micro_batches = 2
train = ["block.*"]
data = {data}

[model]
file = "model.onnx"
loss = {{ name = "cross_entropy", output = "logits" }}

[optimizer]
name = "adam"
lr = 0.01

[schedule]
name = "linear"
warmup = 2
"""


def test_the_same_as_a_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    np.savez(tmp_path / "rows.npz", **ROWS)
    (tmp_path / "job.toml").write_text(TOML.format(data='"rows.npz"'))
    sent, files = read_job(tmp_path / "job.toml").prepare()
    assert (sent.split, sent.rounds, sent.model.parameters) == ("heads", 5, ("block.*",))
    assert sent.schedule == ScheduleSpec("linear", {"warmup": 2.0})
    assert set(files) == {sent.model.graph, sent.data.file}
    (tmp_path / "job.toml").write_text(
        TOML.format(data='{ inputs = "texts", labels = "marks", passes = ["m"] }')
    )
    sent, files = read_job(tmp_path / "job.toml").prepare()
    assert sent.data == SplitData("", "texts", "marks", ("m",))
    assert set(files) == {sent.model.graph}


@pytest.mark.parametrize("name", ["plan.json", "plans/mine", "plans.d/mine"])
def test_a_plans_file_is_beside_the_jobs_whatever_it_is_called(tmp_path, name):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    np.savez(tmp_path / "rows.npz", **ROWS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"a plan")
    text = TOML.format(data='"rows.npz"').replace('split = "heads"', f'split = "{name}"')
    (tmp_path / "job.toml").write_text(text)
    sent, _ = read_job(tmp_path / "job.toml").prepare()
    assert (sent.split, sent.plan) == ("", b"a plan")
    assert job(split=str(tmp_path / name)).prepare()[0].plan == b"a plan"


def test_groups_by_name_and_by_number(tmp_path):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    np.savez(tmp_path / "north.npz", **ROWS)
    np.savez(tmp_path / "south.npz", **{name: rows[:4] for name, rows in ROWS.items()})
    more = 'local_steps = 5\nstrategy = { name = "fedavgm", momentum = 0.5 }\n'
    for groups in ('groups = [["a", "b"], ["c", "d"]]', 'groups = 2\nnodes = ["a", "b", "c", "d"]'):
        text = more + groups + TOML.format(data='["north.npz", "south.npz"]')
        (tmp_path / "job.toml").write_text(text)
        sent, files = read_job(tmp_path / "job.toml").prepare()
        assert [group.nodes for group in sent.groups] == [("a", "b"), ("c", "d")]
        assert [len(read_safetensors(files[group.file])["tokens"]) for group in sent.groups] == [6, 4]
        assert (sent.nodes, sent.data, sent.local_steps) == ((), SplitData(), 5)
        assert sent.strategy == StrategySpec("fedavgm", {"momentum": 0.5})
        request = START_RUN.request.decode(START_RUN.request.encode(StartRunRequest(split=sent)))
        assert request.any_job == sent
    own = job(data=SplitData(inputs="texts", labels="marks"), groups=[["a"], ["b"]]).prepare()[0]
    assert own.data == SplitData("", "texts", "marks")
    assert [group.file for group in own.groups] == ["", ""]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"groups": 2}, "groups is 2 and nodes names 0"),
        ({"groups": 2, "nodes": ("a", "b", "c")}, "groups is 2 and nodes names 3"),
        ({"groups": True}, "groups is True; give a number, or a list"),
        ({"groups": [["a"], []]}, "groups, number 1, names no node"),
        ({"groups": [["a"], ["a"]]}, "groups names 'a' twice"),
        ({"groups": [["a"], ["b"]], "nodes": ("c",)}, "nodes and groups name nodes"),
        ({"groups": [["a"], ["b"]]}, "there are 2 groups: give a list of one file a group"),
        ({"groups": [["a"], ["b"]], "data": [ROWS]}, "there are 2 groups: give a list of one file a group"),
        (
            {"groups": [["a"]], "data": [SplitData(inputs="x", labels="y")]},
            "datasets on nodes are named once",
        ),
        ({"local_steps": 0}, "local_steps is 0"),
    ],
)
def test_what_cannot_be_groups_is_refused(changed, said):
    with pytest.raises(InvalidArgument, match=said):
        job(**changed).prepare()


def test_steps_and_rounds_are_one_thing(tmp_path):
    (tmp_path / "job.toml").write_text("rounds = 3\n" + TOML.format(data='"rows.npz"'))
    with pytest.raises(InvalidArgument, match="steps is the same as rounds"):
        read_job(tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"batch": 5, "micro_batches": 2}, InvalidArgument, "equal pieces"),
        (
            {"data": {"tokens": ROWS["tokens"], "labels": ROWS["labels"][:3]}},
            InvalidTensor,
            "tokens 6, labels 3",
        ),
        ({"data": SplitData(inputs="texts")}, InvalidArgument, "data.labels"),
        ({"data": "nowhere.npz"}, InvalidArgument, "data: nowhere.npz cannot be read"),
        ({"data": "nowhere.safetensors"}, InvalidArgument, "data: nowhere.safetensors cannot be read"),
        ({"split": "plan.json"}, InvalidArgument, "layers, heads, tokens or batch, or a plan's file"),
        ({"split": Path("plan.json")}, InvalidArgument, "split is 'plan.json'"),
        ({"rounds": 0}, InvalidArgument, "rounds is 0"),
        ({"schedule": 3}, InvalidArgument, "schedule is 3"),
    ],
)
def test_what_cannot_be_such_a_job_is_refused_by_its_field(changed, error, said):
    with pytest.raises(error, match=said):
        job(**changed).prepare()
