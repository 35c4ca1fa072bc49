"""Cut models over real nodes: exact, also where nodes are killed, come back, or return nonsense."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from small_cut import SmallCut

from aggregator.engine.recipe import Recipe
from aggregator.inference.runner import ModelRunner
from aggregator.server import ServerSettings, running
from edge_attention.core.errors import DeadlineExceeded, InvalidTensor, NotFound

pytestmark = pytest.mark.e2e


class Fleet:
    """An aggregator in this process, whose runner a test uses, and real nodes, which can be killed."""

    def __init__(self, engine, port, folder):
        self.engine, self.port, self.folder = engine, port, folder
        self.runner = ModelRunner(engine)
        self.processes = {}

    def cut(self, **options):
        return SmallCut(self.folder / "cut", **options)

    async def start(self, *names, module="edge_node.main", flags=()):
        for name in names:
            places = ("--aggregator", f"127.0.0.1:{self.port}", "--store", str(self.folder / name))
            command = [sys.executable, "-c", f"from {module} import main; main()", *places]
            command += ["--name", name, "--threads", "1", *flags]
            self.processes[name] = await asyncio.to_thread(
                subprocess.Popen, command, stderr=subprocess.DEVNULL
            )
        assert await self.engine.trips.all_live(names, 60.0, lambda sentence: None)

    async def kill(self, name):
        process = self.processes.pop(name)
        process.kill()
        await asyncio.to_thread(process.wait)

    def sent(self, name):
        return self.engine.link.bytes_sent[name]

    async def exact(self, cut, seed=0, name="m", seconds=60.0):
        feeds = cut.feeds(seed)
        answer = await self.runner.infer(name, "s", feeds, seconds)
        assert answer.exact
        assert answer.coverage == 1.0
        np.testing.assert_allclose(answer.results["out"], cut.whole(feeds), atol=2e-5)
        return answer


def run(scenario, tmp_path, lease=4.0):
    async def whole():
        engines = []

        def capture(engine):
            engines.append(engine)
            return Recipe("test")

        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, lease, 60.0)
        async with running(settings, (capture,)) as port:
            fleet = Fleet(engines[0], port, tmp_path)
            try:
                return await scenario(fleet)
            finally:
                for name in list(fleet.processes):
                    await fleet.kill(name)

    return asyncio.run(whole())


def test_requests_run_through_parts_many_at_a_time_the_same_bits_each_time(tmp_path):
    async def scenario(fleet):
        await fleet.start("a", "b")
        cut, said = fleet.cut(parts=3), []
        held = {0: ["a"], 1: ["b"], 2: ["a"]}
        await fleet.runner.prepare(
            "m", "s", cut.schedule, cut, held, lambda *one: said.append(one), seconds=60
        )
        assert fleet.runner.holds("m") == {"s": {0: ("a",), 1: ("b",), 2: ("a",)}}
        for node in "ab":
            totals = {total for name, _, total in said if name == node}
            assert [done for name, done, _ in said if name == node] == [0, *totals], "nothing, then all"
        one = await fleet.exact(cut)
        answers = await asyncio.gather(*(fleet.exact(cut, seed) for seed in [0, 1, 2, 3] * 5))
        same = [answer.results["out"].tobytes() for answer in answers[::4]]
        assert set(same) == {one.results["out"].tobytes()}
        assert set(one.sent) == set(one.received) == {"a", "b"}
        assert {"part 0", "part 1", "part 2", "wait", "fold", "turn", "all"} <= set(one.seconds)
        with pytest.raises(InvalidTensor, match="'x' is float64"):
            await fleet.runner.infer("m", "s", {"x": cut.feeds()["x"].astype(np.float64)}, 9)
        await fleet.runner.release("m")
        with pytest.raises(NotFound):
            await fleet.exact(cut)

    run(scenario, tmp_path)


def test_a_part_that_nobody_can_hold_is_waited_for_until_the_deadline_and_named(tmp_path):
    async def scenario(fleet):
        await fleet.start("a")
        cut = fleet.cut()
        with pytest.raises(DeadlineExceeded, match=r"no node holds part 1 .* node 'z' is never seen"):
            await fleet.runner.prepare("m", "s", cut.schedule, cut, {0: ["a"], 1: ["z"]}, seconds=5.0)

    run(scenario, tmp_path)


def test_killed_nodes_cost_time_and_not_the_answer(tmp_path):
    """kill -9 in the middle of requests: a replica goes on, or another node is given the part; a node that is
    started again has its weights still."""

    async def scenario(fleet):
        await fleet.start("a", "b", "c", "d")
        cut = fleet.cut(inner=24_000)
        await fleet.runner.prepare("m", "s", cut.schedule, cut, {0: ["a"], 1: ["b", "c"]}, seconds=60)
        await fleet.exact(cut)

        async def while_it_runs(change, count=12):
            asking = [asyncio.create_task(fleet.exact(cut, seed)) for seed in range(count)]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            await change
            return await asyncio.gather(*asking)

        answers = await while_it_runs(fleet.kill("b"))
        assert {"a", "c"} <= {node for answer in answers for node in answer.sent}
        weights = sum(array.nbytes for array in cut.weights.values()) // 2
        before = fleet.sent("d") + fleet.sent("c")
        await while_it_runs(fleet.kill("a"))
        await fleet.exact(cut)  # the others may all have been over before it went
        assert fleet.runner.holds("m")["s"][0] in (("c",), ("d",))
        assert fleet.sent("d") + fleet.sent("c") > before + weights, "part 0 is given to another"

        before = fleet.sent("a")
        await fleet.start("a")
        while "a" not in fleet.runner.holds("m")["s"][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert fleet.sent("a") - before < weights / 10, "what it has on its disk is not sent again"
        for node in "cd":
            await fleet.kill(node)
        await fleet.start("b")
        await fleet.exact(cut, 5)

    run(scenario, tmp_path, lease=2.0)


def test_boundaries_larger_than_a_message_go_in_bulk_both_ways(tmp_path):
    async def scenario(fleet):
        await fleet.start("a", "b")
        cut = fleet.cut(rows=150_000, layers=2)
        await fleet.runner.prepare("m", "s", cut.schedule, cut, {0: ["a"], 1: ["b"]}, seconds=60)
        answer = await fleet.exact(cut)
        assert max(one.sent for one in answer.segments) > 4 << 20
        assert max(one.received for one in answer.segments) > 4 << 20
        one, _ = await asyncio.gather(fleet.exact(cut), fleet.exact(cut, 1))
        assert one.results["out"].tobytes() == answer.results["out"].tobytes()
        assert not list((fleet.engine.state.directory / "spool").iterdir())

    run(scenario, tmp_path)
