"""Federated runs from the command line and the client: follow, stop, resume, export, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import schools
from fleets import command, until
from schools import Schools

from edge_attention.core.errors import FailedPrecondition, InvalidArgument, NotFound
from edge_attention.core.messages.training import RunState
from edge_attention.core.rounds.sampling import holdout_rows
from edge_attention.demo.digits import DATASET

NODES = ("a", "b")
ENDLESS = 1_000_000
CLIENT = "edge_attention.cli.main"

JOB = """
name = "from-a-file"
dataset = "digits"
nodes = ["a", "b"]
strategy = "fedavg"
rounds = 4
holdout = 0.2

[model]
file = "digits.onnx"
loss = { name = "cross_entropy", output = "logits" }
inputs = { labels = "label" }

[local]
optimizer = { name = "sgd", lr = 0.5 }
batch = 16
steps = 10
"""


def job(rounds, **changed):
    return schools.job(rounds, **{"nodes": NODES, "holdout": 0.2, **changed})


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Schools(tmp_path_factory.mktemp("commands"), names=NODES) as own:
        own.allow(job(1), job(1, update="int8"))
        own.start()
        yield own


def cli(own, *arguments):
    done = command(CLIENT, "--aggregator", own.fleet.address, "train", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stop_and_resume_by_name(fleet):
    run = fleet.client.train(job(ENDLESS, name="halted", update="int8"))
    next(iter(run))
    said = cli(fleet, "stop", "halted")
    stopped = run.describe()
    assert stopped.state is RunState.STOPPED
    assert run.parameters().version == stopped.round >= 1
    assert said.startswith(f"run {run.id} is stopped, at round {stopped.round} of {ENDLESS}\n")
    assert "train resume" in said
    assert cli(fleet, "resume", "halted", "--detach").startswith(f"run {run.id} (halted) goes on")
    rounds = list(itertools.islice(run, stopped.round + 5))
    assert run.stop().round >= stopped.round + 5
    # It went on where it was, with what nodes kept: these are the rounds of a run that was never stopped.
    whole = fleet.client.train(job(stopped.round + 5, update="int8"))
    assert [(r.number, r.loss) for r in whole] == [(r.number, r.loss) for r in rounds]
    with pytest.raises(FailedPrecondition, match=f"run {whole.id} is finished"):
        whole.resume()


def test_ctrl_c_ends_the_watching_and_not_the_run(fleet):
    run = fleet.client.train(job(ENDLESS, name="watched"))
    code = f"from {CLIENT} import main; main()"
    arguments = ("--aggregator", fleet.fleet.address, "train", "watch", "watched")
    watcher = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in watcher.stdout:
        if line.startswith("round 3 of"):
            break
    assert re.match(rf"round 3 of {ENDLESS}: loss [\d.]+, version 3, [\d.]+ s, 2 nodes", line)
    os.kill(watcher.pid, signal.SIGINT)
    _, errors = watcher.communicate(timeout=120)
    assert watcher.returncode == 130
    assert f"stopped watching; run {run.id} goes on" in errors
    assert "Traceback" not in errors
    now = run.describe()
    assert now.state is RunState.RUNNING
    until(lambda: run.describe().round > now.round + 3, "more rounds")
    assert run.stop().state is RunState.STOPPED


def test_a_model_saved_as_onnx_has_the_accuracy_reported(fleet, tmp_path):
    run = fleet.client.train(job(15))
    evaluation = list(run)[-1].evaluation
    file = tmp_path / "trained.onnx"
    said = json.loads(cli(fleet, "export", run.id, "--onnx", str(file), "--json"))
    assert (said["run"], said["version"]) == (run.id, 15)
    rows = right = 0
    for node in NODES:
        share = fleet.shares[node]
        held = share.take(holdout_rows(len(share.label), 0.2, 0, node))
        rows += len(held.label)
        right += schools.right(file, held)
    assert evaluation.samples == rows > 100
    assert evaluation.metrics["correct"] == right > 0.85 * rows
    # The same model, of the parameters it was trained to, and of those it began with.
    parameters, session = run.parameters(), schools.values(file)
    assert parameters.keys() == session.keys()
    for name, array in parameters.items():
        np.testing.assert_array_equal(session[name], array)
    assert run.save_onnx(file, 0) == 0
    for name, array in schools.values(schools.MODEL).items():
        np.testing.assert_array_equal(schools.values(file)[name], array)


def test_what_a_node_does_not_release_fails_the_run_with_the_flag_that_would(fleet):
    """Clipping is another graph than those that were allowed."""
    local = job(1).local
    clipped = job(ENDLESS, local=type(local)(local.optimizer, local.batch, steps=2, clip=1.0))
    release = fleet.client.plan(clipped).job_release
    run = fleet.client.train(clipped)
    with pytest.raises(FailedPrecondition, match=rf"--allow-release {release}") as failed:
        list(run)
    assert re.search(r"node '[ab]'|[ab]:", str(failed.value))
    assert run.describe().version == 0
    assert len(list(fleet.client.train(job(2)))) == 2


def test_a_column_that_does_not_fit_is_one_error_before_the_run_starts(fleet):
    before = len(fleet.client.runs())
    model = job(1).model
    shape = r"is float32 \[8, 8\] a row, input 'labels' takes int64 \[\]"
    for inputs, error, said in (
        ({"labels": "image"}, InvalidArgument, rf"column 'image' of node 'a' {shape}"),
        ({"image": "pixels"}, NotFound, r"dataset 'digits' of node 'a' has no column 'pixels'.*image, label"),
        ({"picture": "image"}, InvalidArgument, r"model.inputs binds 'picture'.*image, labels"),
    ):
        inputs = {"labels": "label", **inputs}
        changed = type(model)(model.file, model.loss, inputs)
        with pytest.raises(error, match=said):
            fleet.client.train(job(2, model=changed))
    with pytest.raises(NotFound, match=rf"'a'.*no dataset 'digit'.*{DATASET}"):
        fleet.client.train(job(2, dataset="digit"))
    assert len(fleet.client.runs()) == before


def test_a_job_file_plans_and_trains(fleet, tmp_path):
    (tmp_path / "digits.onnx").write_bytes(schools.MODEL)
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    assert "--allow-release" in cli(fleet, str(file), "--plan")
    said = cli(fleet, str(file), "--watch")
    assert re.search(r"round 4 of 4: loss [\d.]+, version 4", said)
    assert re.search(r"round 4: held-out .*correct", said)
    assert re.search(r"run \S+ finished after round 4, version 4", said)
