"""Bad input, each with one clear error of the right class, and everything still serving after."""

from __future__ import annotations

import labs
import numpy as np
import pytest
from fleets import SPEC, command, queries, states, tokens, until
from test_exact import encoder

from edge_attention.core.errors import (
    AlreadyExists,
    EmptyContext,
    FailedPrecondition,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    PrivateTensor,
)
from edge_attention.jobs.job import Encoder, Head

KEYS, VALUES = tokens(600)
pytestmark = pytest.mark.usefixtures("serving")


@pytest.mark.parametrize(
    ("keys", "values", "said"),
    [
        (KEYS[:5, :1], VALUES[:5], "keys has shape"),
        (KEYS[:5, :, :8], VALUES[:5], "keys has shape"),
        (KEYS[:5], VALUES[:4], "values has shape"),
        (KEYS[:5, 0], VALUES[:5], "keys has shape"),
        (KEYS[:0], VALUES[:0], "append at least one"),
        (KEYS[:5].astype(np.complex64), VALUES[:5], "complex64"),
        (KEYS[:5].astype(str), VALUES[:5], "keys"),
        (np.concatenate([KEYS[:77], KEYS[77:] * np.float32(np.nan)]), VALUES, r"nan at \[77"),
        (KEYS[:5], np.full_like(VALUES[:5], np.inf), "inf at"),
    ],
)
def test_tokens_that_do_not_fit(context, keys, values, said):
    with pytest.raises(InvalidTensor, match=said):
        context.append(keys, values)
    assert context.describe().tokens == 0


@pytest.mark.parametrize(
    ("asked", "options", "error", "said"),
    [
        (queries(1)[..., :8], {}, InvalidTensor, "queries has shape"),
        (queries(1)[:, :2], {}, InvalidTensor, "queries has shape"),
        (queries(1)[0], {}, InvalidTensor, "queries has shape"),
        (queries(0), {}, InvalidTensor, "no queries"),
        (queries(1).astype(np.complex64), {}, InvalidTensor, "complex64"),
        (queries(1) * np.float32(np.nan), {}, InvalidTensor, "nan"),
        (queries(1), {"window": 0}, InvalidArgument, "window is 0"),
        (queries(1), {"window": -1}, InvalidArgument, "window is -1"),
        (queries(1), {"deadline": -1.0}, InvalidArgument, "deadline is -1"),
        (queries(1), {"deadline": 0.0}, InvalidArgument, "deadline is 0"),
        (queries(1), {"deadline": float("nan")}, InvalidArgument, "deadline is nan"),
        (queries(1), {"until": 0}, InvalidArgument, "until is 0"),
        (queries(1), {"scale": float("inf")}, InvalidArgument, "scale is inf"),
        (queries(1), {"encoding": "int4"}, InvalidArgument, "encoding is 'int4'"),
        (queries(2), {"positions": np.array([1])}, InvalidTensor, "positions has shape"),
        (queries(1), {"positions": np.array([-1]), "causal": True}, InvalidArgument, "position -1"),
    ],
)
def test_queries_that_do_not_fit(context, asked, options, error, said):
    context.append(KEYS, VALUES)
    with pytest.raises(error, match=said):
        context.attend(asked, **options)


def test_queries_whose_scores_overflow_are_answered_with_a_label(context):
    context.append(KEYS, VALUES)
    answer = context.attend(np.full((1, 4, 16), 3e38, np.float32), deadline=5.0)
    assert not answer.exact
    assert "lse" in answer.missing[0].reason or "out" in answer.missing[0].reason
    assert (answer.bound.error >= np.repeat(np.abs(VALUES).max(0), 2, axis=0)).all(), "nothing is known"


def test_contexts_that_cannot_be(client, context):
    for wrong, said in (
        ({"key_heads": 3}, "3 key heads do not divide 4"),
        ({"query_heads": 0}, "query_heads is 0"),
        ({"key_dim": 100_000}, "key_dim is 100000"),
        ({"replicas": -1}, "replicas is -1"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            client.create_context("wrong", **{**SPEC, **wrong})
    for name in ("", "a b", "../x", "x" * 65):
        with pytest.raises(
            InvalidArgument, match=r"is not a name|name is ''; it must be a string and not empty"
        ):
            client.create_context(name, **SPEC)
    with pytest.raises(AlreadyExists, match="drop it"):
        client.create_context(context.name, **SPEC)
    with pytest.raises(EmptyContext, match="append some first"):
        context.attend(queries(1))
    with pytest.raises(NotFound, match="no context 'nowhere'"):
        client.context("nowhere")


def test_a_dropped_context_is_not_found(client):
    gone = client.create_context("gone", **SPEC)
    gone.append(KEYS, VALUES)
    gone.drop()
    for call in (
        gone.drop,
        gone.describe,
        lambda: gone.attend(queries(1)),
        lambda: gone.append(KEYS, VALUES),
    ):
        with pytest.raises(NotFound, match="no context 'gone'"):
            call()
    until(lambda: not any(n.memory for n in client.nodes() if n.name in ("a", "b")), "the tokens' end")


def test_tokens_for_a_node_that_is_not_there(context):
    with pytest.raises(NotFound, match="no node 'z'; nodes seen: a, b"):
        context.append(KEYS, VALUES, node="z")
    context.append(KEYS[:1], VALUES[:1])
    assert context.describe().tokens == 1


def test_a_request_to_return_what_is_private_names_tensor_digest_and_flag(context):
    with pytest.raises(PrivateTensor, match=r"node 'b': task/key_norm.*graph [0-9a-f]{64}.*--allow-release"):
        context.append_dataset("b", "rows", encoder(), {"x": "x"})
    assert context.describe().tokens == 0


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"node": "z"}, NotFound, "no node 'z'"),
        ({"dataset": "z"}, NotFound, "has no dataset 'z'; it has: rows"),
        ({"inputs": {"x": "z"}}, NotFound, "has no column 'z'"),
        ({"inputs": {"z": "x"}}, InvalidArgument, "input 'x' is not bound"),
        ({"inputs": {"x": "x", "z": "x"}}, InvalidArgument, "has no input z"),
        ({"model": b"this is not ONNX"}, InvalidGraph, "not an ONNX file"),
        ({"model": labs.MODELS["a"]}, InvalidArgument, "input 'x'"),
        ({"rows": range(0, 301)}, InvalidArgument, "300 rows"),
    ],
)
def test_dataset_appends_that_do_not_fit(context, changed, error, said):
    given = {
        "node": "a",
        "dataset": "rows",
        "model": encoder(),
        "inputs": {"x": "x"},
        "rows": None,
        **changed,
    }
    with pytest.raises(error, match=said):
        context.append_dataset(**given)
    assert context.describe().tokens == 0


def test_a_second_node_of_the_same_name_ends_with_a_clear_line(shared, client):
    second = command("edge_node.main", "--aggregator", shared.address, "--name", "a")
    assert second.returncode == 1
    assert "a node named 'a' is connected already" in second.stderr
    assert "--name" in second.stderr
    assert states(client)["a"] == "ready"


def test_a_full_node_says_so(fleet, serving):
    own = fleet()
    own.nodes("small", flags=("--memory-limit", "1MB"))
    with own.client() as client:
        context = client.create_context("c", **SPEC)
        many = tokens(20_000)
        with pytest.raises(OutOfMemory, match=r"the live nodes have room for .* --memory-limit"):
            context.append(*many)
        assert context.describe().tokens == 0
        # The aggregator learns of a node's memory by its heartbeats only.
        half = tokens(1_500)
        context.append(*half)

        def fill():
            for _ in range(5):
                context.append(*half)

        with pytest.raises(OutOfMemory, match=r"--memory-limit"):
            fill()
        assert context.describe().tokens % 1_500 == 0
        assert context.attend(queries(1)).exact


def job_of(nodes=("a", "b"), dataset="rows", column="x", **changed):
    model = labs.tabular_encoder(32, key_heads=1, key_dim=4, value_dim=4, width=4)
    encoders = tuple(Encoder(node, dataset, model, {"x": column}) for node in nodes)
    head = Head(nodes[0], "rows", labs.HEAD, {"y": "x"})
    return labs.job(3, encoders=encoders, **{"head": head, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"dataset": "z"}, NotFound, "node 'a' has no dataset 'z'.*--data z=FILE"),
        ({"column": "z"}, NotFound, "no column 'z'"),
        ({}, InvalidArgument, r"column 'x' of node 'a' is float32 \[32\] a row, input 'y' takes int64 \[\]"),
        ({"batch": 10**6}, InvalidArgument, "batch is 1000000"),
        ({"queries": np.zeros((2, 3, 4), np.float32)}, InvalidGraph, "fused has shape"),
        ({"queries": np.full((2, 2, 4), np.nan, np.float32)}, InvalidTensor, "nan"),
        ({"head": Head("a", "rows", b"junk", {"y": "x"})}, InvalidGraph, "head"),
        ({"patience_seconds": float("inf")}, InvalidArgument, "patience_seconds is inf"),
    ],
)
def test_jobs_that_do_not_fit(client, changed, error, said):
    with pytest.raises(error, match=said):
        client.train(job_of(**changed))
    assert client.runs() == [] or all(run.state.value != "running" for run in client.runs())


def test_runs_and_versions_that_are_not_there(client):
    with pytest.raises(NotFound, match="no run 'nothing'"):
        client.run("nothing")


@pytest.mark.parametrize("wrong", ["none", "twice", "others"])
def test_ids_that_do_not_align(fleet, tmp_path, wrong):
    own = fleet("--lease", "3")
    files = labs.write(tmp_path)
    ids = {"twice": ["P1", "P1"] * 30, "others": [f"Q{i}" for i in range(60)]}.get(wrong)
    np.savez(files["b"]["x"], x=labs.X["b"], **({} if ids is None else {"id": np.array(ids)}))
    with own.client() as client:
        planned = client.plan(labs.job())
        if wrong == "twice":
            node = command(
                "edge_node.main", "--aggregator", own.address, "--name", "b", "--data", f"x={files['b']['x']}"
            )
            assert node.returncode == 2
            assert "'P1'" in node.stderr
            return
        for lab in "abc":
            released = labs.releases(client, lab, planned)
            own.start_node(lab, "--threads", "1", data=files[lab], allow_release=released, wait=False)
        for lab in "abc":
            own.wait_ready(lab)
        if wrong == "none":
            with pytest.raises(InvalidArgument, match=r"dataset 'x' of node 'b' has no ids"):
                client.train(labs.job())
        else:
            with pytest.raises(FailedPrecondition, match=r"no sample is on all nodes.*b/x: 60 rows"):
                list(client.train(labs.job()))
        assert set(states(client).values()) == {"ready"}
