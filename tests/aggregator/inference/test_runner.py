"""The runner over nodes in this process: exact whatever becomes of them, or it says why not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from house import House, until
from small_cut import SmallCut

from aggregator.inference import calls, part_pieces, runner, running_request
from aggregator.inference import requests as machine
from aggregator.inference.boundary_room import BoundaryRoom
from aggregator.inference.lanes import LANES
from aggregator.inference.runner import ModelRunner
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    InvalidTensor,
    NotFinite,
    NotFound,
    OutOfMemory,
    Overloaded,
    ResourceExhausted,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.cut import analyse, cut_model, sizes_of
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

EXPORTS = Path(__file__).parents[2] / "graphs/axes/exports"


class Fleet:
    def __init__(self, house, tmp_path, *names, **options):
        self.house = house
        self.boxes = {name: house.node(name) for name in names}
        engine = SimpleNamespace(trips=house.trips, bulk=house.bulk, membership=house.membership)
        self.runner = ModelRunner(engine)
        self.cut = SmallCut(tmp_path / "cut", **options)

    def node(self, name, **options):
        self.boxes[name] = self.house.node(name, **options)

    async def prepare(self, holders, seconds=30.0, **options):
        await self.runner.prepare("m", "s", self.cut.schedule, self.cut, holders, seconds=seconds, **options)

    async def infer(self, seed=0, seconds=30.0, **options):
        return await self.runner.infer("m", "s", self.cut.feeds(seed), seconds, **options)

    async def exact(self, seed=0, atol=2e-5, **options):
        answer = await self.infer(seed, **options)
        assert answer.exact
        assert answer.coverage == 1.0
        np.testing.assert_allclose(answer.results["out"], self.cut.whole(self.cut.feeds(seed)), atol=atol)
        return answer

    def steps(self, name):
        """How many segments the node has been called for."""
        return len([call for call in self.boxes[name].calls if not call.shard.startswith("warm")])

    def stored(self, name):
        return sorted(self.boxes[name].node.store._held)


def scenario(tmp_path, names="ab", **options):
    """Runs the test, a coroutine over a Fleet, to its end."""

    def run(test):
        async def whole():
            with House() as house:
                fleet = Fleet(house, tmp_path, *names, **options)
                await test(fleet)
                await fleet.runner.close()
                assert not house.bulk._lent

        asyncio.run(whole())

    return run


def stop_at(box, calls, then):
    """Have `then()` called in place of the node's call number `calls` from now."""
    send, left = box.send, [calls]

    def counted(message):
        if type(message).__name__ == "Call" and not message.shard.startswith("warm"):
            left[0] -= 1
            if left[0] == 0:
                box.send = send
                return then()
        return send(message)

    box.send = counted


def test_a_request_runs_through_its_steps_and_nodes_keep_what_the_schedule_says(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        answer = await fleet.exact()
        assert fleet.steps("a") == fleet.steps("b") == 4
        assert answer.sent == {"a": 4 * 6 * 8 * 4, "b": 4 * 6 * 8 * 4}
        assert [(one.step, one.part) for one in answer.segments] == [
            (s, p) for s in range(4) for p in range(2)
        ]
        assert {(one.node, one.part) for one in answer.segments} == {("a", 0), ("b", 1)}
        assert answer.received == {"a": (3 + 0.5) * 6 * 8 * 4, "b": (3 + 0.5) * 6 * 8 * 4}
        assert [name for name in fleet.stored("a") if "/lane" in name] == [
            f"job/m/lane0/p0/h{layer}" for layer in range(3)
        ]
        assert await fleet.exact(3)
        assert not any("/lane1" in name for name in fleet.stored("a")), "the lane is used again"
        await fleet.runner.release("m")
        await until(lambda: not fleet.stored("a") and not fleet.stored("b"))


def test_the_same_bits_whatever_runs_beside(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        alone = [(await fleet.exact(seed)).results["out"].tobytes() for seed in range(4)]
        beside = await asyncio.gather(*(fleet.exact(seed % 4) for seed in range(40)))
        assert [answer.results["out"].tobytes() for answer in beside] == alone * 10


def test_parts_on_one_node_share_weights_and_keep_apart_what_they_keep(tmp_path):
    @scenario(tmp_path, "a", parts=3)
    async def _(fleet):
        fleet.cut.weights["a1"][:] = fleet.cut.weights["a0"]
        await fleet.prepare({0: ["a"], 1: ["a"], 2: ["a"]})
        await fleet.exact()
        weights = [name for name in fleet.stored("a") if "/kept/w/" in name]
        assert len(weights) == 3 * 6 - 3


def test_weights_of_equal_bytes_and_other_shapes_are_kept_apart(tmp_path):
    @scenario(tmp_path, "a")
    async def _(fleet):
        for name in ("a1", "b1"):
            fleet.cut.weights[name][:] = 0.25
        assert fleet.cut.weights["a1"].shape != fleet.cut.weights["b1"].shape
        await fleet.prepare({0: ["a"], 1: ["a"]})
        await fleet.exact()


def test_a_large_table_of_rows_is_bound_as_it_is_stored(tmp_path, monkeypatch):
    model = EXPORTS / "bert_torchscript17.onnx"
    ids = np.random.default_rng(0).integers(1, 40, (1, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    forms = {name: TensorForm("int64", ids.shape) for name in feeds}
    layers = len(narrow_places(analyse(opened := open_model(model), sizes_of(opened, forms)))) + 1
    schedule = cut_model(model, CutPlan((Stage(range(layers), (0,)),)), forms, tmp_path / "bert")
    [output] = schedule.results
    frozen = []
    for least in (1 << 30, 1024):
        monkeypatch.setattr(calls, "TABLE", least)
        monkeypatch.setattr(part_pieces, "TABLE", least)

        @scenario(tmp_path, "a")
        async def _(fleet):
            await fleet.runner.prepare(
                "m", "s", schedule, CutFolder(model, tmp_path / "bert"), {0: ["a"]}, seconds=60
            )
            answer = await fleet.runner.infer("m", "s", feeds, 60)
            expected = ort.InferenceSession(model).run([output], feeds)[0]
            np.testing.assert_allclose(answer.results[output], expected, atol=1e-5)
            kept = fleet.boxes["a"].prepared._kept.values()
            frozen.append(max(len(one.program.frozen) for one in kept))

    assert frozen[1] < frozen[0]


def test_stages_run_on_their_nodes(tmp_path):
    @scenario(tmp_path, "abc", parts=3, stages=True)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"], 2: ["c"]})
        await asyncio.gather(*(fleet.exact(seed) for seed in range(9)))
        assert [fleet.steps(name) for name in "abc"] == [9, 9, 9]


def test_a_model_on_several_boxes_takes_the_one_with_least_to_do(tmp_path):
    @scenario(tmp_path, "abc", parts=1)
    async def _(fleet):
        await fleet.prepare({0: ["a", "b", "c"]})
        await asyncio.gather(*(fleet.exact(seed) for seed in range(6)))
        assert [fleet.steps(name) for name in "abc"] == [8, 8, 8]


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_node_that_is_lost_is_taken_over_by_its_replica_in_the_middle(tmp_path, call):
    @scenario(tmp_path, "abc")
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b", "c"]})
        expected = await fleet.exact()
        stop_at(fleet.boxes["b"], call, fleet.boxes["b"].disconnect)
        answer = await fleet.exact()
        assert answer.moves == 1
        assert answer.results["out"].tobytes() == expected.results["out"].tobytes()
        assert fleet.steps("c") == 4


@pytest.mark.parametrize("call", [1, 3, 4])
def test_without_a_replica_another_node_is_given_the_part(tmp_path, call):
    @scenario(tmp_path, "abc")
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        stop_at(fleet.boxes["b"], call, fleet.boxes["b"].lose)
        await fleet.exact()
        assert fleet.runner.holds("m")["s"][1] != ("b",)
        await fleet.exact(1)


def test_a_node_that_is_back_in_time_goes_on(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        box = fleet.boxes["b"]

        def away():
            box.disconnect()
            asyncio.get_running_loop().call_later(0.2, box.connect)

        stop_at(box, 3, away)
        await fleet.exact()
        assert fleet.steps("b") == 4


def test_a_node_that_has_lost_its_store_is_given_it_again(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        box = fleet.boxes["b"]

        def lost():
            box.disconnect()
            box.connect(fresh=True)

        stop_at(box, 3, lost)
        answer = await fleet.exact()
        assert answer.moves == 1
        assert fleet.steps("b") == 4 + 2
        await fleet.exact(1)


def test_a_node_that_says_that_it_lacks_something_is_given_it_again(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        await fleet.exact()
        fleet.boxes["b"].node.store.drop("job/m/")
        await fleet.exact(1)


def nonsense(kind):
    """Changes what a node returns."""

    def tamper(contribution):
        tensors = dict(contribution.tensors)
        for name, array in tensors.items():
            array = np.array(array)
            if kind == "NaN":
                array.reshape(-1)[-1] = np.nan
            elif kind == "shape":
                array = array[:-1]
            elif kind == "dtype":
                array = array.astype(np.float64)
            tensors[name] = array
        if kind == "nothing":
            tensors = {}
        if kind == "more":
            tensors["z"] = np.zeros(3, np.float32)
        return replace(contribution, tensors=tensors)

    return tamper


@pytest.mark.parametrize("kind", ["NaN", "shape", "dtype", "nothing", "more"])
def test_nonsense_is_refused_or_a_replica_answers(tmp_path, kind):
    @scenario(tmp_path, "a")
    async def _(fleet):
        fleet.node("b", tamper=None)
        fleet.node("c")
        await fleet.prepare({0: ["a"], 1: ["b"]})
        fleet.boxes["b"].tamper = nonsense(kind)
        with pytest.raises(NotFinite if kind == "NaN" else InvalidTensor, match="node 'b'"):
            await fleet.infer()
        await fleet.runner.release("m")
        fleet.boxes["b"].tamper = None
        await fleet.prepare({0: ["a"], 1: ["b", "c"]})
        fleet.boxes["b"].tamper = nonsense(kind)
        await fleet.exact()


def test_nobody_answers_by_the_deadline_and_the_words_say_who(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        fleet.boxes["b"].mute = True
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="part 1 waits for node 'b' to run step 0"):
            await fleet.infer(seconds=3.0)
        assert time.monotonic() - began < 100
        fleet.boxes["b"].mute = False
        await fleet.exact(1)
        assert any("lane1" in name for name in fleet.stored("b")), "the lane that was given up is nobody's"
        await until(lambda: not any("lane0" in name for name in fleet.stored("a")))


def test_a_caller_that_goes_leaves_nothing(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        fleet.boxes["b"].mute = True
        task = asyncio.create_task(fleet.infer())
        await until(lambda: fleet.steps("b"))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert fleet.boxes["b"].cancelled, "the node is told"
        assert not fleet.runner._running
        assert fleet.runner._record.used == 0


def test_what_is_released_is_refused_and_freed_also_where_a_node_was_away(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        fleet.boxes["a"].mute = True
        asked = asyncio.create_task(fleet.infer())
        await until(lambda: fleet.steps("a"))
        fleet.boxes["a"].mute = False
        fleet.boxes["b"].disconnect()
        await fleet.runner.release("m")
        with pytest.raises(Cancelled, match="was released"):
            await asked
        with pytest.raises(NotFound):
            await fleet.infer()
        await until(lambda: not fleet.stored("a"))
        assert fleet.stored("b")
        member = fleet.boxes["b"].member
        assert fleet.runner.unneeded(member) == ("job/m/",)
        assert fleet.runner.unneeded(member) == ()


def test_shapes_share_weights_and_one_is_freed_alone(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        other = SmallCut(tmp_path / "other", rows=10)
        other.weights = fleet.cut.weights
        before = [name for name in fleet.stored("a") if "/kept/w/" in name]
        await fleet.runner.prepare("m", "t", other.schedule, other, {0: ["a"], 1: ["b"]}, seconds=30)
        assert [name for name in fleet.stored("a") if "/kept/w/" in name] == before
        feeds = other.feeds()
        answer = await fleet.runner.infer("m", "t", feeds, 30)
        np.testing.assert_allclose(answer.results["out"], other.whole(feeds), atol=2e-5)
        await fleet.exact()
        await fleet.runner.release("m", "t")
        await until(lambda: not any(name.startswith("job/m/t/") for name in fleet.stored("a")))
        await fleet.exact()


def test_what_is_made_ready_beside_requests_touches_nothing_of_theirs(tmp_path):
    """Another shape of a model is prepared while requests keep tensors on the same nodes."""

    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        wanted = {seed: (await fleet.exact(seed)).results["out"].tobytes() for seed in range(5)}
        other = SmallCut(tmp_path / "other", rows=6, seed=1)
        other.weights = fleet.cut.weights
        for turn in range(4):
            held = {0: ["a"], 1: ["b"]}
            made = asyncio.create_task(
                fleet.runner.prepare("m", f"t{turn}", other.schedule, other, held, seconds=30)
            )

            async def ask(seed, made=made):
                while not made.done():
                    answer = await fleet.exact(seed)
                    assert answer.results["out"].tobytes() == wanted[seed]
                    for _ in range(seed):
                        await asyncio.sleep(0)  # out of step with the others

            await asyncio.gather(made, *(ask(seed) for seed in range(5)))
        await until(lambda: not any("/warm/" in name for name in [*fleet.stored("a"), *fleet.stored("b")]))


def test_a_part_that_nobody_can_hold_is_said_with_its_reason(tmp_path):
    @scenario(tmp_path, "a")
    async def _(fleet):
        fleet.node("b", limit=100)
        # At once: waiting mends nothing.
        with pytest.raises(OutOfMemory, match=r"node 'b'.*more bytes"):
            await fleet.prepare({0: ["a"], 1: ["b"]}, seconds=600)


def test_feeds_of_another_form_are_refused(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        x = fleet.cut.feeds()["x"]
        for feeds, match in (
            ({}, "'x' is missing"),
            ({"x": x[:3]}, "must be float32"),
            ({"x": x.astype(np.int32)}, "is int32"),
            ({"x": x, "z": x}, "'z' is no input"),
        ):
            with pytest.raises(InvalidTensor, match=match):
                await fleet.runner.infer("m", "s", feeds, 5)


def test_more_than_a_message_holds_comes_and_goes_in_bulk(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "CALL_BYTES", 64)

    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        await fleet.exact()
        assert all(program.bulk_tensors for program in fleet.boxes["a"].programs[-4:])


@pytest.mark.parametrize("in_bulk", [False, True])
def test_halves_halve_what_travels_and_cost_their_rounding(tmp_path, monkeypatch, in_bulk):
    if in_bulk:
        monkeypatch.setattr(calls, "CALL_BYTES", 64)

    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]}, halves=True)
        answer = await fleet.exact(atol=2e-2)
        assert answer.sent == {"a": 2.5 * 6 * 8 * 4, "b": 2.5 * 6 * 8 * 4}
        assert answer.received == {"a": 2 * 6 * 8 * 4, "b": 2 * 6 * 8 * 4}  # the results in float32
        whole = fleet.cut.whole(fleet.cut.feeds())
        error = np.abs(answer.results["out"] - whole).max() / np.abs(whole).max()
        assert 1e-6 < error < 2e-3
        for scale in (1e5, -1e6):
            feeds = {"x": fleet.cut.feeds()["x"] * np.float32(scale)}
            with pytest.raises(NotFinite, match="past float16"):
                await fleet.runner.infer("m", "s", feeds, 30.0)


@pytest.mark.parametrize("halves", [False, True])
def test_what_is_large_is_checked_folded_and_made_beside_the_loop_with_the_same_bits(
    tmp_path, monkeypatch, halves
):
    def by_thread(of, name, threads):
        method = getattr(of, name)

        def noted(self, *arguments):
            threads[name].add(threading.get_ident())
            return method(self, *arguments)

        monkeypatch.setattr(of, name, noted)

    threads = defaultdict(set)
    by_thread(Meetings, "add", threads)
    by_thread(calls.SegmentCall, "require_held", threads)
    by_thread(calls.SentTensor, "elements", threads)

    @scenario(tmp_path, names="abc", parts=3)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"], 2: ["c"]}, halves=halves)
        loop, bits = threading.get_ident(), set()
        for beside, many in ((1 << 40, 1), (1, 1), (1, 4)):
            monkeypatch.setattr(running_request, "BESIDE", beside)
            threads.clear()
            for answer in await asyncio.gather(*(fleet.infer() for _ in range(many))):
                assert answer.seconds["fold"] > 0
                bits.add(answer.results["out"].tobytes())
            assert set(threads) == {"add", "require_held", "elements"}
            for name, idents in threads.items():
                assert (loop in idents) == (beside > 1), name
        assert len(bits) == 1, "folds in another order"


def test_nan_in_what_is_large_is_refused_and_a_node_may_go_while_it_folds(tmp_path, monkeypatch):
    monkeypatch.setattr(running_request, "BESIDE", 1)
    add = Meetings.add

    @scenario(tmp_path, names="abc")
    async def _(fleet):
        await fleet.prepare({0: ["a", "c"], 1: ["b", "c"]})
        loop = asyncio.get_running_loop()

        def gone(meetings, step, part, outputs):
            monkeypatch.setattr(Meetings, "add", add)
            # The loop hears of it in the middle of the fold, and acts on it afterwards.
            loop.call_soon_threadsafe(fleet.boxes["b"].lose)
            time.sleep(0.05)
            return add(meetings, step, part, outputs)

        monkeypatch.setattr(Meetings, "add", gone)
        await fleet.exact()
        feeds = {"x": np.full_like(fleet.cut.feeds()["x"], np.nan)}
        with pytest.raises(NotFinite, match=r"makes NaN of these inputs: .* holds nan .* row whose mask"):
            await fleet.runner.infer("m", "s", feeds, 30.0)
        await fleet.exact()


def test_what_takes_too_much_memory_is_refused_or_waits(tmp_path, monkeypatch):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        peak = fleet.runner._deployed["m"].shapes["s"].course.peak
        room = fleet.runner._room = BoundaryRoom(2 * peak)
        most = 0

        async def ask(seed):
            nonlocal most
            await fleet.exact(seed)
            most = max(most, room.used)

        await asyncio.gather(*(ask(seed) for seed in range(12)))
        assert room.used == 0
        assert most <= 2 * peak
        fleet.boxes["b"].mute = True
        await asyncio.gather(*(fleet.infer(seconds=0.3) for _ in range(5)), return_exceptions=True)
        assert room.used == 0
        with pytest.raises(Overloaded, match="boundary-bytes"):
            await asyncio.gather(fleet.infer(), fleet.infer(), fleet.infer(seconds=0.2))
        monkeypatch.setattr(runner, "PEAK_BYTES", peak - 1)
        with pytest.raises(ResourceExhausted, match="request-boundaries"):
            await fleet.prepare({0: ["a"], 1: ["b"]})


def test_many_more_than_there_are_lanes_wait_for_their_turn(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b"]})
        await asyncio.gather(*(fleet.exact(seed % 5) for seed in range(50)))
        lanes = {name.split("/")[2] for name in fleet.stored("a") if "/lane" in name}
        assert lanes == {f"lane{n}" for n in range(LANES)}


def test_when_nothing_may_be_recorded_a_lost_node_makes_the_request_begin_again(tmp_path):
    @scenario(tmp_path, "abc")
    async def _(fleet):
        fleet.runner._record.limit = 0
        await fleet.prepare({0: ["a"], 1: ["b", "c"]})
        stop_at(fleet.boxes["b"], 3, fleet.boxes["b"].disconnect)
        await fleet.exact()
        assert fleet.steps("a") > 4


def test_what_was_asked_before_a_request_began_again_writes_in_nobodys_lane(tmp_path, monkeypatch):
    """A node is slow with what it was asked then; the request has ended, and the next one is under way."""
    monkeypatch.setattr(running_request, "END_SECONDS", 0.01)

    @scenario(tmp_path, "abc")
    async def _(fleet):
        fleet.runner._record.limit = 0
        await fleet.prepare({0: ["a"], 1: ["b", "c"]})
        box, held = fleet.boxes["a"], []
        stop_at(fleet.boxes["b"], 3, fleet.boxes["b"].disconnect)
        run = box.run

        def slow(program):
            if len(held) < 3:
                held.append(program)
                if len(held) == 3:
                    return
            run(program)

        box.run = slow
        await fleet.exact(0)
        box.run = run

        def late(program):
            list(box.execute(held[2]))
            run(program)

        asked = fleet.steps("a")
        box.run = lambda program: late(program) if fleet.steps("a") == asked + 4 else run(program)
        await fleet.exact(1)
        assert fleet.steps("a") >= asked + 4


@pytest.mark.parametrize("seed", range(6))
def test_nodes_that_come_and_go_at_random_leave_every_answer_exact(tmp_path, seed):
    rng = np.random.default_rng(seed)

    @scenario(tmp_path, "abcd", parts=3, layers=4)
    async def _(fleet):
        await fleet.prepare({0: ["a"], 1: ["b", "d"], 2: ["c"]})
        done, failed = 0, []

        async def ask():
            nonlocal done
            for number in range(12):
                try:
                    await fleet.exact(number)
                    done += 1
                except EdgeAttentionError as error:
                    failed.append(error)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        while not all(task.done() for task in asking):
            await asyncio.sleep(rng.uniform(0, 0.02))
            box = fleet.boxes[rng.choice(list("abcd"))]
            how = rng.integers(3)
            if box.member.state is not NodeState.READY:
                continue
            box.disconnect()
            if how == 2:
                box.member.state = NodeState.LOST
                fleet.house.dispatcher.changed(box.name)
            await asyncio.sleep(rng.uniform(0, 0.01))
            box.connect(fresh=bool(how))
        for task in asking:
            await task
        assert done + len(failed) == 48
        assert all("times in the middle" in str(error) or "gone" in str(error) for error in failed), failed
        assert done > 30
        assert fleet.runner._record.used == 0
        assert machine.RESTARTS == 3


def test_without_a_nodes_keys_the_answer_is_the_models_where_nobody_looks_at_them(tmp_path):
    """A real encoder, its tokens over three nodes, partials merged. One node is gone: the others' rows are
    what the whole model says with that node's tokens masked; its own rows are not known."""
    model = EXPORTS / "bert_torchscript17.onnx"
    session = ort.InferenceSession(model)
    ids = np.random.default_rng(0).integers(1, 40, (1, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    forms = {name: TensorForm("int64", ids.shape) for name in feeds}
    layers = len(narrow_places(analyse(opened := open_model(model), sizes_of(opened, forms)))) + 1
    plan = CutPlan((Stage(range(layers), (0, 1, 2), Cut.TOKENS, Crossing.MERGE),))
    schedule = cut_model(model, plan, forms, tmp_path / "bert")
    [output] = schedule.results

    @scenario(tmp_path, "abc")
    async def _(fleet):
        files = CutFolder(model, tmp_path / "bert")
        await fleet.runner.prepare("m", "s", schedule, files, {0: ["a"], 1: ["b"], 2: ["c"]}, seconds=60)
        answer = await fleet.runner.infer("m", "s", feeds, 60, partial=True)
        assert answer.exact
        np.testing.assert_allclose(answer.results[output], session.run([output], feeds)[0], atol=1e-5)
        # No other node is to be had.
        fleet.boxes["a"].member.state = fleet.boxes["b"].member.state = NodeState.DRAINING
        fleet.boxes["c"].lose()
        answer = await fleet.runner.infer("m", "s", feeds, 2, partial=True)
        assert not answer.exact
        assert answer.coverage == pytest.approx(2 / 3)
        assert "part 2 from step 0 on" in answer.lacking
        feeds["attention_mask"][:, 8:] = 0
        expected = session.run([output], feeds)[0]
        np.testing.assert_allclose(answer.results[output][:, :8], expected[:, :8], atol=1e-5)
        assert np.isnan(answer.results[output][:, 8:]).all()
        feeds["attention_mask"][:] = 1
        with pytest.raises(DeadlineExceeded, match="part 2 cannot run step 0: node 'c' is lost"):
            await fleet.runner.infer("m", "s", feeds, 0.3)
