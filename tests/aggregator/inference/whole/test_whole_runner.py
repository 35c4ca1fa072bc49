"""Models served whole over nodes in this process: what ONNX Runtime gives for the file, whatever sizes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import odd_models
import onnx
import onnxruntime as ort
import pytest
from house import House, until

from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import cut_as_asked
from aggregator.inference.deployed import PlannedParts
from aggregator.inference.whole import whole_runner
from aggregator.inference.whole.whole_runner import WholeRunner
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    InvalidGraph,
    InvalidTensor,
    ResourceExhausted,
)
from edge_attention.core.schedule.whole import WHOLE_FILE, WholeModel
from edge_attention.graphs.axes.folder import CutFolder

EXPORTS = Path(__file__).parents[3] / "graphs/axes/exports"
NODES = tuple(NodeTold(name, 1 << 30, 0, 1) for name in "ab")


class Served:
    """A model's file, planned as a whole, on nodes of a house."""

    def __init__(self, house, folder, path, names="ab", word="replicate"):
        self.house, self.path = house, path
        self.boxes = {name: house.node(name) for name in names}
        engine = SimpleNamespace(trips=house.trips, bulk=house.bulk, membership=house.membership)
        self.runner = WholeRunner(engine)
        self.into = folder / "cut"
        self.planned = cut_as_asked(CutRequest(str(path), str(self.into), word, nodes=NODES))
        self.session = ort.InferenceSession(path)

    async def prepare(self, holders=("a", "b"), seconds=30.0):
        planned = PlannedParts.from_json(self.planned.to_json())
        whole = WholeModel.loads((self.into / WHOLE_FILE).read_text())
        await self.runner.prepare(
            "m", whole, CutFolder(self.path, self.into), {0: holders}, planned.inputs, planned.outputs,
            planned.shapes, seconds=seconds,
        )  # fmt: skip

    async def same(self, feeds, seconds=30.0):
        """The bits of the file as ONNX Runtime runs it."""
        answer = await self.runner.infer("m", feeds, seconds)
        names = [one.name for one in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            found = answer.results[name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert found.tobytes() == value.tobytes()
        return answer


def scenario(folder, model, names="ab", **options):
    """Runs the test, a coroutine over a Served, to its end."""
    path = folder / "m.onnx"
    if isinstance(model, Path):
        path = model
    else:
        onnx.save(model, path)

    def run(test):
        async def all_of_it():
            with House() as house:
                served = Served(house, folder, path, names, **options)
                await test(served)
                await served.runner.close()
                assert not house.bulk._lent

        asyncio.run(all_of_it())

    return run


def rows(count, seed=0, width=3):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["bert", "bert_int8", "bert_fused", "gpt2"])
def test_any_length_at_once_with_the_files_own_bits(tmp_path, name):
    @scenario(tmp_path, EXPORTS / f"{name}.onnx")
    async def _(served):
        assert served.planned.whole
        assert served.planned.text == "whole on each of a, b"
        await served.prepare()
        for length, batch in ((7, 1), (12, 2), (9, 3)):
            ids = np.random.default_rng(length).integers(1, 40, (batch, length))
            feeds = {}
            for one in served.session.get_inputs():
                kind = np.int32 if one.type == "tensor(int32)" else np.int64
                feeds[one.name] = (ids if one.name == "input_ids" else np.ones_like(ids)).astype(kind)
            await served.same(feeds)
        assert {call.shard for box in served.boxes.values() for call in box.calls} >= {"warm", "model"}


def test_results_have_the_sizes_that_data_gives_them(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows())
    async def _(served):
        await served.prepare()
        for seed in range(4):
            await served.same({"x": rows(9, seed)})
        none = await served.same({"x": np.zeros((4, 3), np.float32)})
        assert none.results["rows"].shape == (0, 400)


@pytest.mark.parametrize("make", [odd_models.branches, odd_models.trees])
def test_branches_on_data_and_trees(tmp_path, make):
    @scenario(tmp_path, make(), word="auto")
    async def _(served):
        assert served.planned.whole
        await served.prepare()
        shapes = {(await served.same({"x": sign * np.abs(rows(5))})).results["y"].shape for sign in (1, -1)}
        assert shapes in ({(5, 300), (5, 500)}, {(5, 1)})


def test_loops_on_data(tmp_path):
    @scenario(tmp_path, odd_models.counted())
    async def _(served):
        await served.prepare()
        for times in (1, 5, 0):
            await served.same({"times": np.array(times), "x": np.ones(3, np.float32)})


def test_any_number_of_dimensions(tmp_path):
    @scenario(tmp_path, odd_models.any_rank())
    async def _(served):
        assert served.planned.inputs[0].shape == ("...",)
        await served.prepare()
        for shape in ((), (3,), (2, 3, 1, 4)):
            await served.same({"x": np.ones(shape, np.float32)})


def test_what_is_no_tensor_of_numbers_is_refused_with_what_to_do(tmp_path):
    for made, says in (
        (odd_models.texts(), "text"),
        (odd_models.sequence(), "'y' of the model is a sequence; only tensors travel"),
    ):
        onnx.save(made, tmp_path / "m.onnx")
        with pytest.raises(InvalidGraph, match=says):
            cut_as_asked(
                CutRequest(str(tmp_path / "m.onnx"), str(tmp_path / "cut"), "replicate", nodes=NODES)
            )
    onnx.save(odd_models.any_rank(), tmp_path / "m.onnx")
    with pytest.raises(InvalidGraph, match="how many dimensions 'x' has: replicate it"):
        cut_as_asked(CutRequest(str(tmp_path / "m.onnx"), str(tmp_path / "cut"), "layers", nodes=NODES))


def test_requests_go_to_whoever_has_least_in_hand(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows(), "abc")
    async def _(served):
        await served.prepare("abc")
        await asyncio.gather(*(served.same({"x": rows(5, seed)}) for seed in range(9)))
        counts = [len([c for c in box.calls if c.shard == "model"]) for box in served.boxes.values()]
        assert counts == [3, 3, 3]


def test_a_holder_that_goes_in_the_middle_costs_another_call(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows())
    async def _(served):
        await served.prepare()
        first = served.boxes["a"]
        send = first.send

        def gone(message):
            if getattr(message, "shard", "") == "model":
                first.send = send
                return first.disconnect()
            return send(message)

        first.send = gone
        answers = [await served.same({"x": rows(5)}) for _ in range(2)]
        assert [answer.moves for answer in answers] in ([1, 0], [0, 1])


def test_without_a_holder_another_node_is_given_the_model_once_the_lease_has_ended(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows(), "ab")
    async def _(served):
        await served.prepare(["a"])
        served.boxes["a"].disconnect()
        waits = asyncio.create_task(served.same({"x": rows(5)}))
        await asyncio.sleep(0.05)
        assert not served.boxes["b"].calls, "it may be back in a moment"
        served.boxes["a"].lose()
        answer = await waits
        assert answer.sent.keys() == {"b"}
        assert answer.seconds["wait"] > 0
        assert served.runner.holds("m") == {0: ("b",)}


def test_nobody_comes_and_it_says_what_was_waited_for(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows(), "a")
    async def _(served):
        await served.prepare(["a"])
        served.boxes["a"].disconnect()
        with pytest.raises(DeadlineExceeded, match="no node holds the model: node 'a' is suspect"):
            await served.runner.infer("m", {"x": rows(2)}, 0.1)


def test_a_node_that_lost_what_it_was_given_is_given_it_again(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows(), "a")
    async def _(served):
        await served.prepare(["a"])
        served.boxes["a"].disconnect()
        served.boxes["a"].connect(fresh=True)
        await until(lambda: served.runner.holds("m") == {0: ("a",)})
        await served.same({"x": rows(3)})
        served.boxes["a"].node.store.drop("job/m/")
        served.boxes["a"].prepared.forget("job/m/")
        await served.same({"x": rows(4)})


def test_inputs_that_it_cannot_be_computed_of_are_said_to_be_so_by_two_nodes_at_most(tmp_path):
    @scenario(tmp_path, EXPORTS / "bert.onnx", "abc")
    async def _(served):
        await served.prepare("abc")
        ids = np.full((1, 5), 9999)
        with pytest.raises(InvalidTensor, match=r"cannot be computed of these inputs: .*out of data bounds"):
            await served.runner.infer("m", {"input_ids": ids, "attention_mask": np.ones_like(ids)}, 30)
        asked = [c for box in served.boxes.values() for c in box.calls if c.shard == "model"]
        assert len(asked) == 2


def test_results_are_bounded_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_runner, "INFER_BYTES", 10_000)

    @scenario(tmp_path, odd_models.positive_rows())
    async def _(served):
        await served.prepare()
        await served.same({"x": rows(5)})
        with pytest.raises(EdgeAttentionError, match="bound infer-bytes") as refused:
            await served.runner.infer("m", {"x": rows(200)}, 30)
        assert isinstance(refused.value, ResourceExhausted)


def test_released_in_the_middle(tmp_path):
    @scenario(tmp_path, odd_models.positive_rows(), "a")
    async def _(served):
        await served.prepare(["a"])
        served.boxes["a"].mute = True
        asks = asyncio.create_task(served.runner.infer("m", {"x": rows(5)}, 30))
        await until(lambda: [c for c in served.boxes["a"].calls if c.shard == "model"])
        await served.runner.release("m")
        with pytest.raises(EdgeAttentionError, match="released"):
            await asks
