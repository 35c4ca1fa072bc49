"""Training over real processes, some of which are killed: it ends where the uninterrupted run ends."""

from __future__ import annotations

import concurrent.futures
import json
import re
import threading

import labs
import numpy as np
import onnxruntime
import pytest
from fleets import command, states, until
from labs import LABS

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import OptimizerSpec, RunState, TrainingRun

LEASE = ("--lease", "3")
ROUNDS = 60


class Lab:
    """A fleet with a node for each lab; its client; what the uninterrupted run found."""

    def __init__(self, own):
        self.fleet, self.files = own, labs.write(own.folder)
        self.client = own.client(patience=60)
        self.planned = self.client.plan(labs.job(ROUNDS))
        for lab in LABS:
            self.start(lab, wait=False)
        for lab in LABS:
            own.wait_ready(lab)

    def start(self, lab, wait=True):
        released = [self.planned.job_release]
        self.fleet.start_node(lab, "--threads", "1", data=self.files[lab], allow_release=released, wait=wait)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    from fleets import Fleet

    with Fleet(tmp_path_factory.mktemp("labs"), *LEASE, state=True) as own:
        yield (made := Lab(own))
        made.client.close()


@pytest.fixture(scope="module")
def uninterrupted(lab):
    run = lab.client.train(labs.job(ROUNDS))
    rounds = list(run)
    assert [r.number for r in rounds] == list(range(1, ROUNDS + 1))
    return rounds, dict(run.parameters())


def follow(run, at, do):
    """All of the run's events; `do()` once round `at` has come. What it waited for, as it was told."""
    rounds, waits, done = [], [], []
    for event in run.events():
        if isinstance(event, TrainingRun):
            if event.waiting:
                waits.append(event.waiting)
                assert run.waiting == event.waiting
            continue
        rounds.append(event)
        if event.number >= at and not done:
            done.append(do())
    return rounds, waits


def until_lost(lab, run, node):
    """By a handle of its own: what the other one last heard is what `follow` holds against its events."""
    own = lab.client.run(run.id)
    until(lambda: f"'{node}' (lost)" in own.describe().waiting)


def same(rounds, run, uninterrupted):
    whole, parameters = uninterrupted
    assert run.describe().state is RunState.FINISHED
    assert [r.number for r in rounds] == [r.number for r in whole]
    assert [r.samples for r in rounds] == [r.samples for r in whole]
    final = run.parameters()
    assert final.version == ROUNDS
    for name, array in parameters.items():
        np.testing.assert_allclose(final[name], array, atol=1e-4, err_msg=name)
    assert rounds[-1].evaluation.metrics == whole[-1].evaluation.metrics


def test_a_killed_node_is_waited_for_by_name_and_training_goes_on(lab, uninterrupted):
    run = lab.client.train(labs.job(ROUNDS))
    watching = concurrent.futures.ThreadPoolExecutor(1)
    seen = threading.Event()

    def kill():
        lab.fleet.kill("b")
        seen.set()

    def restart():
        seen.wait(60)
        until(lambda: re.search(r"node 'b' \(lost\), until \d\d:", run.describe().waiting), "the wait")
        listed = command(
            "edge_attention.cli.main", "--aggregator", lab.fleet.address, "train", "--list", "--json"
        )
        cli.append(json.loads(listed.stdout)[-1]["waiting"])
        lab.start("b")

    cli = []
    restarting = watching.submit(restart)
    rounds, waits = follow(run, 10, kill)
    restarting.result(60)
    assert any(re.search(r"^node 'b' \(lost\), until \d\d:\d\d:\d\d", wait) for wait in waits), waits
    assert "node 'b' (lost), until" in cli[0]
    log = lab.fleet.said(AGGREGATOR)
    assert re.search(rf"run {run.id} waits for node 'b' \(lost\), until", log)
    assert f"run {run.id} goes on" in log
    assert run.waiting == ""
    same(rounds, run, uninterrupted)


def test_the_command_line_says_whom_a_run_waits_for(lab, uninterrupted):
    run = lab.client.train(labs.job(ROUNDS))
    arguments = ("--aggregator", lab.fleet.address, "train", "--watch", run.id)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        watching = pool.submit(command, "edge_attention.cli.main", *arguments)

        def kill():
            lab.fleet.kill("c")
            pool.submit(lambda: (until_lost(lab, run, "c"), lab.start("c")))

        rounds, _ = follow(run, 20, kill)
        watched = watching.result(60)
    assert watched.returncode == 0, watched.stderr
    assert re.search(r"waiting for node 'c' \(lost\), until \d\d:\d\d:\d\d", watched.stdout)
    assert f"run {run.id} finished after round {ROUNDS}, version {ROUNDS}" in watched.stdout
    same(rounds, run, uninterrupted)


def test_a_killed_aggregator_goes_on_from_its_last_commit(lab, uninterrupted):
    run = lab.client.train(labs.job(ROUNDS))
    pids = {name: lab.fleet.child(name).pid for name in LABS}
    restarting = concurrent.futures.ThreadPoolExecutor(1)
    tasks = []

    def kill():
        lab.fleet.kill(AGGREGATOR)
        tasks.append(restarting.submit(lab.fleet.start_aggregator, *LEASE))

    rounds, waits = follow(run, 25, kill)
    tasks[0].result(60)
    assert any(wait.startswith("the aggregator at") for wait in waits)
    assert re.search(rf"run {run.id} goes on after round \d+ of {ROUNDS}", lab.fleet.said(AGGREGATOR))
    assert {name: lab.fleet.child(name).pid for name in LABS} == pids, "the nodes came back by themselves"
    assert all(lab.fleet.child(name).running for name in LABS)
    same(rounds, run, uninterrupted)
    lines = (lab.fleet.state / "runs" / run.id / "record.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, ROUNDS + 1))


def test_a_frozen_node_is_waited_for(lab, uninterrupted):
    run = lab.client.train(labs.job(ROUNDS))
    thawing = concurrent.futures.ThreadPoolExecutor(1)

    def freeze():
        lab.fleet.freeze("c")
        thawing.submit(lambda: (until_lost(lab, run, "c"), lab.fleet.thaw("c")))

    rounds, _ = follow(run, 15, freeze)
    same(rounds, run, uninterrupted)


def test_a_run_that_waits_can_be_stopped(lab):
    lab.fleet.terminate("c")
    run = lab.client.train(labs.job(ROUNDS))
    until(lambda: "node 'c'" in run.describe().waiting, "the wait")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        watching = pool.submit(list, run)
        stopped = lab.client.run(run.id).stop()
        assert stopped.state is RunState.STOPPED
        assert watching.result(120) == []
    lab.start("c")
    assert run.describe().state is RunState.STOPPED


def test_a_stop_keeps_what_was_committed(lab):
    run = lab.client.train(labs.job(10_000))
    numbers = [event.number for event, _ in zip(run, range(5), strict=False)]
    stopped = run.stop()
    assert numbers == [1, 2, 3, 4, 5]
    assert stopped.state is RunState.STOPPED
    assert run.parameters().version == stopped.version == stopped.round >= 5
    assert [r.number for r in run] == list(range(1, stopped.round + 1))


def test_a_rate_so_large_that_the_loss_is_no_number_fails_the_run_and_nothing_else(lab):
    run = lab.client.train(labs.job(ROUNDS, optimizer=OptimizerSpec("sgd", {"lr": 1e20})))
    with pytest.raises(FailedPrecondition, match="not finite"):
        list(run)
    assert all(np.isfinite(array).all() for array in run.parameters().values())
    again = lab.client.train(labs.job(3))
    assert len(list(again)) == 3


def test_what_was_trained_is_used_from_the_command_line(lab, uninterrupted, tmp_path):
    def cli(*arguments):
        done = command("edge_attention.cli.main", "--aggregator", lab.fleet.address, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run = lab.client.runs()[0].id
    ids = ("P7", "P0", "P31")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    said = json.loads(cli("predict", run, "--ids", str(tmp_path / "ids.txt"), "--best", "--json"))
    assert (said["run"], said["ids"], said["absent"]) == (run, list(ids), {})
    flags = []
    for each in LABS:
        np.save(tmp_path / f"{each}.npy", labs.X[each][[7, 0, 31]])
        flags += ["--input", f"{each}/x={tmp_path / each}.npy"]
    here = json.loads(cli("predict", run, *flags, "--json"))
    np.testing.assert_allclose(said["outputs"]["probabilities"], here["outputs"]["probabilities"], atol=1e-5)
    file = tmp_path / "labs.onnx"
    cli("train", "export", run, "--onnx", str(file))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {f"{each}/x": labs.X[each][[7, 0, 31]] for each in LABS})
    np.testing.assert_allclose(found, here["outputs"]["probabilities"], atol=1e-5)
    assert "P31" in cli("predict", run, "--id", "P31")


def test_a_node_that_does_not_release_its_gradient_names_digest_and_flag(lab, uninterrupted):
    lab.fleet.terminate("b")
    lab.fleet.start_node("b", data=lab.files["b"], allow_release=["attention", "alignment"])
    release = lab.planned.job_release
    run = lab.client.train(labs.job(ROUNDS))
    with pytest.raises(FailedPrecondition, match=rf"node 'b'.*private.*--allow-release {release}"):
        list(run)
    lab.fleet.terminate("b")
    lab.start("b")
    until(lambda: set(states(lab.client).values()) == {"ready"}, "the node's return")
    assert len(list(lab.client.train(labs.job(2)))) == 2
