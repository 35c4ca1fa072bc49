"""The client against an aggregator by the definitions: division of calls, joining, errors, reconnection."""

import asyncio
import hashlib
import re
import subprocess
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake import Fake, attention, serving

import edge_attention
from edge_attention import AsyncClient, Client, Encoder, FusionJob, Head, QueriesSpec
from edge_attention.client import contexts
from edge_attention.client.results import InexactAnswer
from edge_attention.client.sync import Context
from edge_attention.core import errors
from edge_attention.core.errors import (
    EmptyContext,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    Unavailable,
)
from edge_attention.core.messages.training import OptimizerSpec, RunState

SIZES = {"query_heads": 4, "key_heads": 2, "key_dim": 8, "value_dim": 6}


def arrays(tokens, queries, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (tokens, 2, 8), (tokens, 2, 6), (queries, 4, 8)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


@pytest.fixture
def filled(client):
    keys, values, queries = arrays(1000, 50)
    context = client.create_context("memory", **SIZES)
    context.append(keys, values)
    return context, keys, values, queries


def reference(keys, values, queries, positions=None):
    at = np.arange(len(keys))
    seen = np.ones((len(queries), len(keys)), bool) if positions is None else at <= positions[:, None]
    return attention(queries, keys, values, seen, 8**-0.5)


def test_attend_in_one_call(filled, fake):
    context, keys, values, queries = filled
    answer = context.attend(queries)
    out, lse, _ = reference(keys, values, queries)
    np.testing.assert_allclose(answer.out, out, atol=1e-5)
    np.testing.assert_allclose(answer.lse, lse, atol=1e-5)
    assert answer.exact
    assert answer.coverage == (range(1000),)
    assert answer.bound is None
    assert answer.weights is None
    np.testing.assert_allclose(sum(answer.mass.values()), 1, atol=1e-5)
    assert [call for call in fake.calls if call[0] in ("attend", "describe")] == [("attend", 50, None, None)]


@pytest.mark.parametrize("causal", [False, True])
def test_a_large_batch_is_divided_and_joined(filled, fake, monkeypatch, causal):
    context, keys, values, queries = filled
    monkeypatch.setattr(contexts, "WEIGHTS_REPLY", 300_000)  # 18 queries
    answer = context.attend(queries, causal=causal, weights=True)
    calls = [call for call in fake.calls if call[0] == "attend"]
    assert len(calls) > 2
    assert {until for _, _, until, _ in calls} == {1000}
    positions = np.arange(950, 1000) if causal else None
    out, lse, weights = reference(keys, values, queries, positions)
    np.testing.assert_allclose(answer.out, out, atol=1e-5)
    np.testing.assert_allclose(answer.lse, lse, atol=1e-5)
    np.testing.assert_allclose(answer.weights, weights, atol=1e-6)
    assert answer.weights.shape == (50, 4, 1000)
    np.testing.assert_allclose(answer.mass["a"], weights[..., :500].sum(-1), atol=1e-5)
    np.testing.assert_allclose(sum(answer.mass.values()), 1, atol=1e-5)
    assert [shard.shard for shard in answer.shards] == ["s0", "s1"]


def test_a_batch_past_a_message_is_divided_without_weights(client, fake):
    keys, values, queries = arrays(20, 20_000)
    context = client.create_context("memory", **SIZES)
    context.append(keys, values)
    with pytest.raises(InvalidArgument, match="20000 queries do not fit at the end of 20 tokens"):
        context.attend(queries, causal=True)
    answer = context.attend(queries)
    assert len([call for call in fake.calls if call[0] == "attend"]) > 1
    np.testing.assert_allclose(answer.out, reference(keys, values, queries)[0], atol=1e-5)


def test_a_shard_that_some_parts_do_not_see_has_no_mass_there(filled, monkeypatch):
    context, _, _, queries = filled
    monkeypatch.setattr(contexts, "WEIGHTS_REPLY", 300_000)
    positions = np.where(np.arange(50) < 25, 400, 900)
    answer = context.attend(queries, causal=True, positions=positions, weights=True)
    assert not answer.mass["b"][:25].any()
    assert (answer.mass["b"][25:] > 0).all()
    assert answer.coverage == (range(1000),)


def test_a_divided_answer_is_labelled_if_one_part_is(filled, fake, monkeypatch):
    context, _, _, queries = filled
    monkeypatch.setattr(contexts, "WEIGHTS_REPLY", 300_000)
    fake.missing = range(600, 700)
    positions = np.where(np.arange(50) < 25, 400, 900)
    answer = context.attend(queries, causal=True, positions=positions, weights=True)
    assert not answer.exact
    assert answer.coverage == (range(600), range(700, 1000))
    assert [gap.shard for gap in answer.missing] == ["s1"]
    assert answer.bound.error.shape == answer.out.shape
    assert not answer.bound.error[0].any()
    assert (answer.bound.error[-1] == 1).all()


def test_the_deadline_reaches_the_server(filled, fake):
    context, _, _, queries = filled
    context.attend(queries, deadline=100.0)
    (_, _, _, deadline) = fake.calls[-1]
    assert 0 < deadline <= 100.0


def test_a_server_that_does_not_answer_is_not_waited_for(filled, fake, monkeypatch):
    context, _, _, queries = filled

    async def never(request, context):
        await asyncio.sleep(30)

    monkeypatch.setattr(contexts, "DEADLINE_MARGIN", 0.2)
    with serving(fake_with(never)) as address, Client(address) as other:
        slow = contexts.AsyncContext(other._client.connection, context.info)
        with pytest.raises(edge_attention.DeadlineExceeded, match="did not answer in time"):
            Context(other, slow).attend(queries, deadline=0.1)


def fake_with(attend):
    fake = Fake()
    fake.handlers = {
        method: attend if method.name == "Attend" else handler for method, handler in fake.handlers.items()
    }
    return fake


def test_long_appends_are_cut_and_nothing_is_lost(client, fake, monkeypatch):
    keys, values, queries = arrays(1000, 3)
    monkeypatch.setattr(contexts, "APPEND_CALL", 112 * 300)  # a token takes 112 bytes
    monkeypatch.setattr(contexts, "APPEND_MESSAGE", 112 * 100)
    seen = []
    context = client.create_context("memory", **SIZES)
    appended = context.append(keys, values, node="a", progress=lambda *done: seen.append(done))
    assert appended.ranges == (range(1000),)
    assert appended.tokens == 1000
    assert len(appended.segments) == 4
    assert seen == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]
    assert [call for call in fake.calls if call[0] == "append"] == [("append", "a", 3)] * 3 + [
        ("append", "a", 1)
    ]
    np.testing.assert_allclose(context.attend(queries).out, reference(keys, values, queries)[0], atol=1e-5)


def test_a_context_knows_of_its_own_appends(client):
    context = client.create_context("c", query_heads=4, key_heads=2, key_dim=8)
    assert context.spec.value_dim == 8
    tokens = np.ones((10, 2, 8), np.float32)
    for appends in (1, 2):
        context.append(tokens, tokens)
        assert (context.tokens, len(context.segments)) == (10 * appends, appends)
        assert f"{10 * appends} tokens in {appends} segment" in repr(context)


def test_an_async_client_says_whose_it_is(address):
    assert repr(AsyncClient(address)) == f"<AsyncClient of {address}>"


def test_heads_before_tokens_are_told_of_the_layout(client):
    context = client.create_context("c", query_heads=4, key_heads=2, key_dim=8)
    keys = np.ones((2, 10, 8), np.float32)
    with pytest.raises(
        InvalidTensor, match=r'must be \[tokens, 2, 8\]\. Heads before tokens .* layout="torch"'
    ):
        context.append(keys, keys)
    assert context.append(keys, keys, layout="torch").tokens == 10
    with pytest.raises(InvalidTensor, match=r'Heads before queries are PyTorch\'s order: layout="torch"'):
        context.attend(np.ones((4, 3, 8), np.float32))


def test_a_failed_append_says_what_was_stored(client, fake, monkeypatch):
    keys, values, _ = arrays(1000, 1)
    monkeypatch.setattr(contexts, "APPEND_CALL", 112 * 300)
    fake.fail_append_after = 600
    context = client.create_context("memory", **SIZES)
    with pytest.raises(Unavailable, match="first 600 of 1,000 tokens were stored"):
        context.append(keys, values)


def test_layout_and_dtype_are_no_matter_but_everything_else_is(filled, fake):
    context, keys, values, queries = filled
    turned = np.asfortranarray(queries)
    at = np.arange(950, 1000)
    out = context.attend(queries, positions=at, causal=True).out
    for given in (turned, queries.tolist(), queries.astype(np.float64), queries.astype(">f4")):
        for positions in (at, at.tolist(), at.astype(np.int32), at.astype(np.float64)):
            found = context.attend(given, positions=positions, causal=True).out
            np.testing.assert_array_equal(found, out)
    calls = len(fake.calls)
    for wrong, match in [
        (queries.astype(np.complex64), "no plain numbers"),
        (queries[:, :3], r"must be \[queries, 4, 8\]"),
        (queries[0], r"as one of queries; give queries\[None\]"),
        (None, "queries: NoneType holds no plain numbers"),
        (np.where(np.arange(8) == 3, np.nan, queries).astype(np.float32), "finite"),
    ]:
        with pytest.raises(InvalidTensor, match=match):
            context.attend(wrong)
    with pytest.raises(InvalidTensor, match=r"positions holds 0\.5"):
        context.attend(queries, positions=np.full(50, 0.5))
    for deadline in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="deadline"):
            context.attend(queries, deadline=deadline)
    with pytest.raises(InvalidTensor, match=r"values has shape \[999, 2, 6\]"):
        context.append(keys, values[1:])
    with pytest.raises(InvalidTensor, match="at least one"):
        context.append(keys[:0], values[:0])
    assert len(fake.calls) == calls  # refused before anything was sent


def test_errors_are_of_the_class_the_server_named(client):
    with pytest.raises(NotFound, match="no context 'nope'"):
        client.context("nope")
    empty = client.create_context("empty", **SIZES)
    with pytest.raises(EmptyContext):
        empty.attend(arrays(1, 1)[2])
    with pytest.raises(InvalidArgument, match="do not divide"):
        client.create_context("c", query_heads=3, key_heads=2, key_dim=8, value_dim=8)
    with pytest.raises(InvalidArgument, match="key_dim is -1"):
        client.create_context("c", query_heads=2, key_heads=2, key_dim=-1, value_dim=8)


def test_nobody_listens():
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be"):
        client.nodes()
    for address in ("localhost", ":1", "host:port", "host:99999", "host:\N{SUPERSCRIPT TWO}"):
        with pytest.raises(InvalidArgument, match="HOST:PORT"):
            Client(address)


def test_what_is_no_argument_of_that_kind(client, filled):
    context, *_, queries = filled
    for wrong, said in [
        (lambda: Client(50051), "the address is 50051"),
        (lambda: Client("h:1", timeout="1"), "timeout is '1'"),
        (lambda: context.attend(queries, deadline="1"), "deadline is '1'"),
        (lambda: context.attend(queries, scale=float("nan")), "scale is nan"),
        (lambda: context.attend(queries, window=1.5), "window is 1.5"),
        (lambda: context.attend(queries, window=2**64), "window is 18446744073709551616"),
        # As the server has it: to attend to no position is no question.
        (lambda: context.attend(queries, until=0), "until is 0"),
        (lambda: client.train(None), "the job is NoneType"),
    ]:
        with pytest.raises(InvalidArgument, match=said):
            wrong()


def test_a_model_the_node_refuses_is_named(client, fake, tmp_path, monkeypatch):
    async def refuse(request, context):
        raise edge_attention.InvalidGraph("the graph is no ONNX")

    fake.handlers = {m: refuse if m.name == "AppendDataset" else h for m, h in fake.handlers.items()}
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    with serving(fake) as address, Client(address) as other:
        context = other.create_context("memory", **SIZES)
        with pytest.raises(edge_attention.InvalidGraph, match=r"m\.onnx: the graph is no ONNX"):
            context.append_dataset("a", "d", tmp_path / "m.onnx", {})


def test_a_context_is_the_same_thing_created_found_or_listed(filled, client):
    context, _keys, _values, queries = filled
    made = client.create_context("memory", **SIZES, exist_ok=True)
    (listed,) = client.contexts()
    for one in (made, listed, client.context("memory")):
        assert (one.name, one.tokens, one.spec) == ("memory", 1000, context.spec)
        np.testing.assert_array_equal(one.attend(queries).out, context.attend(queries).out)
    assert repr(listed).startswith("<Context 'memory': 1,000 tokens in ")
    with pytest.raises(edge_attention.AlreadyExists):
        client.create_context("memory", **SIZES)
    other = {**SIZES, "key_dim": 16}
    with pytest.raises(edge_attention.AlreadyExists, match=r"key_dim is 8, not 16.*Use it as it is"):
        client.create_context("memory", **other, exist_ok=True)


def test_an_exact_answer_can_be_required(filled, fake):
    context, *_, queries = filled
    assert context.attend(queries, require_exact=True).exact
    fake.missing = range(600, 700)
    with pytest.raises(InexactAnswer, match=r"it lacks 100 tokens of b .node 'b' is lost.*longer") as raised:
        context.attend(queries, require_exact=True)
    assert raised.value.answer.missing[0].count == 100
    assert isinstance(raised.value, edge_attention.Unavailable)


def test_what_comes_back_is_shown_in_a_few_lines(filled, fake):
    context, keys, values, queries = filled
    lines = repr(context.attend(queries)).splitlines()
    assert lines[0] == "Answer: exact, out float32 [50, 4, 6], lse float32 [50, 4]"
    assert lines[1] == "  stands on 1,000 of 1,000 tokens: 0 to 999"
    assert lines[2].startswith("  attention by node: a ")
    fake.missing = range(600, 700)
    shown = repr(context.attend(queries))
    assert "partial" in shown
    assert "missing: 100 tokens of b (node 'b' is lost)" in shown
    assert len(shown.splitlines()) <= 7
    assert repr(context.append(keys, values)).startswith("Appended: 1,000 tokens as positions 1,000 to 1,999")


def test_an_error_shows_the_callers_line_and_no_event_loop(client):
    with pytest.raises(edge_attention.NotFound) as raised:
        client.context("nobody")
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert [Path(frame.filename).name for frame in frames] == ["test_client.py", "sync.py", "sync.py"]
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://127.0.0.1:50051", "127.0.0.1:50051"),
        ("https://box.local/", "box.local:50051"),
        ("grpc://[::1]:5", "[::1]:5"),
        ("http://", "127.0.0.1:50051"),
    ],
)
def test_a_web_address_is_told_what_an_address_looks_like(given, meant):
    with pytest.raises(InvalidArgument, match=re.escape(f"is HOST:PORT, as '{meant}'")):
        Client(given)


def test_contexts_and_nodes(client):
    context = client.create_context("memory", **SIZES)
    assert [c.spec.name for c in client.contexts()] == ["memory"]
    assert client.context("memory").spec == context.spec
    assert context.describe().tokens == 0
    context.drop()
    assert client.contexts() == []
    assert [node.name for node in client.nodes()] == ["a"]


def test_a_model_is_uploaded_once(client, fake, tmp_path):
    model = bytes(range(256)) * 10_000  # 2.5 MiB: three chunks
    (tmp_path / "model.onnx").write_bytes(model)
    context = client.create_context("memory", **SIZES)
    context.append_dataset("a", "d", tmp_path / "model.onnx", {"x": "column"}, rows=range(2, 5))
    digest = hashlib.sha256(model).hexdigest()
    assert bytes(fake.blobs[digest]) == model
    assert [size for name, *size in fake.calls if name == "upload"] == [
        [0],
        [2**20],
        [2**20],
        [len(model) - 2 * 2**20],
    ]
    (_, request) = fake.calls[-1]
    assert (request.graph, request.rows, request.inputs) == (digest, range(2, 5), {"x": "column"})
    context.append_dataset("a", "d", model, {"x": "column"})
    assert [size for name, *size in fake.calls if name == "upload"][4:] == [[0]]
    assert fake.calls[-1][1].rows is None


def test_an_upload_goes_on_where_it_was_cut(client, fake):
    model = bytes(range(256)) * 8192
    fake.blobs[hashlib.sha256(model).hexdigest()] = bytearray(model[: 2**20])
    client.create_context("c", **SIZES).append_dataset("a", "d", model, {})
    assert [size for name, *size in fake.calls if name == "upload"] == [[0], [2**20]]


JOB = FusionJob(
    name="job",
    encoders=(Encoder("a", "d", b"model-a", {"x": "f"}), Encoder("b", "d", b"model-b", {"x": "f"})),
    head=Head("a", "d", b"model-h", {"label": "y"}, metrics=("correct",)),
    queries=QueriesSpec(2, 4, 8),
    optimizer="adam",
    rounds=5,
    batch=8,
)


def test_training_yields_every_round_once_over_restarts(client, fake):
    fake.cut = [2, 0, 1]
    run = client.train(JOB)
    assert [r.number for r in run] == [1, 2, 3, 4, 5]
    assert [call[1] for call in fake.calls if call[0] == "watch"] == [0, 2, 2, 3]
    assert run.info.state is RunState.FINISHED
    sent = next(call[1] for call in fake.calls if call[0] == "start")
    assert sent.optimizer == OptimizerSpec("adam")
    np.testing.assert_array_equal(sent.queries, QueriesSpec(2, 4, 8).draw())
    assert sent.head.metrics == ("correct",)
    assert [r.number for r in run] == [1, 2, 3, 4, 5]


def test_what_a_run_waits_for_is_said(client):
    run = client.train(JOB)
    heard = [event.waiting for event in run.events() if hasattr(event, "waiting")]
    assert heard[0] == "node 'b', until 12:00:00"
    assert run.waiting == ""


def test_an_aggregator_that_stays_away_is_given_up(fake):
    with serving(fake) as address:
        client = Client(address, patience=0.3)
        run = client.train(JOB)
    with client, pytest.raises(Unavailable, match=r"tried for 0\.3 s"):
        for _ in run:
            pass
    assert "until" in run.waiting


def test_a_failed_run_raises_after_its_rounds(client, fake):
    fake.end = replace(fake.end, state=RunState.FAILED, detail="node 'b' stayed away", round=2)
    rounds = iter(client.train(JOB))
    assert [next(rounds).number, next(rounds).number] == [1, 2]
    with pytest.raises(FailedPrecondition, match="after round 2: node 'b' stayed away"):
        next(rounds)


def test_runs_plan_stop(client):
    assert [run.id for run in client.runs()] == ["r1"]
    assert client.run("job").stop().state is RunState.STOPPED
    assert [graph.release for graph in client.plan(JOB)] == ["fusion", "", "sha256:d3"]
    with pytest.raises(NotFound, match="no run 'x'"):
        client.run("x")


def test_parameters(client, fake, tmp_path):
    from safetensors.numpy import load_file

    run = client.run("r1")
    parameters = run.parameters()
    assert parameters.version == 5
    assert list(parameters) == ["w", "b"]
    np.testing.assert_array_equal(parameters["w"], fake.arrays["w"])
    assert run.save_parameters(tmp_path / "p.safetensors", version=3) == 3
    np.testing.assert_array_equal(load_file(tmp_path / "p.safetensors")["w"], fake.arrays["w"])
    with pytest.raises(InvalidArgument, match="cannot be written"):
        run.save_parameters(tmp_path / "no" / "p.safetensors")
    with pytest.raises(InvalidArgument, match="version is -1"):
        run.parameters(-1)


def test_several_threads_share_a_client(filled):
    context, keys, values, queries = filled
    out = reference(keys, values, queries)[0]
    failed = []

    def work(number):
        try:
            for i in range(5):
                part = slice(number * 5 + i, number * 5 + i + 3)
                np.testing.assert_allclose(context.attend(queries[part]).out, out[part], atol=1e-5)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_closing_leaves_nothing_running(address):
    def ours():
        return [t for t in threading.enumerate() if t.name == "edge-attention-client"]

    with Client(address) as one:
        with Client(address) as two:
            two.nodes()
            assert len(ours()) == 1
        one.nodes()
        with pytest.raises(FailedPrecondition, match="closed"):
            two.nodes()
        run = iter(one.train(JOB))
        assert next(run).number == 1
    assert not ours()
    with pytest.raises(FailedPrecondition, match="closed"):
        next(run)
    with pytest.raises(FailedPrecondition, match="closed"):
        one.nodes()
    one.close()  # again is nothing


def test_a_callback_that_calls_the_client_is_refused(client):
    keys, values, _ = arrays(10, 1)
    context = client.create_context("memory", **SIZES)
    with pytest.raises(FailedPrecondition, match="callback"):
        context.append(keys, values, progress=lambda *_: context.describe())


def test_asyncio(fake):
    async def main(address):
        client = AsyncClient(address)  # made before its loop is used
        async with client:
            context = await client.create_context("memory", **SIZES)
            keys, values, queries = arrays(100, 4)
            await context.append(keys, values)
            answers = await asyncio.gather(*(context.attend(queries) for _ in range(4)))
            run = await client.train(JOB)
            rounds = [r.number async for r in run]
            return answers, rounds, (await run.parameters()).version, reference(keys, values, queries)[0]

    with serving(fake) as address:
        answers, rounds, version, out = asyncio.run(main(address))
    for answer in answers:
        np.testing.assert_allclose(answer.out, out, atol=1e-5)
    assert rounds == [1, 2, 3, 4, 5]
    assert version == 5


def test_importing_the_package_is_light():
    code = (
        "import sys, edge_attention; heavy = {'numpy', 'grpc', 'onnx', 'rich'} & set(sys.modules); "
        "assert not heavy, heavy; from edge_attention import Client, NotFound, FusionJob; "
        "heavy = {'onnx', 'rich', 'onnxruntime', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"Client", "NotFound", "Encoder"} <= set(dir(edge_attention))
    names: dict = {}
    exec("from edge_attention import *", names)
    assert {*edge_attention._HOME, *errors.__all__} - {"by_name"} == set(names) - {"__builtins__"}
    with pytest.raises(AttributeError):
        edge_attention.nothing  # noqa: B018
