"""Models are planned in a process of their own: whatever they do to it, the aggregator goes on."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import reference
import small_job
import small_model
from house import House, until
from onnx import helper

from aggregator.bounds.bounds import GIB, MIB, PLANNING_PROCESS, ProcessBound
from aggregator.engine import apart
from aggregator.engine.scratch import SCRATCH
from aggregator.training import planner
from aggregator.training.job_recipes import FusionRecipe
from aggregator.training.services import Services
from edge_attention.core.errors import (
    DiskFull,
    GraphDied,
    InvalidArgument,
    InvalidGraph,
    OutOfMemory,
    ResourceExhausted,
)
from edge_attention.core.messages.attention import AttendRequest, ContextSpec
from edge_attention.core.messages.training import RunState
from edge_attention.jobs.job import Encoder

SPEC = ContextSpec("good", 2, 1, 4, 4)
RANDOM = np.random.default_rng(2)
KEYS, VALUES = (RANDOM.standard_normal((50, 1, 4)).astype(np.float32) for _ in "kv")


def swelling(doublings=40):
    """Encoder b with a shape that is doubled: a file of 4 KB of which inferring shapes makes terabytes."""
    model = onnx.load_model_from_string(small_job.MODELS["b"])
    for node in model.graph.node:
        node.output[:] = ["small" if name == "keys" else name for name in node.output]
    names = [f"doubled{i}" for i in range(doublings + 1)]
    model.graph.node.append(helper.make_node("Shape", ["x"], names[:1]))
    for one, two in itertools.pairwise(names):
        model.graph.node.append(helper.make_node("Concat", [one, one], [two], axis=0))
    model.graph.node.append(helper.make_node("Cast", names[-1:], ["cast"], to=1))
    model.graph.node.append(helper.make_node("ReduceSum", ["cast"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["small", "sum"], ["keys"]))
    return model.SerializeToString()


def job(house, model=None):
    """The small fusion job, with `model` as b's encoder; its files lie in the state."""
    models = small_job.MODELS | ({"b": model} if model else {})
    encoders = tuple(Encoder(lab, "x", models[lab], {"x": "x"}) for lab in "ab")
    made, files = small_job.job(encoders=encoders)
    for data in files.values():
        house.state.put_blob(data)
    return made


def planners():
    """The processes that plan for this one."""
    found = []
    for child in psutil.Process().children():
        try:
            if "aggregator.training.planner" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


async def beside(house, work):
    """What `work` raised, or gave; somebody attends all the while and gets exact answers."""
    house.node("a", datasets=small_job.datasets("a"))
    await house.contexts.create(SPEC)
    await house.appender.append("good", "a", KEYS, VALUES)
    queries = RANDOM.standard_normal((1, 2, 4)).astype(np.float32)
    scores = reference.scores(queries, KEYS, 0.5)
    truth, _ = reference.attend(scores, VALUES)
    going = asyncio.create_task(work)
    attends = 0
    while not going.done():
        answer = await house.attender.attend(AttendRequest("good", queries, deadline_seconds=20))
        assert answer.exact
        np.testing.assert_allclose(answer.out.array, truth, atol=1e-5)
        attends += 1
        await asyncio.sleep(0.01)
    assert attends > 3
    assert not planners()
    assert not list((house.state.directory / SCRATCH).glob("*"))
    return going.exception() or going.result()


async def killed(work):
    going = asyncio.create_task(work)
    await until(planners)
    await asyncio.sleep(0.3)
    os.kill(planners()[0].pid, signal.SIGKILL)
    return await going


@pytest.mark.parametrize("kind", ["fusion", "federated"])
def test_a_process_that_is_killed_fails_its_job_and_nothing_else(kind):
    with House(plan=planner.make) as house:
        made = job(house) if kind == "fusion" else small_model.job(house)
        error = asyncio.run(beside(house, killed(house.runs.start(made))))
        assert isinstance(error, GraphDied)
        assert "planning the model: the process that did it was ended (signal 9, Killed)" in error.message
        assert house.runs.list() == ()


@pytest.mark.parametrize(
    ("bound", "error", "said"),
    [
        ({"memory": 512 * MIB}, OutOfMemory, "bound planning-memory: .* more than 536,870,912 bytes"),
        (
            {"memory": 4 * GIB, "processor_seconds": 1},
            InvalidGraph,
            "bound planning-processor-seconds: ",
        ),
        ({"memory": 4 * GIB, "seconds": 1.5}, InvalidGraph, "bound planning-seconds: .* 2 s"),
    ],
)
def test_a_model_that_takes_too_much_fails_its_job_and_nothing_else(monkeypatch, bound, error, said):
    monkeypatch.setattr(planner, "PLANNING_PROCESS", replace(PLANNING_PROCESS, **bound))
    with House(plan=planner.make) as house:
        raised = asyncio.run(beside(house, house.runs.plan(job(house, swelling()))))
        with pytest.raises(error, match=said):
            raise raised


def test_what_no_model_could_mend_needs_no_process():
    async def never(*_):
        raise AssertionError

    with House(plan=never) as house, pytest.raises(InvalidArgument, match="rounds is 0"):
        asyncio.run(house.runs.plan(replace(job(house), rounds=0)))


def test_a_run_that_goes_on_is_not_planned_again():
    going = False

    async def planned(*given):
        assert not going
        return await planner.make_here(*given)

    async def scenario(house):
        nonlocal going
        made = job(house)
        planned = (await house.runs.plan(made)).graphs
        released = sorted({g.release for g in planned if g.release})
        for lab in "ab":
            house.node(lab, datasets=small_job.datasets(lab), releases=released)
        run = (await house.runs.start(made)).id
        await until(lambda: house.runs.describe(run).round >= 1)
        await house.runs.stop(run)
        going = True
        await house.runs.resume_run(run)
        await until(lambda: house.runs.describe(run).state is not RunState.RUNNING)
        return house.runs.describe(run)

    with House(plan=planned) as house:
        ended = asyncio.run(scenario(house))
        assert (ended.state, ended.round) == (RunState.FINISHED, 6), ended.detail
        assert not (house.parameters.folder(ended.id) / "plan").exists()


def test_a_run_of_an_earlier_release_is_planned_once_more():
    with House() as house:
        services = Services(
            house.state, house.parameters, house.membership, house.trips, house.bulk, None,
            house.run_metrics, 5.0, house.runner,
        )  # fmt: skip
        made = job(house)
        first, second = FusionRecipe(made, services), FusionRecipe(made, services)
        asyncio.run(first.recall("run", {}))
        assert (house.parameters.folder("run") / "plan" / "initial.safetensors").exists()
        asyncio.run(second.recall("run", {"fusion_plan": first._plan.to_json()}))
        assert second.released() == first.released()
        for graph in first.released():
            assert not graph.digest or house.state.has_blob(graph.digest)


SLEEPER = """
import asyncio
from aggregator.bounds.bounds import ProcessBound
from aggregator.engine import apart
asyncio.run(apart.run(ProcessBound("t", 60, 60, 1 << 30), "t", "http.server", "0", "--bind", "127.0.0.1"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the parent's end is Linux'")
def test_it_ends_with_the_process_it_works_for():
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as parent:
        children = []
        try:
            process = psutil.Process(parent.pid)
            while not (children := [c for c in process.children() if bound_to(c.pid)]):
                assert parent.poll() is None
        finally:
            parent.kill()
        psutil.wait_procs(children, 20)
        assert not children[0].is_running()


def badness(pid):
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def bound_to(pid):
    """Whether it has taken its bounds upon itself: the last of them, too."""
    process = psutil.Process(pid)
    core = process.rlimit(psutil.RLIMIT_CORE)
    return process.rlimit(psutil.RLIMIT_DATA) == (1 << 30, 1 << 30) and core == (0, 0)


def test_a_process_has_its_bounds_and_comes_after_others(monkeypatch):
    found = {}

    async def scenario():
        bound = ProcessBound("t", 60.0, 77, 1 << 30)
        work = asyncio.create_task(apart.run(bound, "t", "http.server", "0", "--bind", "127.0.0.1"))
        me = psutil.Process()
        # Not the only child: another test of this process may have left one that ends when it is idle.
        await until(lambda: any(bound_to(child.pid) for child in me.children()))
        (child,) = [child for child in me.children() if bound_to(child.pid)]
        found["cpu"], found["core"] = child.rlimit(psutil.RLIMIT_CPU), child.rlimit(psutil.RLIMIT_CORE)
        found["nice"] = child.nice() - me.nice()
        found["oom"] = badness(child.pid)
        work.cancel()
        await asyncio.wait([work])
        assert not child.is_running()

    asyncio.run(scenario())
    assert found == {"cpu": (77, 82), "core": (0, 0), "nice": 5, "oom": 700}


FULL = """
from edge_attention.core.errors import EdgeAttentionError
try:
    raise {0}
except EdgeAttentionError:
    open("/dev/full", "wb", buffering=0).write(b"what it was")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize("raised", ["OSError(28, 'full')", "EdgeAttentionError('said in a file')"])
def test_a_process_whose_files_find_no_room_says_so(raised, tmp_path):
    """It ended with 1, and a traceback in the log."""
    (tmp_path / "writes.py").write_text(FULL.format(raised))
    bound = ProcessBound("t", 60.0, 77, 1 << 30)
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    with pytest.raises(DiskFull, match="t: the disk of the state folder is full; free space there"):
        asyncio.run(apart.run(bound, "t", "writes", environment={"PYTHONPATH": path}))


@pytest.mark.parametrize("refused", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_process_that_the_system_refuses_is_an_error_with_what_to_do(refused, monkeypatch):
    async def no(*_, **__):
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no)
    bound = ProcessBound("t", 60.0, 77, 1 << 30)
    for begin in (apart.run, apart.start):
        given = ("what it does",) if begin is apart.run else ()
        with pytest.raises(ResourceExhausted, match=r"start a process for it: .*; (let it|free memory)"):
            asyncio.run(begin(bound, *given, "http.server"))
