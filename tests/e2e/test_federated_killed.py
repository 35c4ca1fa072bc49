"""kill -9 of the aggregator and of nodes at random moments: the run ends with the same bits as without."""

from __future__ import annotations

import random
import shutil
import time

import numpy as np
import pytest
import schools
from schools import Schools

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import (
    EncodingSpec,
    LocalSpec,
    OptimizerSpec,
    PushSpec,
    RunState,
    StrategySpec,
    TrainingRun,
)

NODES = ("a", "b", "c")
ROUNDS = 20
# Enough local steps that a kill finds nodes at work, uploads under way, commits half done.
LOCAL = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=100)
MOMENTUM = LocalSpec(OptimizerSpec("momentum", {"lr": 0.05}), batch=8, steps=100)
JOBS = {
    "fedavg": {},
    "fedadam": {"strategy": StrategySpec("fedadam", {"lr": 0.02}), "local": MOMENTUM},
    "scaffold": {"strategy": "scaffold"},
    # What int8 loses stays on the nodes for the next round: it must outlive them.
    "int8": {"update": EncodingSpec("int8"), "push": PushSpec(difference=True)},
}
SEED = 0


def job(kind):
    changed = {"local": LOCAL, **JOBS[kind]}
    return schools.job(ROUNDS, name=kind, nodes=NODES, holdout=0.2, evaluate_every=5, **changed)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Schools(tmp_path_factory.mktemp("killed"), "--lease", "3", names=NODES, store=True) as own:
        own.allow(*map(job, JOBS))
        own.start()
        yield own


def kill(own, victims):
    """kill -9 of all of `victims`; all are started again at once."""
    for victim in victims:
        own.fleet.kill(victim)
    if AGGREGATOR in victims:
        own.fleet.start_aggregator("--lease", "3")
    for victim in victims:
        if victim != AGGREGATOR:
            own.begin(victim)


@pytest.mark.parametrize("kind", JOBS)
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(fleet, kind):
    whole = fleet.client.train(job(kind))
    wanted = list(whole)
    assert whole.describe().state is RunState.FINISHED
    assert wanted[-1].loss < wanted[0].loss / 2

    moments = random.Random(f"{kind} {SEED}")
    one, other = moments.sample(NODES, 2)
    victims = [[one], [AGGREGATOR, other], [AGGREGATOR, *NODES]]
    moments.shuffle(victims)
    at = sorted(moments.sample(range(1, ROUNDS), len(victims)))
    took = sum(r.seconds["all"] for r in wanted) / ROUNDS
    run = fleet.client.train(job(kind))
    rounds = []
    for event in run.events():
        if isinstance(event, TrainingRun):
            continue
        rounds.append(event)
        if at and event.number >= at[0]:
            del at[0]
            time.sleep(moments.random() * took)
            kill(fleet, victims.pop())
    assert not at
    for name in NODES:
        fleet.fleet.wait_ready(name)

    assert run.describe().state is RunState.FINISHED
    # Whoever watched over all of it has seen every round, each once.
    assert [r.number for r in rounds] == list(range(1, ROUNDS + 1))
    final, parameters = run.parameters(), whole.parameters()
    assert final.version == parameters.version == ROUNDS
    assert final.keys() == parameters.keys()
    for name, array in parameters.items():
        np.testing.assert_array_equal(final[name].view(np.uint32), array.view(np.uint32), err_msg=name)
    for one, other in zip(rounds, wanted, strict=True):
        assert one.loss == other.loss
        assert one.evaluation == other.evaluation
        assert {n: (p.samples, p.steps, p.loss, p.norm) for n, p in one.nodes.items()} == {
            n: (p.samples, p.steps, p.loss, p.norm) for n, p in other.nodes.items()
        }
        assert not one.left_out


def test_a_node_that_lost_what_it_kept_begins_it_anew_and_the_log_says_so(fleet):
    run = fleet.client.train(job("int8"))
    rounds = iter(run)
    numbers = [next(rounds).number for _ in range(3)]
    fleet.fleet.kill("c")
    shutil.rmtree(fleet.fleet.folder / "store-c")
    fleet.begin("c")
    numbers += [r.number for r in rounds]
    assert numbers == list(range(1, ROUNDS + 1))
    assert run.describe().state is RunState.FINISHED
    log = fleet.fleet.said(AGGREGATOR)
    assert f"run {run.id}: node c begins again without what it kept" in log
