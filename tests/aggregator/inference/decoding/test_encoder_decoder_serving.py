"""Sessions of decoders beside encoders over nodes in this process: exact, whatever becomes of nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cut_once import cut_once, whole
from decoder_runs import WholeEncoderDecoder
from house import House, until

from aggregator.inference.beside_encoder import write_beside
from aggregator.inference.cutting import _with_decoder
from aggregator.inference.decoder_files import decoder_model
from aggregator.inference.decoding import scheduling, session_bytes, session_places
from aggregator.inference.decoding.programs import cache_scope
from aggregator.inference.decoding.serving import DecoderServing
from aggregator.inference.deployed import PlannedParts
from aggregator.inference.holding import roomiest
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.saved_plan import dumps_plan

EXPORTS = Path(__file__).parents[3] / "graphs/decoding/exports"
LAYERS = 1 << 20
PLANS = {
    "replicate": CutPlan((Stage(range(LAYERS), (0,)),)),
    "heads": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.HEADS, shares=(3, 0, 2)),)),
    "tokens": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),)),
    "layers": CutPlan((Stage(range(2), (0,)), Stage(range(2, 5), (1,)))),
}


class Serving:
    """A decoder beside an encoder, served by nodes `a`, `b`, `c` in this process."""

    def __init__(self, house, folder, name, plan):
        self.house, self.name = house, name
        self.boxes = {node: house.node(node) for node in "abc"}
        files = [EXPORTS / f"{name}_decoder{kind}.onnx" for kind in ("", "_with_past")]
        form = cut_once((name, str(plan)), folder, lambda to: write_beside(files, plan, to)[0])
        engine = SimpleNamespace(trips=house.trips, bulk=house.bulk, membership=house.membership)
        held = {part: ["abc"[part]] for part in range(len(form.caches))}
        self.serving = DecoderServing(
            engine,
            "m",
            decoder_model(files[0], folder),
            folder,
            form,
            held,
            roomiest(house.membership),
            lambda node: 0,
            whole,
        )
        house.trips.watch(lambda node: self.serving.look())

    def open(self, seed, tokens=20):
        """A session, and the files as one machine runs them."""
        rng, whole = np.random.default_rng(seed), WholeEncoderDecoder(EXPORTS, self.name)
        given = rng.integers(40, size=(1, tokens))
        if self.name == "whisper":
            given = rng.normal(size=(1, 8, 24)).astype(np.float32)
        return self.serving.open("me", whole.encode(given)), whole

    async def goes_on(self, session, whole, ids, steps):
        """Greedy tokens after `ids`, and each logit; returns the last."""
        for _ in range(steps):
            found = await self.serving.extend(session.number, ids, 60.0)
            wanted = np.array([whole.step(token) for token in ids])
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
            ids = [int(found[-1].argmax())]
            assert ids == [int(wanted[-1].argmax())]
            self.serving.machine.check()
        return ids

    def stored(self, node):
        names = (*self.boxes[node].node.store.sequences(), *self.boxes[node].node.store._held)
        return sorted(name for name in names if name.startswith(cache_scope("m")))


def scenario(tmp_path, name="t5", word="heads"):
    def run(test):
        async def whole():
            with House() as house:
                serving = Serving(house, tmp_path, name, PLANS[word])
                await serving.serving.ready(60)
                await test(serving)
                await serving.serving.close(NotFound("it ends"))
                assert not house.bulk._lent

        asyncio.run(whole())

    return run


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Long memories and prompts are cut, and parts take turns in storing."""
    monkeypatch.setattr(scheduling, "CHUNK_ROWS", 8)
    for module in (session_places, session_bytes):
        monkeypatch.setattr(module, "BLOCK", 4)


@pytest.mark.parametrize("name", ["t5", "whisper"])
@pytest.mark.parametrize("word", PLANS)
def test_sessions_at_once_are_what_the_files_say_of_each(tmp_path, name, word):
    @scenario(tmp_path, name, word)
    async def _(fleet):
        async def one(seed, prompt):
            session, whole = fleet.open(seed, 5 + 40 * seed)
            ids = [int(token) for token in np.random.default_rng(seed).integers(40, size=prompt)]
            await fleet.goes_on(session, whole, ids, 6)

        await asyncio.gather(*(one(seed, prompt) for seed, prompt in enumerate((1, 25, 3))))


@pytest.mark.parametrize("word", ["heads", "tokens"])
def test_a_node_goes_and_its_part_of_both_is_stored_anew(tmp_path, word):
    @scenario(tmp_path, "t5", word)
    async def _(fleet):
        open_ones = [fleet.open(seed, 30) for seed in range(2)]
        last = [await fleet.goes_on(*one, [0, 7, 9], 2) for one in open_ones]
        fleet.boxes["c"].lose()
        for one, ids in zip(open_ones, last, strict=True):
            await fleet.goes_on(*one, ids, 3)
            assert "c" not in one[0].place


def test_what_was_lost_or_cut_back_is_told_apart(tmp_path):
    """A session cut back keeps its memory; a node that lost what it stored is given both again."""

    @scenario(tmp_path, "t5", "tokens")
    async def _(fleet):
        session, whole = fleet.open(1, 30)
        await fleet.goes_on(session, whole, [0, 7, 9], 1)
        await fleet.serving.extend(session.number, [1, 2], 60.0)
        fleet.serving.truncate(session.number, 3)
        assert session.remembered == 30
        ids = await fleet.goes_on(session, whole, [4], 2)
        fleet.boxes["a"].node.store.drop(cache_scope("m"), None)
        await fleet.goes_on(session, whole, ids, 2)


def test_what_nodes_store_is_counted_and_freed(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        session, whole = fleet.open(0, 70)
        await fleet.goes_on(session, whole, [0], 1)
        form = fleet.serving.form
        each = [form.token_bytes(0, memory) for memory in (False, True)]
        assert fleet.serving.machine.bytes.on("a") == 64 * each[0] + 128 * each[1]
        assert any("/a1/k" in name for name in fleet.stored("a"))
        fleet.serving.close_session(session.number)
        await until(lambda: not any("/a1/k" in name for name in fleet.stored("a")))
        fleet.serving._room = lambda node: 1000
        fleet.serving.machine.bytes._room = lambda node: 1000
        session, _ = fleet.open(0, 70)
        with pytest.raises(ResourceExhausted, match="cache-bytes"):
            await fleet.serving.extend(session.number, [0], 10.0)


def test_sessions_begin_with_what_an_encoder_made(tmp_path):
    @scenario(tmp_path)
    async def _(fleet):
        with pytest.raises(FailedPrecondition, match="beside an encoder"):
            fleet.serving.open("me")
        for shape in ((0, 24), (3, 23), (1, 3, 24)):
            with pytest.raises(InvalidArgument, match="takes"):
                fleet.serving.open("me", np.zeros(shape, np.float32))


def test_no_decoder_beside_an_encoder_that_is_not_exact_or_not_whole(tmp_path):
    files = [EXPORTS / f"t5_decoder{kind}.onnx" for kind in ("", "_with_past")]
    batch = Stage(range(1), (0, 1), Cut.BATCH), Stage(range(1, 3), (2,))
    for plan, why in (
        (CutPlan((Stage(range(LAYERS), (0, 1), Cut.BATCH),), mean=True), "by averaging"),
        (CutPlan(batch), "before others"),
    ):
        with pytest.raises(FailedPrecondition, match=why):
            write_beside(files, plan, tmp_path)
    planned = PlannedParts((), (), {}, dumps_plan(PLANS["replicate"]), "", (), {}, {}, lacking="heads 3 of 4")
    with pytest.raises(FailedPrecondition, match="heads 3 of 4"):
        _with_decoder(planned, files, tmp_path)
