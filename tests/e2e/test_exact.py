"""Exact, whatever the number of nodes and however the appends were cut."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading

import numpy as np
import pytest
from fleets import SPEC, exact, queries, tokens, truth
from onnx import TensorProto, helper

from edge_attention import PrivateTensor

COUNT = 20_000
KEYS, VALUES = tokens(COUNT)


def filled(client, name, cuts, **options):
    context = client.create_context(name, **SPEC, **options)
    for start, stop in itertools.pairwise([0, *cuts, COUNT]):
        context.append(KEYS[start:stop], VALUES[start:stop])
    return context


def test_any_number_of_nodes_and_any_cuts(fleet):
    """One fleet that grows: 1, 2, 3 and 5 nodes."""
    grown = fleet()
    asked = queries(5)
    cuts = {
        1: [],
        2: [7_000, 7_001, 19_980, *range(19_981, 20_000)],
        3: [1, 2, 3, 511, 512, 513, 1024, 9_999],
        5: sorted(np.random.default_rng(5).integers(1, COUNT, 12).tolist()),
    }
    with grown.client() as client:
        for number, (nodes, cut) in zip(["a", "b", "c", "de"], cuts.items(), strict=True):
            grown.nodes(*number)
            context = filled(client, f"of-{nodes}", cut)
            answer = context.attend(asked)
            exact(answer, asked, KEYS, VALUES)
            assert answer.coverage == (range(0, COUNT),)
            assert set(answer.mass) == set("abcde"[:nodes])
            np.testing.assert_allclose(sum(answer.mass.values()), 1, atol=1e-5)
            sizes = [node.memory for node in client.nodes()]
            assert len(sizes) == nodes
            context.drop()


@pytest.fixture(scope="module")
def long(client):
    """20,000 tokens over both nodes of the shared fleet."""
    context = filled(client, "long", [3_000, 12_345, 19_990, *range(19_991, 20_000)])
    yield context
    context.drop()


POSITIONS = np.array([0, 1, 511, 512, 9_999, 19_999], np.int64)
SEEN = np.arange(COUNT)[None]


@pytest.mark.parametrize("deadline", [None, 120.0])
@pytest.mark.parametrize("count", [1, 6, 40, 200])
def test_batches_of_queries(long, count, deadline):
    asked = queries(count)
    exact(long.attend(asked, deadline=deadline), asked, KEYS, VALUES)


@pytest.mark.parametrize("window", [None, 1, 700, 30_000])
@pytest.mark.parametrize("deadline", [None, 120.0])
def test_causal_and_windows_by_global_position(long, window, deadline):
    asked = queries(6)
    visible = POSITIONS[:, None] >= SEEN
    if window is not None:
        visible &= POSITIONS[:, None] - window < SEEN
    answer = long.attend(asked, causal=True, window=window, positions=POSITIONS, deadline=deadline)
    exact(answer, asked, KEYS, VALUES, visible)


def test_positions_default_to_the_end(long):
    asked = queries(4)
    visible = np.arange(COUNT - 4, COUNT)[:, None] >= SEEN
    exact(long.attend(asked, causal=True), asked, KEYS, VALUES, visible)


def test_scale_and_until(long):
    asked = queries(3)
    exact(long.attend(asked, scale=0.5), asked, KEYS, VALUES, scale=0.5)
    exact(long.attend(asked, until=777), asked, KEYS[:777], VALUES[:777])


def test_out_as_float16(long):
    asked = queries(40)
    answer = long.attend(asked, encoding="float16")
    exact(answer, asked, KEYS, VALUES, atol=1e-3)


def test_weights_are_those_of_the_whole(long):
    asked = queries(2)
    answer = long.attend(asked, weights=True)
    _, lse = truth(asked, KEYS, VALUES)
    scores = np.einsum("qhd,thd->qht", asked.astype(np.float64), np.repeat(KEYS, 2, axis=1)) / 4
    np.testing.assert_allclose(answer.weights, np.exp(scores - lse[..., None]), atol=1e-6)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (8, 8), (12, 3), (8, 1)])
def test_grouped_heads(client, heads, key_heads):
    spec = {"query_heads": heads, "key_heads": key_heads, "key_dim": 8, "value_dim": 24}
    keys, values = tokens(1_500, spec)
    context = client.create_context(f"heads-{heads}-{key_heads}", **spec)
    context.append(keys[:700], values[:700], node="a")
    context.append(keys[700:], values[700:], node="b")
    for count in (1, 20):
        asked = queries(count, spec)
        exact(context.attend(asked), asked, keys, values)
    context.drop()


def test_two_replicas_are_one_context(client):
    context = client.create_context("twice", **SPEC, replicas=2)
    context.append(KEYS[:3_000], VALUES[:3_000])
    assert all(set(segment.holders) == {"a", "b"} for segment in context.describe().segments)
    exact(context.attend(queries(3)), queries(3), KEYS[:3_000], VALUES[:3_000])
    context.drop()


def test_tokens_pinned_to_a_node_are_there(client, context):
    context.append(KEYS[:600], VALUES[:600], node="b")
    assert {segment.holders for segment in context.describe().segments} == {("b",)}
    assert set(context.attend(queries(1)).mass) == {"b"}


def encoder():
    """x [rows, 32] -> keys = x, values = the first half of x, two heads each."""
    info, i64 = helper.make_tensor_value_info, TensorProto.INT64
    numbers = {"k": [-1, 2, 16], "v": [-1, 2, 8], "zero": [0], "half": [16], "one": [1]}
    constants = [helper.make_tensor(name, i64, [len(v)], v) for name, v in numbers.items()]
    nodes = [
        helper.make_node("Reshape", ["x", "k"], ["keys"]),
        helper.make_node("Slice", ["x", "zero", "half", "one"], ["left"]),
        helper.make_node("Reshape", ["left", "v"], ["values"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [info("x", TensorProto.FLOAT, ["rows", 32])],
        [info("keys", TensorProto.FLOAT, ["rows", 2, 16]), info("values", TensorProto.FLOAT, ["rows", 2, 8])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("rows", [None, range(10, 200)])
def test_a_node_appends_its_own_rows_which_never_leave(client, context, data, rows):
    x = data[1] if rows is None else data[1][rows.start : rows.stop]
    context.append(KEYS[:100], VALUES[:100], node="b")
    appended = context.append_dataset("a", "rows", encoder(), {"x": "x"}, rows)
    assert appended.tokens == len(x)
    keys = np.concatenate([KEYS[:100], x.reshape(-1, 2, 16)])
    values = np.concatenate([VALUES[:100], x[:, :16].reshape(-1, 2, 8)])
    answer = context.attend(queries(3))
    exact(answer, queries(3), keys, values)
    # The way back: a sum over tokens leaves, as an answer does; what lies by token does not.
    back = queries(3), answer.out, answer.lse, np.ones_like(answer.out)
    assert np.isfinite(context.gradients(*back, tokens=False).queries).all()
    with pytest.raises(PrivateTensor):
        context.gradients(*back)


def test_twenty_clients_attend_while_appends_go_on(shared, client, context):
    """Every answer is exact for the tokens it says there were, though their number grows all the time."""
    context.append(KEYS[:1_000], VALUES[:1_000])
    stop = threading.Event()

    def grow():
        at = 1_000
        while not stop.is_set() and at < 4_000:
            context.append(KEYS[at : at + 37], VALUES[at : at + 37])
            at += 37
        return at

    def attend(seed):
        asked = queries(2, seed=seed)
        with shared.client() as own:
            handle = own.context(context.name)
            for _ in range(5):
                answer = handle.attend(asked, deadline=120.0)
                exact(answer, asked, KEYS[: answer.tokens], VALUES[: answer.tokens])
        return answer.tokens

    with concurrent.futures.ThreadPoolExecutor(21) as pool:
        growing = pool.submit(grow)
        seen = list(pool.map(attend, range(20)))
        stop.set()
        total = growing.result()
    assert max(seen) > 1_000
    exact(context.attend(queries(2)), queries(2), KEYS[:total], VALUES[:total])


def test_many_alike_answers_too_large_for_a_message(shared, client):
    """Partials of over 1 MiB go as files, and those of like questions are the same file."""
    spec = {"query_heads": 8, "key_heads": 8, "key_dim": 8, "value_dim": 64}
    keys, values = tokens(600, spec)
    context = client.create_context("large-answers", **spec)
    context.append(keys, values, node="a")
    asked = queries(600, spec)
    out, _ = truth(asked, keys, values)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: context.attend(asked, encoding="float16"), range(12)))
    for answer in answers:
        assert answer.exact, answer.missing
        np.testing.assert_allclose(answer.out, out, atol=2e-3)
    context.drop()


@pytest.mark.parametrize("mask", [{}, {"causal": True, "positions": POSITIONS}])
def test_the_way_back_is_exact_and_divided_where_it_is_large(long, mask):
    """Gradients of queries, keys and values by the formulae in float64, over 20,000 tokens of two nodes."""
    asked, dout = queries(6), np.random.default_rng(7).standard_normal((6, 4, 8)).astype(np.float32)
    sees = POSITIONS[:, None] >= SEEN if mask else np.ones((6, COUNT), bool)
    answer = long.attend(asked, **mask)
    found = long.gradients(asked, answer.out, answer.lse, dout, **mask)
    assert found.calls > 1
    out, lse = truth(asked, KEYS, VALUES, sees)
    keys, values = (np.repeat(a.astype(np.float64), 2, axis=1) for a in (KEYS, VALUES))
    scores = np.einsum("qhd,thd->qht", asked, keys) / 4
    p = np.exp(np.where(sees[:, None], scores, -np.inf) - lse[..., None])
    ds = p * (np.einsum("qhd,thd->qht", dout, values) - (dout * out).sum(2)[..., None])
    by_key = lambda a: a.reshape(COUNT, 2, 2, -1).sum(2)  # noqa: E731
    np.testing.assert_allclose(found.queries, np.einsum("qht,thd->qhd", ds, keys) / 4, atol=1e-5)
    np.testing.assert_allclose(found.keys, by_key(np.einsum("qht,qhd->thd", ds, asked)) / 4, atol=1e-5)
    np.testing.assert_allclose(found.values, by_key(np.einsum("qht,qhd->thd", p, dout)), atol=1e-5)
    alone = long.gradients(asked, answer.out, answer.lse, dout, tokens=False, **mask)
    assert alone.keys is None
    np.testing.assert_allclose(alone.queries, found.queries, atol=1e-6)
