"""Neither daemon's event loop is held over 20 ms: what hashes, reads or decodes much is in threads."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fleets
import labs
import many_rounds
import numpy as np
import pytest
from fleets import Fleet

from aggregator.store.state import State
from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import RunState

MANY = 10_000
WATCHER = Path(__file__).parent / "watcher"


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Of the daemons started from now on: steps of their loops of more than 20 ms since a moment, by pid."""
    folder = tmp_path / "steps"
    folder.mkdir()
    path = os.pathsep.join(filter(None, (str(WATCHER), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("EDGE_LOOP_WATCH", str(folder))

    def since(moment):
        lines = [f"{file.name} {line}" for file in folder.iterdir() for line in file.read_text().splitlines()]
        return [line for line in lines if float(line.split()[1]) >= moment]

    return since


def test_the_watcher_sees_a_step_that_takes_long(steps):
    before = time.time()
    code = (
        "import asyncio, time\n"
        "async def long():\n"
        "    end = time.thread_time() + 0.05\n"
        "    while time.thread_time() < end: pass\n"
        "    await asyncio.to_thread(time.sleep, 0.05)\n"
        "asyncio.run(long())\n"
    )
    fleets.command_line(code)
    (line,) = steps(before)
    assert "long" in line


def test_a_large_append_and_what_reads_it_hold_no_loop(tmp_path, steps):
    spec = {"query_heads": 4, "key_heads": 4, "key_dim": 128, "value_dim": 128}
    count = 64 * 1024 * 1024 // (4 * 4 * 256)
    keys, values = fleets.tokens(count, spec)
    with Fleet(tmp_path, state=True) as fleet:
        fleet.nodes("a", "b")
        since = time.time()
        with fleet.client(timeout=300) as client:
            context = client.create_context("c", **spec)
            context.append(keys, values)
            asked = fleets.queries(3, spec)
            answer = context.attend(asked, deadline=60)
            assert answer.exact
            assert np.isfinite(answer.out).all()
            context.drop()
        held = steps(since)
    assert not held, "\n".join(held)


def test_a_run_of_ten_thousand_rounds_is_taken_up_and_holds_no_loop(tmp_path, steps):
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
        since = time.time()
        fleet.start_aggregator()
        fleets.until(lambda: run.describe().state is RunState.FINISHED, "the end", 120)
        lines = (fleet.state / "runs" / run.id / "record.jsonl").read_text().splitlines()
        assert [json.loads(line)["number"] for line in lines] == list(range(1, MANY + 6))
        assert run.parameters().version == MANY + 5
        held = steps(since)
    assert not held, "\n".join(held)


class OneEach(Fleet):
    """Its aggregator begins a segment at each append that names another node than the one before."""

    aggregator_module = "tests.e2e.segment_each"


def test_an_attend_over_many_segments_holds_no_loop_and_nobody_up(tmp_path, steps):
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
            since = time.time()
            with ThreadPoolExecutor(1) as beside:
                answer = beside.submit(many.attend, asked, deadline=120)
                good = 0
                while not answer.done():
                    assert few.attend(asked).exact
                    good += 1
            fleets.exact(answer.result(), asked, keys, values)
            assert good > 1, "others are answered meanwhile"
            assert len(many.describe().segments) == len(keys)
        held = steps(since)
    assert not held, "\n".join(held)
