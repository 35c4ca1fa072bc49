"""The append recipe: all of it or nothing, whatever happens in the middle."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
from house import House, dataset, until
from onnx import ModelProto, TensorProto, helper

from edge_attention.core.errors import (
    AlreadyExists,
    EdgeAttentionError,
    Internal,
    InvalidArgument,
    InvalidGraph,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    OutOfMemory,
    PrivateTensor,
    Revoked,
    Unavailable,
)
from edge_attention.core.messages.attention import AppendDatasetRequest, AttendRequest, ContextSpec
from edge_attention.core.messages.program import Append, Drop, Fault
from edge_attention.core.positions import joined
from edge_node.store.sequence_files import Files
from edge_node.store.store import Store

RANDOM = np.random.default_rng(1)
KEYS = RANDOM.standard_normal((1300, 2, 4)).astype(np.float32)
VALUES = RANDOM.standard_normal((1300, 2, 4)).astype(np.float32)
QUERIES = RANDOM.standard_normal((3, 4, 4)).astype(np.float32)


async def create(house, replicas=1, value_dim=4):
    return await house.contexts.create(ContextSpec("c", 4, 2, 4, value_dim, replicas))


def append(house, start, stop, node=""):
    return house.appender.append("c", node, KEYS[start:stop], VALUES[start:stop])


async def exact(house, tokens=1300):
    response = await house.attender.attend(AttendRequest("c", QUERIES))
    scores = reference.scores(QUERIES, KEYS[:tokens], 0.5)
    out, lse = reference.attend(scores, VALUES[:tokens])
    assert response.exact, response.missing
    np.testing.assert_allclose(response.out.array, out, atol=1e-5)
    np.testing.assert_allclose(response.lse, lse, atol=1e-5)


def run(scenario, folder=None):
    with House(folder) as house:
        return asyncio.run(scenario(house))


@pytest.mark.parametrize("replicas", [1, 2])
def test_appends_cut_anyhow_are_one_context(replicas):
    async def scenario(house):
        for name in "abc":
            house.node(name)
        await create(house, replicas)
        cuts = [0, 1, 2, 5, 300, 812, 813, 1290, *range(1291, 1301)]
        for start, stop in itertools.pairwise(cuts):
            response = await append(house, start, stop)
            assert response.tokens == range(start, stop)
        await exact(house)
        context = house.contexts.get("c")
        assert joined([segment.positions for segment in context.segments]) == (range(1300),)
        assert sum(segment.positions.count for segment in context.segments) == 1300
        assert all(len(segment.holders) == replicas for segment in context.segments)
        assert len(context.segments) < 10, "a token at a time does not make a segment each"

    run(scenario)


def test_an_append_that_fails_leaves_nothing_and_can_be_repeated():
    async def scenario(house):
        boxes = [house.node("a"), house.node("b")]
        await create(house, replicas=2)
        await append(house, 0, 400)
        boxes[1].tamper = lambda contribution: None  # stored, but never heard of
        task = asyncio.create_task(append(house, 400, 1300))
        await until(lambda: len(boxes[1].programs) > 1)
        await asyncio.sleep(0.05)
        boxes[1].lose()
        with pytest.raises(Unavailable, match="nothing was appended"):
            await task
        assert house.contexts.get("c").tokens == 400
        boxes[1].tamper = None
        boxes[1].connect()
        await append(house, 400, 1300)
        await exact(house)

    run(scenario)


def test_a_node_that_reconnects_between_storing_and_the_commit_keeps_the_tokens():
    async def scenario(house):
        box = house.node("a")
        await create(house)
        held = []
        box.tamper = lambda contribution: held.append(contribution)
        task = asyncio.create_task(append(house, 0, 1300))
        await until(lambda: held and held[-1].final)
        box.disconnect()
        box.mute = True  # it has run the task already, and only repeats what it returned
        box.connect()
        for contribution in held:
            house.dispatcher.contribution("a", contribution)
        await task
        box.tamper, box.mute = None, False
        await exact(house)

    run(scenario)


def test_a_context_dropped_while_an_append_waits_gets_no_tokens():
    async def scenario(house):
        box = house.node("a")
        context = await create(house)
        async with context.lock:
            waiting = asyncio.create_task(append(house, 0, 10))
            await asyncio.sleep(0)
            await house.contexts.drop(house.contexts.get("c"))
            await create(house)
        with pytest.raises(NotFound, match="dropped meanwhile"):
            await waiting
        assert box.node.store.sequences() == {}

    run(scenario)


def test_tokens_that_cannot_be_committed_are_freed(monkeypatch):
    async def scenario(house):
        box = house.node("a")
        await create(house)

        def full(*_):
            raise OutOfMemory("the disk is full")

        monkeypatch.setattr(house.contexts, "commit", full)
        with pytest.raises(OutOfMemory):
            await append(house, 0, 10)
        await until(lambda: box.node.store.sequences() == {})

    run(scenario)


def test_a_cancelled_append_leaves_nothing():
    async def scenario(house):
        box = house.node("a")
        await create(house)
        box.mute = True
        task = asyncio.create_task(append(house, 0, 10))
        await until(lambda: box.programs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert box.cancelled == [box.programs[0].task_id]
        box.mute = False
        await append(house, 0, 1300)
        await exact(house)

    run(scenario)


def test_no_node_and_no_memory_are_said():
    async def scenario(house):
        await create(house)
        with pytest.raises(Unavailable, match="no node is ready"):
            await append(house, 0, 10)
        house.node("a", limit=20_000)
        with pytest.raises(OutOfMemory, match="--memory-limit"):
            await append(house, 0, 1300)
        with pytest.raises(NotFound, match="nodes seen: a"):
            await append(house, 0, 10, node="b")

    run(scenario)


def test_a_node_that_turns_out_to_be_full_is_named():
    async def scenario(house):
        box = house.node("a")
        await create(house)
        box.node.store.limit = 1000  # it has told of more
        with pytest.raises(OutOfMemory, match=r"node 'a'.*--memory-limit"):
            await append(house, 0, 1300)
        assert house.contexts.get("c").tokens == 0

    run(scenario)


def refusing(name):
    """A node that answers whatever it is asked with an error of its own making."""

    def tamper(contribution):
        if contribution.number:
            return None
        return replace(contribution, tensors={}, final=True, error=Fault(name, "nonsense\n\x1b[31m"))

    return tamper


@pytest.mark.parametrize(
    "name", ["InvalidArgument", "PrivateTensor", "Internal", "Revoked", "x", "OutOfMemory"]
)
def test_a_node_that_refuses_what_others_take_costs_nothing(name):
    async def scenario(house):
        bad = house.node("a", tamper=refusing(name))
        for good in "bc":
            house.node(good)
        await create(house, replicas=2)
        for start, stop in itertools.pairwise([0, 1, 700, 1300]):
            response = await append(house, start, stop)
            assert all(segment.holders == ("b", "c") for segment in response.segments)
        assert bad.programs, "it was asked"
        await exact(house)
        with pytest.raises(EdgeAttentionError, match=r"node 'a'.*: nonsense\\n\\x1b\[31m$") as refused:
            await append(house, 0, 10, node="a")
        assert type(refused.value) not in (Revoked, Internal)

    run(scenario)


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (KEYS[:0], VALUES[:0]),
        (KEYS[:5], VALUES[:4]),
        (KEYS[:5, :1], VALUES[:5]),
        (KEYS[:5].astype(np.float64), VALUES[:5]),
        (KEYS[:5] * np.nan, VALUES[:5]),
        (KEYS[:5], VALUES[:5] * np.inf),
    ],
)
def test_bad_tokens_reach_no_node(keys, values):
    async def scenario(house):
        box = house.node("a")
        await create(house)
        with pytest.raises(InvalidTensor), np.errstate(invalid="ignore"):
            await house.appender.append("c", "", keys, values)
        assert box.programs == []

    with np.errstate(invalid="ignore"):
        run(scenario)


def encoder(dims=("rows", 2, 4)):
    """keys = x reshaped, values = keys + 1: a graph over a column [rows, 8]."""
    value = helper.make_tensor_value_info
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, *dims[1:]])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["keys"]),
        helper.make_node("Add", ["keys", "one"], ["values"]),
    ]
    outputs = [value(name, TensorProto.FLOAT, dims) for name in ("keys", "values")]
    graph = helper.make_graph(
        nodes, "encoder", [value("x", TensorProto.FLOAT, ["rows", 8])], outputs, [shape, one]
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()


def dataset_request(house, data=None, **changed):
    fields = {"context": "c", "node": "a", "dataset": "d", "graph": house.state.put_blob(data or encoder())}
    return AppendDatasetRequest(**{**fields, "inputs": {"x": "x"}, "rows": None, **changed})


DATA = dataset("d", x=RANDOM.standard_normal((5000, 8)).astype(np.float32))


@pytest.mark.parametrize("rows", [None, range(100, 4300), range(7, 8)])
def test_a_node_appends_what_it_computes_from_its_own_data(rows):
    async def scenario(house):
        box = house.node("a", datasets=[DATA], releases=["attention"])
        await create(house)
        await house.appender.append_dataset(dataset_request(house, rows=rows))
        keys = DATA.column("x")[slice(rows.start, rows.stop) if rows else slice(None)].reshape(-1, 2, 4)
        response = await house.attender.attend(AttendRequest("c", QUERIES))
        out, lse = reference.attend(reference.scores(QUERIES, keys, 0.5), keys + 1)
        assert response.exact
        np.testing.assert_allclose(response.out.array, out, atol=1e-5)
        np.testing.assert_allclose(response.lse, lse, atol=1e-5)
        # Sent again after the half of it was stored, a program begins anew.
        box.run(box.programs[0])
        assert set(box.node.store.sequences().values()) == {len(keys)}

    run(scenario)


def test_without_the_release_nothing_is_stored_and_the_flag_is_named():
    async def scenario(house):
        box = house.node("a", datasets=[DATA])
        await create(house)
        with pytest.raises(PrivateTensor, match=r"task/key_norm.*--allow-release attention$"):
            await house.appender.append_dataset(dataset_request(house))
        await until(lambda: box.node.store.sequences() == {})
        assert house.contexts.get("c").tokens == 0

    run(scenario)


@pytest.mark.parametrize("rows", [None, range(5, 2**40)])
def test_rows_without_end_that_a_node_says_it_has_are_not_placed(rows):
    async def scenario(house):
        house.node("a", datasets=[DATA], releases=["attention"])
        member = house.membership.get("a")
        (told,) = member.register.datasets
        much = replace(told, rows=2**64 - 1)
        member.register = replace(member.register, datasets=(much,), memory_limit=2**63)
        await create(house)
        with pytest.raises(InvalidArgument, match=r"bound context-segments: .* 33,554,432 rows at most"):
            await house.appender.append_dataset(dataset_request(house, rows=rows))

    run(scenario)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"node": "b"}, NotFound, "no node 'b'"),
        ({"dataset": "e"}, NotFound, "it has: d"),
        ({"inputs": {"x": "y"}}, NotFound, "no column 'y'"),
        ({"inputs": {"z": "x"}}, InvalidProgram, "'x' is not bound"),
        ({"inputs": {}}, InvalidProgram, "'x' is not bound"),
        ({"graph": "00"}, NotFound, "SHA-256"),
        ({"rows": range(4999, 5001)}, Exception, "5000 rows"),
    ],
)
def test_a_dataset_append_that_does_not_fit_is_said(changed, error, said):
    async def scenario(house):
        house.node("a", datasets=[DATA], releases=["attention"])
        await create(house)
        with pytest.raises(error, match=said):
            await house.appender.append_dataset(dataset_request(house, **changed))
        assert house.contexts.get("c").tokens == 0

    run(scenario)


def test_a_graph_that_every_node_would_refuse_reaches_none():
    async def scenario(house):
        box = house.node("a", datasets=[DATA], releases=["attention"])
        await create(house)
        bad = ModelProto.FromString(encoder())
        bad.graph.node[0].domain = "org.pytorch.aten"
        for _ in range(2):  # what was refused is read again
            with pytest.raises(InvalidGraph, match=r"domain 'org\.pytorch\.aten'"):
                await house.appender.append_dataset(dataset_request(house, bad.SerializeToString()))
        assert not box.programs
        await house.appender.append_dataset(dataset_request(house))
        assert box.programs

    run(scenario)


def test_tokens_of_another_shape_than_the_contexts_are_refused():
    async def scenario(house):
        box = house.node("a", datasets=[DATA], releases=["attention"])
        await create(house)
        request = dataset_request(house, encoder(("rows", 1, 8)))
        # What shape was asked for and what graph did not give it; not what it gave.
        said = rf"Append of \[4096, 2, 4\], graph {request.graph}: failed on private data"
        with pytest.raises(InvalidProgram, match=said):
            await house.appender.append_dataset(request)
        await until(lambda: box.node.store.sequences() == {})

    run(scenario)


def test_a_small_node_gets_less_and_one_that_is_full_unseen_is_passed_over():
    async def scenario(house):
        spec = ContextSpec("big", 8, 2, 64, 64)
        await house.contexts.create(spec)
        small = house.node("small", limit=1_000_000)
        house.node("large", limit=200_000_000)
        keys = np.random.default_rng(0).standard_normal((20_000, 2, 64)).astype(np.float32)
        appended = await house.appender.append("big", "", keys, keys)
        assert appended.tokens == range(20_000)
        # What the aggregator has not heard of: the node is fuller than its last heartbeat said.
        small.node.store.put("job/x/other", np.zeros(200_000, np.uint8))
        house.membership.get("small").memory = 0
        appended = await house.appender.append("big", "", keys, keys)
        assert appended.tokens == range(20_000, 40_000)
        assert {segment.holders for segment in appended.segments} == {("large",)}
        with pytest.raises(OutOfMemory, match="room for"):
            await house.appender.append("big", "small", keys, keys)

    with House() as house:
        asyncio.run(scenario(house))


def test_keys_whose_scores_would_overflow_are_refused_by_name():
    async def scenario(house):
        await house.contexts.create(ContextSpec("big", 8, 2, 64, 64))
        house.node("a")
        keys = np.ones((3, 2, 64), np.float32)
        keys[1, 1, 5] = -1e19
        with pytest.raises(InvalidTensor, match=r"keys hold 1e\+19.*rescale"):
            await house.appender.append("big", "", keys, np.ones_like(keys))

    with House() as house:
        asyncio.run(scenario(house))


# Once, by its id


def named(house, start, stop, request_id):
    return house.appender.append("c", "", KEYS[start:stop], VALUES[start:stop], request_id)


def test_an_append_of_one_id_happens_once_also_over_a_restart(tmp_path):
    async def first(house):
        house.node("a")
        await create(house)
        answer = await named(house, 0, 600, "one")
        again = await named(house, 0, 600, "one")
        assert (again.tokens, again.segments) == (answer.tokens, answer.segments)
        assert await house.appender.outcome("c", "one") == answer
        assert (await named(house, 600, 700, "two")).tokens == range(600, 700)
        assert house.contexts.get("c").tokens == 700

    async def second(house):
        assert (await named(house, 0, 600, "one")).tokens == range(600)
        assert (await house.appender.outcome("c", "two")).tokens == range(600, 700)
        assert house.contexts.get("c").tokens == 700

    run(first, tmp_path)
    run(second, tmp_path)


def test_what_was_said_not_to_be_appended_never_is(tmp_path):
    async def first(house):
        house.node("a")
        await create(house)
        with pytest.raises(NotFound, match="append 'late' to context 'c' was not made, and will not be"):
            await house.appender.outcome("c", "late")
        with pytest.raises(AlreadyExists, match="under another id"):
            await named(house, 0, 10, "late")

    async def second(house):
        house.node("a")
        with pytest.raises(AlreadyExists):
            await named(house, 0, 10, "late")
        with pytest.raises(NotFound):
            await house.appender.outcome("c", "late")
        assert (await named(house, 0, 10, "other")).tokens == range(10)

    run(first, tmp_path)
    run(second, tmp_path)


def test_who_asks_waits_for_the_append_under_way():
    async def scenario(house):
        box = house.node("a")
        await create(house)
        box.mute = True
        task = asyncio.create_task(named(house, 0, 10, "one"))
        await until(lambda: box.programs)
        asking = asyncio.create_task(house.appender.outcome("c", "one"))
        await asyncio.sleep(0.01)
        assert not asking.done()
        box.run(box.programs[0])
        assert await asking == await task

        lost = asyncio.create_task(named(house, 10, 20, "two"))
        await until(lambda: len(box.programs) == 2)
        asking = asyncio.create_task(house.appender.outcome("c", "two"))
        await asyncio.sleep(0.01)
        lost.cancel()
        with pytest.raises(NotFound):
            await asking

    run(scenario)


def test_a_context_remembers_so_many_answers(monkeypatch):
    monkeypatch.setattr("aggregator.attention.contexts.ANSWERS", 3)

    async def scenario(house):
        house.node("a")
        context = await create(house)
        for number in range(5):
            await named(house, number, number + 1, f"n{number}")
        known = [await house.contexts.answered(context, f"n{number}") is not None for number in range(5)]
        assert known == [False, False, True, True, True]
        with pytest.raises(InvalidArgument, match="is not a name"):
            await named(house, 5, 6, "a\nb")

    run(scenario)


# What was overtaken


def revisions(box):
    return [
        instruction.revision
        for program in box.programs
        for instruction in program.instructions
        if isinstance(instruction, Append | Drop)
    ]


def test_every_attempt_has_a_larger_revision_also_after_a_restart(tmp_path, monkeypatch):
    async def scenario(house):
        box = house.node("a")
        if not house.contexts.list():
            await create(house)
        await append(house, 0, 10)
        box.tamper = lambda contribution: replace(contribution, error=Fault("Unavailable", "no"))
        with pytest.raises(Unavailable):
            await append(house, 10, 600)
        return revisions(box)

    seen = run(scenario, tmp_path)
    monkeypatch.setattr("time.time", lambda: 1.0)
    seen += run(scenario, tmp_path)
    assert len(set(seen)) == 4
    assert seen == sorted(seen)
    assert seen[0] > 1.7e12  # milliseconds: above those of a state that was put back from a copy


@pytest.mark.parametrize("gate", [0, 1, 2])
@pytest.mark.parametrize("disk", [False, True])
def test_an_append_nobody_waits_for_changes_nothing_that_came_later(tmp_path, gate, disk):
    """Its aggregator was killed; it goes on at its node before, amid or after the next one's append."""
    stores = []

    async def first(house):
        box = house.node("a")
        if disk:
            box.node = replace(box.node, store=Store(1 << 28, Files(tmp_path / "store")))
        stores.append(box.node)
        await create(house)
        await append(house, 0, 100)
        box.mute = True
        task = asyncio.create_task(append(house, 600, 1300))
        await until(lambda: len(box.programs) == 2)
        house.dispatcher.disconnected("a", box)  # what is said of it at the end does not arrive
        task.cancel()
        return box.programs[1]

    async def second(house):
        box = house.node("a")
        box.node = stores[0]
        box.connect()
        box.mute = True
        task = asyncio.create_task(append(house, 100, 105))
        await until(lambda: box.programs)
        real, calls = box.node.store.append, []

        def other_first(*args):
            calls.append(args[0])
            if len(calls) == gate + 1:
                box.node.store.append = real
                box.run(box.programs[0])
            return real(*args)

        box.node.store.append = other_first
        *_, last = box.execute(abandoned)
        box.node.store.append = real
        if gate == 2:
            assert last.error is None
            box.run(box.programs[0])
        else:
            assert last.error is not None
            assert last.error.name == "Overtaken"
        await task
        *_, last = box.execute(abandoned)
        assert last.error is not None
        assert last.error.name == "Overtaken"
        box.mute = False
        await exact(house, 105)
        await append(house, 105, 1300)
        await exact(house)

    abandoned = run(first, tmp_path / "state")
    run(second, tmp_path / "state")


def test_an_append_nobody_waits_for_does_not_bring_a_dropped_context_back():
    async def scenario(house):
        box = house.node("a")
        await create(house)
        box.mute = True
        task = asyncio.create_task(append(house, 0, 10))
        await until(lambda: box.programs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        box.mute = False
        box.run(box.programs[1])  # what undoes it comes first
        *_, last = box.execute(box.programs[0])
        assert last.error is not None
        assert last.error.name == "Overtaken"
        assert box.node.store.sequences() == {}

    run(scenario)


def test_a_node_that_begins_anew_between_storing_and_the_commit_is_not_believed_to_have_the_tokens():
    async def scenario(house):
        first, second = house.node("a"), house.node("b")
        await create(house, replicas=2)
        await append(house, 0, 10)
        second.mute = True
        task = asyncio.create_task(append(house, 10, 20))
        await until(lambda: second.programs and len(first.programs) == 2)
        await asyncio.sleep(0.05)
        first.disconnect()
        first.connect(fresh=True)  # without --store: of what it said that it has stored nothing is there
        second.mute = False
        second.run(second.programs[-1])
        assert (await task).tokens == range(10, 20)
        (segment,) = house.contexts.describe(house.contexts.get("c")).segments
        assert segment.live == ("b",)
        second.disconnect()
        answer = await append(house, 20, 30, "a")
        assert answer.segments[0].holders == ("a",), "not behind tokens that it has not"

    run(scenario)
