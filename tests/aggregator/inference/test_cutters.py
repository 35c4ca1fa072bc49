"""Processes that cut deployed models for further shapes are kept, few of them; what they cut is the same."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest

from aggregator.inference import cutters
from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutters import Cutters
from aggregator.inference.cutting import cut_as_asked
from aggregator.inference.delivery import NodeDeliveries, StoredPiece
from aggregator.inference.known_graphs import LoadedSessions
from aggregator.store.deployments import DeploymentFolder, DeploymentFolders
from aggregator.store.state import State
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.inference import DECODER_FILES

EXPORTS = Path(__file__).parents[2] / "graphs/axes/exports"
NODES = tuple(NodeTold(name, 1 << 30, 0, 1) for name in "ab")


def asked(folder, name, length, word="tokens"):
    model = str(EXPORTS / f"{name}.onnx")
    first = cut_as_asked(CutRequest(model, str(folder / "first"), word, nodes=NODES))
    shapes = {one.name: (1, length) for one in first.inputs}
    return CutRequest(model, str(folder / "cut"), plan=first.plan, holders=first.holders, shapes=shapes)


def written(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_a_kept_process_cuts_is_what_a_new_one_does_whatever_it_cut_before(tmp_path):
    async def run():
        kept = Cutters()
        await kept.begin("d", str(EXPORTS / "bert.onnx"))
        process = kept._kept["d"]._process
        for number, (length, word) in enumerate(
            [(9, "tokens"), (14, "tokens"), (9, "layers"), (14, "tokens")]
        ):
            work = tmp_path / f"work{number}"
            work.mkdir()
            request = asked(work, "bert", length, word)
            made = await kept.cut("d", request, work)
            found = written(work / "cut")
            anew = work / "anew"
            expected = cut_as_asked(CutRequest(**{**vars(request), "into": str(anew)}))
            assert made == expected
            assert found == written(anew)
        assert kept._kept["d"]._process is process, "the same process has cut all of them"
        await kept.close()
        assert process.returncode is not None

    asyncio.run(run())


def test_what_cannot_be_is_said_as_by_a_process_of_its_own_and_it_goes_on(tmp_path):
    async def run():
        kept = Cutters()
        work = tmp_path / "long"
        work.mkdir()
        request = asked(work, "bert", 5000)
        with pytest.raises(InvalidArgument, match="does not hold together"):
            await kept.cut("d", request, work)
        work = tmp_path / "work"
        work.mkdir()
        assert (await kept.cut("d", asked(work, "bert", 9), work)).coverage == 1.0
        # One that is killed is another one's to answer.
        kept._kept["d"]._process.kill()
        work = tmp_path / "again"
        work.mkdir()
        assert (await kept.cut("d", asked(work, "bert", 9), work)).coverage == 1.0
        await kept.close()

    asyncio.run(run())


def test_few_are_kept_and_none_that_took_much_memory(tmp_path, monkeypatch):
    async def run():
        kept = Cutters(most=1)
        model = str(EXPORTS / "bert.onnx")
        await kept.begin("one", model)
        first = kept._kept["one"]._process
        await kept.begin("two", model)
        assert list(kept._kept) == ["two"]
        await first.wait()
        monkeypatch.setattr(cutters, "KEPT_BYTES", 1)
        work = tmp_path / "work"
        work.mkdir()
        await kept.cut("two", asked(work, "bert", 9), work)
        assert not kept._kept
        await kept.begin("three", model)
        third = kept._kept["three"]._process
        await kept.forget("three")
        assert third.returncode is not None
        await kept.close()

    asyncio.run(run())


def test_what_the_aggregator_takes_is_not_counted_as_a_process_s_own(tmp_path):
    async def run():
        kept = Cutters()
        work = tmp_path / "work"
        work.mkdir()
        request = asked(work, "bert", 9)
        large = np.ones(cutters.KEPT_BYTES, np.uint8)
        await kept.cut("d", request, work)
        assert list(kept._kept) == ["d"], large.size
        await kept.close()

    asyncio.run(run())


def test_a_process_that_cannot_begin_is_no_reason_not_to_cut(tmp_path):
    async def run():
        kept = Cutters()
        work = tmp_path / "work"
        work.mkdir()
        request = asked(work, "bert", 9)
        await kept.begin("d", "no such file")
        assert (await kept.cut("d", request, work)).coverage == 1.0
        await kept.close()

    asyncio.run(run())


def test_a_node_is_not_offered_again_what_its_process_was_given():
    given = []

    class Deliveries(NodeDeliveries):
        async def _give(self, node, group, seconds):
            given.append((node, [piece.name for piece in group]))

    def piece(name, digest="0"):
        return StoredPiece(name, digest, "int64", (2,), lambda: None)

    async def run():
        deliveries = Deliveries(None, None)

        async def give(node, life, *pieces):
            given.clear()
            done = []
            await deliveries.give(node, life, list(pieces), 10.0, done.append)
            assert sum(done) == 16 * len(pieces), "all of it is there then"
            return [names for _, names in given]

        assert await give("a", "1", piece("job/m/w"), piece("job/m/c")) == [["job/m/w", "job/m/c"]]
        assert await give("a", "1", piece("job/m/w"), piece("job/m/d")) == [["job/m/d"]]
        assert await give("a", "1", piece("job/m/w")) == []
        assert await give("b", "1", piece("job/m/w")) == [["job/m/w"]]
        assert await give("a", "1", piece("job/m/w", "other")) == [["job/m/w"]]
        assert await give("a", "2", piece("job/m/w", "other")) == [["job/m/w"]], "a new process has nothing"
        deliveries.freed("job/m/")
        assert await give("a", "2", piece("job/m/w", "other")) == [["job/m/w"]]
        deliveries.lost("a")
        assert await give("a", "2", piece("job/m/w", "other")) == [["job/m/w"]]

    asyncio.run(run())


def test_sessions_are_of_one_process():
    loaded = LoadedSessions()
    session = ("graph", ("w0=job/m/w",))
    loaded.add("a", "1", [session])
    assert ("a", "1", session) in loaded
    assert ("a", "1", ("graph", ())) not in loaded
    assert ("b", "1", session) not in loaded
    loaded.add("a", "2", [("other", ())])
    assert ("a", "1", session) not in loaded
    assert ("a", "2", session) not in loaded


def test_schedules_stay_on_the_disk_few_and_not_for_ever(tmp_path):
    folder = DeploymentFolder(tmp_path / "deployments" / "m-1")
    state = State(tmp_path)
    folders, now = DeploymentFolders(state), time.time()
    for number in range(6):
        folder.shape(f"s{number}").mkdir(parents=True)
        os.utime(folder.shape(f"s{number}"), (now - number, now - number))
    folders.used_shape(folder, "s4")
    folders.keep_shapes(folder, ["s5"], 3, 100.0, time.time())
    assert sorted(path.name for path in (folder.path / "shapes").iterdir()) == ["s0", "s1", "s4", "s5"]
    folders.keep_shapes(folder, ["s5"], 3, 100.0, time.time() + 1000.0)
    assert [path.name for path in (folder.path / "shapes").iterdir()] == ["s5"]
    state.close()


def test_a_process_that_lost_its_place_while_it_cut_ends_no_other(tmp_path, monkeypatch):
    class Process:
        """Has taken much memory, or says what is wrong, once it is let."""

        def __init__(self, *command, **options):
            self.free, self.closed, self.error = asyncio.Event(), 0, None
            made.append(self)

        async def ask(self, question):
            await self.free.wait()
            if self.error is not None:
                raise self.error
            return cutters.KEPT_BYTES + 1

        async def close(self):
            self.closed += 1

    async def run(error, returns):
        made.clear()
        kept = Cutters(most=1)
        cut = asyncio.create_task(kept.cut("one", CutRequest("one", ""), tmp_path))
        while not made:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        first, first.error = made[0], error
        others = [asyncio.create_task(kept.begin("two", "two"))]
        await asyncio.sleep(0)
        if returns:
            others.append(asyncio.create_task(kept.begin("one", "one")))
            await asyncio.sleep(0)
        first.free.set()
        assert await cut == "cut"
        assert list(kept._kept) == ["one" if returns else "two"]
        assert (made[-1].closed, first.closed) == (0, 1)
        for one in made:
            one.free.set()
        await asyncio.gather(*others)
        await kept.close()

    async def alone(request, folder):
        return "cut"

    made = []
    monkeypatch.setattr(cutters, "KeptProcess", Process)
    monkeypatch.setattr(cutters.planner, "ask", lambda request, folder: None)
    monkeypatch.setattr(cutters.planner, "said", lambda folder: "cut")
    monkeypatch.setattr(cutters.planner, "make", alone)
    for error in (None, InvalidArgument("no")):
        for returns in (False, True):
            asyncio.run(run(error, returns))


def test_a_tokenizer_beside_what_has_no_sessions_is_told_of(tmp_path):
    model = tmp_path / "bert.onnx"
    model.write_bytes((EXPORTS / "bert.onnx").read_bytes())
    (tmp_path / "cut").mkdir()
    request = CutRequest(str(model), str(tmp_path / "cut"), "replicate", nodes=NODES)
    assert not any("tokenizer" in note for note in cut_as_asked(request).notes)
    (tmp_path / "tokenizer.json").write_text("{}")
    (note,) = (note for note in cut_as_asked(request).notes if "tokenizer" in note)
    assert note.startswith("no sessions, so its tokenizer is not used: ")


@pytest.mark.parametrize(
    ("encoder", "decoder", "why"),
    [
        ("t5_encoder", "transformers_llama", "takes nothing that an encoder makes: deploy its file alone"),
        ("transformers_llama", "t5_decoder_merged", "the width 40, and the decoder takes 24"),
        ("t5_encoder", "t5_decoder_merged", ""),
    ],
)
def test_a_decoder_that_is_not_of_the_encoder_is_refused(tmp_path, encoder, decoder, why):
    folder = Path(__file__).parents[2] / "graphs/decoding/exports"
    model = tmp_path / "model.onnx"
    model.write_bytes((folder / f"{encoder}.onnx").read_bytes())
    (tmp_path / DECODER_FILES[0]).write_bytes((folder / f"{decoder}.onnx").read_bytes())
    (tmp_path / "cut").mkdir()
    request = CutRequest(str(model), str(tmp_path / "cut"), "replicate", nodes=NODES)
    if why:
        with pytest.raises(FailedPrecondition, match=why):
            cut_as_asked(request)
    else:
        assert any("an encoder" in note for note in cut_as_asked(request).notes)
