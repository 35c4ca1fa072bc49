"""A job that comes again is not planned again; one that differs in anything that a plan follows from is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.engine import scratch
from aggregator.training import kept_plans
from aggregator.training.kept_plans import KeptPlans
from edge_attention.core.messages.training import (
    FederatedJob,
    FederatedModel,
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    SplitData,
    SplitJob,
    StrategySpec,
)

OPTIMIZER = OptimizerSpec("sgd", {"lr": 0.1})
MODEL = FederatedModel("a" * 64, LossSpec("cross_entropy", "logits"))
JOB = FederatedJob("job", MODEL, "rows", StrategySpec("fedavg"), LocalSpec(OPTIMIZER, batch=8, steps=3), 4)
FILES = {"a" * 64: Path("/blobs/a")}
ROWS = {"n": {"x": (8,)}}


class Maker:
    """Makes plans of two files; `made` counts them."""

    def __init__(self, size=10):
        self.made, self.size = 0, size

    async def __call__(self, job, files, folder, rows=None, nodes=()):
        self.made += 1
        (folder / "request.json").write_text("{}")
        for name in ("graph.onnx", "initial.safetensors"):
            (folder / name).write_bytes(bytes([self.made]) * self.size)
        return f"plan {self.made}"


def run(state, scenario, size=10):
    async def whole():
        maker = Maker(size)
        plans = KeptPlans(maker, state)

        async def plan(job=JOB, files=FILES, rows=ROWS):
            folder = await scratch.make(state)
            text = await plans(job, files, folder, rows)
            files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".json"}
            assert set(files) == {"graph.onnx", "initial.safetensors"}
            assert text == f"plan {files['graph.onnx'][0]}"
            await scratch.remove(folder)
            return files["initial.safetensors"][0]

        await scenario(plan, maker)

    asyncio.run(whole())


def test_a_job_that_comes_again_has_the_plan_that_was_made(tmp_path):
    async def scenario(plan, maker):
        # Its first folder has gone by then, as that of `train --plan` has.
        assert [await plan(), await plan(), await plan(replace(JOB))] == [1, 1, 1]
        elsewhere = {digest: Path("/other") for digest in FILES}
        assert await plan(files=elsewhere) == 1, "where a file is says nothing of what is in it"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "changed",
    [
        {"job": replace(JOB, local=replace(JOB.local, steps=4))},
        {"job": replace(JOB, seed=1)},
        {"files": {"b" * 64: Path("/blobs/a")}},
        {"rows": {"n": {"x": (9,)}}},
        {"rows": None},
    ],
)
def test_what_a_plan_follows_from_makes_another(tmp_path, changed):
    async def scenario(plan, maker):
        assert [await plan(), await plan(**changed), await plan(), await plan(**changed)] == [1, 2, 1, 2]

    run(tmp_path, scenario)


def test_those_unused_for_longest_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_plans, "PLANS", 2)

    async def scenario(plan, maker):
        one, two, three = (replace(JOB, seed=seed) for seed in (1, 2, 3))
        assert [await plan(one), await plan(two), await plan(one), await plan(three)] == [1, 2, 1, 3]
        assert len(list((tmp_path / scratch.SCRATCH).iterdir())) == 2
        assert [await plan(one), await plan(three), await plan(two)] == [1, 3, 4]

    run(tmp_path, scenario)


def test_what_is_too_large_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_plans, "PLANS_BYTES", 100)

    async def scenario(plan, maker):
        assert [await plan(), await plan()] == [1, 2]
        assert not list((tmp_path / scratch.SCRATCH).iterdir())

    run(tmp_path, scenario, size=60)


def test_where_there_is_no_room_to_keep_it_the_plan_is_given_all_the_same(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    async def scenario(plan, maker):
        with monkeypatch.context() as patched:
            patched.setattr(kept_plans, "_link", full)
            assert await plan() == 1
        assert await plan() == 2
        assert len(list((tmp_path / scratch.SCRATCH).iterdir())) == 1

    run(tmp_path, scenario)


def test_a_plan_of_a_split_is_by_what_nodes_have_free_now(tmp_path):
    split = SplitJob("s", MODEL, "layers", OPTIMIZER, 1, 1, SplitData("c" * 64))

    async def scenario(plan, maker):
        assert [await plan(split), await plan(split)] == [1, 2]

    run(tmp_path, scenario)


def test_none_is_kept_where_little_of_the_disk_is_left_and_those_that_are_go(tmp_path, monkeypatch):
    async def scenario(plan, maker):
        with monkeypatch.context() as patched:
            patched.setattr(kept_plans, "scarce", lambda folder: folder == tmp_path)
            assert [await plan(), await plan()] == [1, 2]
            assert not list((tmp_path / scratch.SCRATCH).iterdir())
        plans = KeptPlans(maker, tmp_path)
        for seed in (1, 2):
            folder = await scratch.make(tmp_path)
            await plans(replace(JOB, seed=seed), FILES, folder, ROWS)
            await scratch.remove(folder)
        assert len(list((tmp_path / scratch.SCRATCH).iterdir())) == 2
        await plans.let_go()
        assert not list((tmp_path / scratch.SCRATCH).iterdir())

    run(tmp_path, scenario)
