"""Neither daemon's event loop is held over 20 ms: what hashes, reads or decodes much is in threads.

The fixture `loops` looks at every test of this folder; these do what would hold a loop the longest.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import fleets
import labs
import many_rounds
import numpy as np
from fleets import Fleet
from loops import Step, Steps

from aggregator.store.parameters import ParameterStore
from aggregator.store.state import State
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import RunState

MANY = 10_000


def test_the_watcher_sees_a_step_that_computes_and_one_that_waits(loops):
    """And not one in which other threads do either, nor one that is stopped meanwhile."""
    loops.new()
    fleets.command_line(
        "# in place of aggregator.main\n"
        "import asyncio, os, signal, subprocess, time\n"
        "async def computes():\n"
        "    end = time.thread_time() + 1.0\n"
        "    while time.thread_time() < end: pass\n"
        "async def waits():\n"
        "    time.sleep(1.0)\n"
        "async def is_stopped():\n"
        "    subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -CONT {os.getpid()}'])\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "async def all():\n"
        "    await asyncio.sleep(0.05)\n"
        "    for one in (computes, waits, is_stopped):\n"
        "        await asyncio.create_task(one())\n"
        "        await asyncio.to_thread(time.sleep, 0.05)\n"
        "asyncio.run(all())\n"
    )
    computed, waited = loops.new()
    assert "computes" in computed.step
    assert computed.cpu > 40
    assert "waits" in waited.step
    assert waited.held > 40 > waited.cpu
    assert waited.stacks[-1][-1].endswith(" waits")


def test_a_short_wait_counts_where_it_comes_again(tmp_path):
    def step(name, held, cpu, frame="x.py:1 read"):
        return Step(0.0, 1, [], held, held, cpu, name, [[frame]], [], 0.0)

    steps = Steps(tmp_path)
    computed, long = step("Task-1: a", 30, 30), step("Task-2: b", 150, 0)
    assert steps.wrong([computed, long]) == [computed, long]
    assert steps.wrong([step("Task-3: c", 40, 1), step("Task-3: c", 40, 1, "x.py:9 write")]) == []
    again = step("Task-44: c", 40, 1)
    assert steps.wrong([again]) == [again]
    assert steps.wrong([step("d", 900, 0, "lib/base_events.py:5 shutdown_default_executor")]) == []


def test_a_large_append_and_what_reads_it_hold_no_loop(tmp_path):
    spec = {"query_heads": 4, "key_heads": 4, "key_dim": 128, "value_dim": 128}
    count = 64 * 1024 * 1024 // (4 * 4 * 256)
    keys, values = fleets.tokens(count, spec)
    with Fleet(tmp_path, state=True) as fleet:
        fleet.nodes("a", "b")
        with fleet.client(timeout=300) as client:
            context = client.create_context("c", **spec)
            context.append(keys, values)
            asked = fleets.queries(3, spec)
            answer = context.attend(asked, deadline=60)
            assert answer.exact
            assert np.isfinite(answer.out).all()
            context.drop()


def test_a_run_of_ten_thousand_rounds_is_taken_up_and_holds_no_loop(tmp_path):
    files = labs.write(tmp_path)
    with Fleet(tmp_path, state=True) as fleet, fleet.client(patience=120) as client:
        job = labs.job(MANY + 5)
        planned = client.plan(job)
        for lab in labs.LABS:
            released = labs.releases(client, lab, planned)
            fleet.start_node(lab, "--threads", "1", data=files[lab], allow_release=released, wait=False)
        for lab in labs.LABS:
            fleet.wait_ready(lab)
        run = client.train(job)
        fleets.until(lambda: run.describe().round >= 2, "two rounds", 60)
        fleet.kill(AGGREGATOR)
        with State(fleet.state) as state:
            many_rounds.grow(state, run.id, MANY)
        fleet.start_aggregator()
        fleets.until(lambda: run.describe().state is RunState.FINISHED, "the end", 120)
        lines = (fleet.state / "runs" / run.id / "record.jsonl").read_text().splitlines()
        assert [json.loads(line)["number"] for line in lines] == list(range(1, MANY + 6))
        assert run.parameters().version == MANY + 5


class OneEach(Fleet):
    """Its aggregator begins a segment at each append that names another node than the one before."""

    aggregator_module = "tests.e2e.segment_each"


def test_an_attend_over_many_segments_holds_no_loop_and_nobody_up(tmp_path):
    """As an earlier release has left them. Whose tokens were appended in turn since then has one a node."""
    spec = {"query_heads": 4, "key_heads": 2, "key_dim": 16, "value_dim": 16}
    keys, values = fleets.tokens(600, spec)
    asked = fleets.queries(1, spec)
    with OneEach(tmp_path) as fleet:
        fleet.nodes("a", "b")
        with fleet.client(timeout=300) as client:
            many = client.create_context("many", **spec)
            for at in range(len(keys)):
                many.append(keys[at : at + 1], values[at : at + 1], node="ab"[at % 2])
            few = client.create_context("few", **spec)
            few.append(keys, values)
            with ThreadPoolExecutor(1) as beside:
                answer = beside.submit(many.attend, asked, deadline=120)
                good = 0
                while not answer.done():
                    assert few.attend(asked).exact
                    good += 1
            fleets.exact(answer.result(), asked, keys, values)
            assert good > 1, "others are answered meanwhile"
            assert len(many.describe().segments) == len(keys)


def test_parameters_of_100_mb_are_read_after_a_restart_and_hold_no_loop(tmp_path):
    """The file is verified anew by the process that has just begun."""
    files = labs.write(tmp_path)
    with Fleet(tmp_path, state=True) as fleet, fleet.client(patience=120) as client:
        job = labs.job(2)
        planned = client.plan(job)
        for lab in labs.LABS:
            fleet.start_node(
                lab, data=files[lab], allow_release=labs.releases(client, lab, planned), wait=False
            )
        run = client.train(job)
        fleets.until(lambda: run.describe().state is RunState.FINISHED, "the end", 120)
        fleet.kill(AGGREGATOR)
        large = np.random.default_rng(1).standard_normal(25_000_000, np.float32)
        with State(fleet.state) as state:
            ParameterStore(state).commit(run.id, 3, 3, {"large": large}, {})
        fleet.start_aggregator()
        found = run.parameters()
        assert found.version == 3
        np.testing.assert_array_equal(found["large"], large)
