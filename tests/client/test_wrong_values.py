"""Every field of every class a user makes, given what it is not for: an error that names the field."""

import dataclasses
import enum
import math

import numpy as np
import pytest

import edge_attention
from edge_attention import (
    ConsensusSpec,
    EdgeAttentionError,
    Encoder,
    EncodingSpec,
    FederatedJob,
    FederatedModel,
    FusionJob,
    Head,
    InvalidArgument,
    JobColumn,
    LocalSpec,
    LossSpec,
    NewHead,
    OptimizerSpec,
    PushSpec,
    QueriesSpec,
    ScheduleSpec,
    SelectionSpec,
    SplitData,
    SplitJob,
    StopSpec,
    StrategySpec,
)
from edge_attention.core.messages import training as jobs
from edge_attention.wire.services import START_RUN


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no text of this")


class Colour(enum.Enum):
    RED = "red"


WRONG = [
    None, True, 0, -1, 1.5, math.nan, math.inf, 10**400, -(10**20), 1j,
    "", "x", "leave-out", "\ud800", "a\0b", b"", b"x", bytearray(b"x"),
    [], [None], [["x"]], ["x", "x"], (), (1,), {}, {"a": None}, {1: 2}, {"\ud800": "x"}, {"a": math.nan},
    set(), {"x"}, range(3), object(), Unshowable(), Colour.RED, InvalidArgument, len,
    np.float32(math.nan), np.int64(-5), np.zeros(3), np.zeros(()), np.array(["a"]), np.array([None]),
    OptimizerSpec("sgd"), LossSpec("mse"), EncodingSpec(),
]  # fmt: skip

FEDERATED = FederatedJob(
    name="digits",
    model=FederatedModel(
        b"model", LossSpec("cross_entropy", "logits", "y"), inputs={"x": "pixels"}, head=NewHead("h", 3)
    ),
    dataset="images",
    strategy=StrategySpec("fedavg"),
    local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=4, steps=1),
    rounds=1,
    update=EncodingSpec("float16"),
    push=PushSpec(),
    selection=SelectionSpec(),
    consensus=ConsensusSpec(),
    stop=StopSpec(),
    columns={"digit": JobColumn(("zero", "one"), one_hot=True)},
)
FUSION = FusionJob(
    name="patients",
    encoders=(Encoder("a", "patients", b"encoder", {"x": "features"}),),
    head=Head("a", "patients", b"head", {"y": "label"}),
    queries=QueriesSpec(1, 2, 4),
    optimizer=OptimizerSpec("adam"),
    rounds=1,
    batch=4,
)
SPLIT = SplitJob(
    name="reviews",
    model=FederatedModel(b"model", LossSpec("cross_entropy", "logits", "y"), inputs={"x": "words"}),
    split="layers",
    data=SplitData(inputs="reviews", labels="stars", passes=("mask",)),
    optimizer=OptimizerSpec("adamw", {"lr": 0.1}),
    rounds=1,
    batch=4,
    schedule=ScheduleSpec("linear", {"warmup": 1}),
    nodes=("a", "b"),
    micro_batches=2,
    columns={"stars": JobColumn(("one", "two"), one_hot=True)},
)
FIELDS = {FusionJob: "job", FederatedJob: "federated", SplitJob: "split"}
"""The request's field for each kind of job."""


def places(value, path=()):
    """Every field of a job and of its parts: its names from the job down."""
    for field in dataclasses.fields(value):
        here = (*path, field.name)
        yield here
        given = getattr(value, field.name)
        if isinstance(given, tuple) and given and dataclasses.is_dataclass(given[0]):
            yield from places(given[0], (*here, 0))
        elif isinstance(given, dict) and given and dataclasses.is_dataclass(next(iter(given.values()))):
            yield from places(next(iter(given.values())), (*here, next(iter(given))))
        elif dataclasses.is_dataclass(given):
            yield from places(given, here)


def changed(value, path, wrong):
    """`value` with what is at `path` in it replaced."""
    name, *rest = path
    if isinstance(value, tuple):
        return (changed(value[0], rest, wrong), *value[1:])
    if isinstance(value, dict):
        return value | {name: changed(value[name], rest, wrong)}
    return dataclasses.replace(value, **{name: changed(getattr(value, name), rest, wrong) if rest else wrong})


CASES = [(job, path) for job in (FEDERATED, FUSION, SPLIT) for path in places(job)]


def travels(job):
    prepared, _ = job.prepare()
    START_RUN.request.encode(jobs.StartRunRequest(**{FIELDS[type(job)]: prepared}))


def test_the_jobs_are_right_and_every_class_is_among_their_parts():
    FEDERATED.prepare()
    FUSION.prepare()
    SPLIT.prepare()
    parts = {
        cls
        for name in edge_attention.__all__
        if dataclasses.is_dataclass(cls := getattr(edge_attention, name))
    } - {edge_attention.Answer}
    seen = set()

    def see(value):
        if isinstance(value, tuple | dict):
            any(see(each) for each in (value.values() if isinstance(value, dict) else value))
        elif dataclasses.is_dataclass(value):
            seen.add(type(value))
            any(see(getattr(value, field.name)) for field in dataclasses.fields(value))

    see(FEDERATED)
    see(FUSION)
    see(SPLIT)
    assert parts <= seen


@pytest.mark.parametrize(
    ("job", "path"), CASES, ids=[f"{type(j).__name__}.{'.'.join(map(str, p))}" for j, p in CASES]
)
def test_a_wrong_value_raises_the_catalogue_s_error_and_names_the_field(job, path):
    refused = []
    for wrong in WRONG:
        try:
            travels(changed(job, path, wrong))
        except EdgeAttentionError as error:
            refused.append(error.message)
    # Of the model's file the error names the model, of an option the part that has it.
    names = {str(path[-1])} | ({"a model", "the model"} if path[-1] in ("file", "model") else set())
    names |= {str(path[-2])} if path[-1] == "options" else set()
    for message in refused:
        assert len(message) < 1000
        assert "cannot be sent" not in message  # what the encoding says of what nobody checked
        assert any(name in message for name in names), message
    assert len(refused) > len(WRONG) / 4


@pytest.mark.parametrize(
    "cls",
    [
        JobColumn,
        NewHead,
        type(FEDERATED),
        type(FUSION),
        SplitJob,
        SplitData,
        ScheduleSpec,
        FederatedModel,
        LocalSpec,
        LossSpec,
        OptimizerSpec,
        StrategySpec,
        EncodingSpec,
        PushSpec,
        SelectionSpec,
        ConsensusSpec,
        StopSpec,
        Encoder,
        Head,
        QueriesSpec,
    ],
)
def test_names_of_fields_that_are_unknown_missing_or_given_twice(cls):
    fields = dataclasses.fields(cls)
    first = fields[0].name
    with pytest.raises(
        InvalidArgument, match=f"{cls.__name__} has no field '{first}z'; it has .*did you mean '{first}'"
    ):
        cls(**{f"{first}z": 1})
    with pytest.raises(InvalidArgument, match="has no field 'qqq'; it has .*" + first):
        cls(qqq=1)
    with pytest.raises(InvalidArgument, match=f"'{first}' twice"):
        cls("x", **{first: "x"})
    with pytest.raises(InvalidArgument, match=f"has {len(fields)} fields"):
        cls(*["x"] * (len(fields) + 1))
    if fields[0].default is fields[0].default_factory is dataclasses.MISSING:
        with pytest.raises(InvalidArgument, match=f"{cls.__name__} needs '{first}'"):
            cls()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (dataclasses.replace(FUSION, missing="leave_oot"), "did you mean 'leave_out'"),
        (dataclasses.replace(FEDERATED, weighting="sample"), "did you mean 'samples'"),
        (changed(FEDERATED, ("model", "loss"), "cross-entropy"), "did you mean 'cross_entropy'"),
        (
            dataclasses.replace(FEDERATED, local={"batch": 3}),
            r"local is {'batch': 3}; give a LocalSpec, as Local",
        ),
        (dataclasses.replace(FEDERATED, selection={"quorum": 0.5}), "give a SelectionSpec, as SelectionSpec"),
        (dataclasses.replace(FEDERATED, stop=5), "stop is 5; give a StopSpec"),
        (dataclasses.replace(FEDERATED, push="x"), "push is 'x'; give a PushSpec"),
        (dataclasses.replace(FEDERATED, consensus="x"), "consensus is 'x'; give a ConsensusSpec"),
        (
            dataclasses.replace(FUSION, encoders=("a",)),
            r"encoders\[0\] is 'a'; give an Encoder",
        ),
        (dataclasses.replace(FUSION, optimizer=3), "optimizer is 3; give a name or an OptimizerSpec"),
    ],
)
def test_the_remedy_is_said(job, said):
    with pytest.raises(InvalidArgument, match=said):
        job.prepare()


def test_missing_is_given_as_in_a_file():
    for given, member in (
        ("leave_out", jobs.MissingSamples.LEAVE_OUT),
        ("attend", jobs.MissingSamples.ATTEND),
    ):
        prepared, _ = dataclasses.replace(FUSION, missing=given).prepare()
        assert prepared.missing is member
