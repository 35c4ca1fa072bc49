"""`edge-attention simulate`: many nodes in a few processes, as real ones to the aggregator."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from edge_attention import Client
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.core.messages.training import RunState
from edge_attention.graphs.builders import attention_rows
from edge_attention.jobs.job_file import read_job
from edge_attention.simulation.partition import RowSharing, partition
from edge_attention.tables.reading import read_table

JOB = """
name = "first"
dataset = "rows"
strategy = "fedavg"
rounds = 3
holdout = 0.2
evaluate_every = 3
[model]
file = "model.onnx"
loss = { name = "cross_entropy", output = "logits" }
inputs = { labels = "label" }
[local]
optimizer = { name = "sgd", lr = 0.1 }
batch = 32
epochs = 1
"""
SCENARIO = """
[[slow]]
nodes = "25%"
times = 2.0
[[failing]]
nodes = 2
every = 2.0
down = 0.5
[[late]]
nodes = ["node-1"]
after = 2.0
"""


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    centres = random.standard_normal((3, 8))
    label = random.integers(3, size=800)
    features = (centres[label] + random.standard_normal((800, 8))).astype(np.float32)
    np.savez(tmp_path / "rows.npz", features=features, label=label)
    (tmp_path / "model.onnx").write_bytes(attention_rows(features=8, classes=3))
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    return tmp_path


def simulate(folder, *words):
    command = [sys.executable, "-m", "edge_attention.cli.main", "simulate", "job.toml", "--data", "rows.npz"]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_job_over_many_uneven_slow_failing_and_late_nodes(folder):
    words = ["--split", "dirichlet", "--by", "label", "--alpha", "0.5", "--scenario", "scenario.toml"]
    done = simulate(folder, "--nodes", "12", *words, "--json")
    assert done.returncode == 0, done.stderr
    *rounds, told = done.stdout.split("\n{\n")
    run = json.loads(rounds[0].splitlines()[-1])
    assert (run["state"], run["round"]) == ("finished", 3)
    assert run["samples"]["complete"] <= 800
    assert "--store" not in " ".join(run["notes"])  # advice that nodes like these cannot take
    simulated = json.loads("{" + told)["simulated"]
    assert {name: simulated[name] for name in ("nodes", "slow", "failing", "late")} == {
        "nodes": 12,
        "slow": 3,
        "failing": 2,
        "late": 1,
    }
    left = [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())
    ]
    assert not left


def parameters_of(state, run):
    """What a run kept in `state`, by an aggregator that comes later."""
    with LocalFleet(state) as fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            return dict(client.run(run).parameters())


def test_parameters_are_to_the_bit_those_of_a_fleet_of_daemons_with_these_rows(folder):
    found = {}
    for processes in ("0", "2"):
        state = folder / f"state-{processes}"
        words = ["--nodes", "3", "--seed", "5", "--processes", processes, "--state", str(state), "--json"]
        done = simulate(folder, *words)
        assert done.returncode == 0, done.stderr
        run = json.loads(done.stdout.split("\n{\n")[0].splitlines()[-1])["id"]
        found[processes] = parameters_of(state, run)

    table = read_table(folder / "rows.npz")
    with LocalFleet() as fleet:
        fleet.start_aggregator()
        for number, rows in enumerate(partition(table, RowSharing(), 3, 5), 1):
            file = folder / f"{number}.npz"
            with np.load(folder / "rows.npz") as arrays:
                np.savez(file, **{column: array[rows] for column, array in arrays.items()})
            name = f"node-{number}"
            fleet.start_node(name, "--threads", "1", "--allow-own-data", data={"rows": file})
        with Client(fleet.address) as client:
            run = client.train(read_job(folder / "job.toml"))
            assert [event.number for event in run] == [1, 2, 3]
            found["daemons"] = dict(run.parameters())
    for how in ("0", "2"):
        assert found[how].keys() == found["daemons"].keys()
        for name, array in found["daemons"].items():
            np.testing.assert_array_equal(found[how][name], array, err_msg=f"{how} processes: {name}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "500"], "800 rows are too few for 500 nodes"),
        (["--split", "dirichlet"], "rows shared by dirichlet need a column"),
        (["--split", "column", "--by", "nothing"], "no column 'nothing'; it has features, label"),
        (["--data", "none.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_simulated_is_said_before_anything_starts(folder, words, said):
    done = simulate(folder, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


BROKEN = """
import asyncio, sys
from edge_attention.cli import main, simulate
from edge_attention.client.background import BACKGROUND
from edge_node import many

whole, watch, following = many.ManyNodes._live, simulate.watch, asyncio.Event()

def watched(*words, **options):
    BACKGROUND._loop.call_soon_threadsafe(following.set)
    watch(*words, **options)

async def live(self, node):
    if node.name == "node-2":
        if sys.argv[1] == "later":
            here = asyncio.ensure_future(whole(self, node))
            await following.wait()
            here.cancel()
        raise ValueError("a disk is on fire")
    await whole(self, node)

many.ManyNodes._live = live
simulate.watch = watched
sys.argv = ["edge-attention", *sys.argv[2:]]
main.main()
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_the_nodes_have_ended_with_ends_the_command(folder, when):
    # A run would wait for them for 600 s.
    job = (folder / "job.toml").read_text().replace("rounds = 3", "rounds = 100000")
    (folder / "job.toml").write_text(job)
    (folder / "broken.py").write_text(BROKEN)
    words = ["simulate", "job.toml", "--data", "rows.npz", "--nodes", "3", "--json"]
    command = [sys.executable, str(folder / "broken.py"), when, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "edge-attention: the simulated nodes have ended: ValueError: a disk is on fire\n"


def test_a_process_of_nodes_that_is_killed_ends_the_command(folder):
    job = (folder / "job.toml").read_text().replace("rounds = 3", "rounds = 100000")
    (folder / "job.toml").write_text(job)
    words = ["simulate", "job.toml", "--data", "rows.npz", "--nodes", "2", "--processes", "2", "--json"]
    command = [sys.executable, "-m", "edge_attention.cli.main", *words]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()  # a round is over
        hosts = [p for p in psutil.Process(running.pid).children() if "edge_node.many" in p.cmdline()]
        assert len(hosts) == 2
        hosts[0].kill()
        _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert re.match(r"edge-attention: nodes [12] ended:", err), err


@contextmanager
def simulating(folder, *words):
    """A simulation under way that keeps its run, of which a round is over; the run's id and that round."""
    words = [
        "simulate",
        "job.toml",
        "--data",
        "rows.npz",
        "--nodes",
        "2",
        "--state",
        "kept",
        "--json",
        *words,
    ]
    command = [sys.executable, "-m", "edge_attention.cli.main", *words]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        first = json.loads(running.stdout.readline())
        yield running, first["run"], first["number"]


def test_a_run_that_is_kept_and_interrupted_is_one_that_can_go_on(folder):
    job = (folder / "job.toml").read_text()
    (folder / "job.toml").write_text(job.replace("rounds = 3", "rounds = 100000"))
    with simulating(folder) as (running, run, _):
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert f"interrupted: run {run} is stopped after round" in err
    assert f"--resume {run}" in err
    with LocalFleet(folder / "kept") as fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            stopped = client.run(run).info
    assert (stopped.state, stopped.detail) == (RunState.STOPPED, "stopped on request")
    # It goes on after its last round, and once more, as its process is killed.
    with simulating(folder, "--resume", run) as (running, again, number):
        assert (again, number) == (run, stopped.round + 1)
        running.kill()
    with simulating(folder, "--resume", run) as (running, again, _):
        assert again == run
        running.kill()
    other = simulate(folder, "--nodes", "2", "--state", "kept", "--resume", run, "--seed", "1")
    assert "is not the one this run began with" in other.stdout + other.stderr, "others have its rows"
    with simulating(folder, "--resume", run) as (running, *_):
        running.kill()
    # Another run does not have that one train beside it.
    (folder / "job.toml").write_text(job)
    done = simulate(folder, "--nodes", "2", "--state", "kept", "--json")
    assert done.returncode == 0, done.stderr
    assert f"run {run} was cut off after round" in done.stderr
    assert json.loads(done.stdout.splitlines()[0])["run"] != run


def test_a_run_to_go_on_with_is_one_of_a_folder(folder):
    done = simulate(folder, "--resume", "first")
    assert done.returncode == 2
    assert "--resume takes a run of --state FOLDER" in done.stderr
