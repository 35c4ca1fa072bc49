"""A node that hangs: rounds with a deadline go on without it and say so, buffered ones never notice."""

from __future__ import annotations

import re

import pytest
import schools
from fleets import until
from schools import Schools

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import RunState, SelectionSpec, StrategySpec, TrainingRun

NODES, SLOW = ("a", "b", "c"), "c"
# Long enough that a round's wait is worth a word.
DEADLINE = 3.0
ENDLESS = 1_000_000


def job(rounds, **changed):
    return schools.job(rounds, nodes=NODES, **changed)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """The lease is long: a node that hangs is not lost."""
    with Schools(tmp_path_factory.mktemp("slow"), "--lease", "300", names=NODES) as own:
        own.allow(job(1), job(1, strategy="fedbuff"))
        own.start()
        yield own


@pytest.fixture
def frozen(fleet):
    fleet.fleet.freeze(SLOW)
    yield fleet
    fleet.fleet.thaw(SLOW)


def test_a_round_with_a_deadline_goes_on_without_a_node_that_hangs_and_says_so(frozen):
    selection = SelectionSpec(quorum=0.5, deadline_seconds=DEADLINE)
    run = frozen.client.train(job(ENDLESS, selection=selection))
    rounds, waits = [], []
    for event in run.events():
        if isinstance(event, TrainingRun):
            waits.append(event.waiting)
            continue
        rounds.append(event)
        if event.number == 2:
            frozen.fleet.thaw(SLOW)
        if SLOW in event.nodes:
            break
    run.stop()
    for r in rounds[:2]:
        assert set(r.nodes) == {"a", "b"}
        assert r.left_out.keys() == {SLOW}
        assert re.match(r"not done after [\d.]+ s: computes for", r.left_out[SLOW])
        assert r.seconds["collect"] >= DEADLINE
    sentence = rf"round 1 waits for {SLOW}: computes for [\d.]+ s, leaves it out in \d+ s"
    assert any(re.fullmatch(sentence, wait) for wait in waits), waits
    log = frozen.fleet.said(AGGREGATOR)
    assert re.search(rf"run {run.id}: {sentence}", log)
    assert re.search(rf"run {run.id}: round 1 leaves out {SLOW}: not done after", log)
    # What it did for those rounds came late, or never: it is part of later ones only.
    assert set(rounds[-1].nodes) == set(NODES)
    assert rounds[-1].left_out == {}
    assert [r.number for r in rounds] == list(range(1, len(rounds) + 1))


def test_without_a_deadline_a_round_waits_for_it_by_name(frozen):
    run = frozen.client.train(job(2))
    until(
        lambda: run.describe().waiting == f"{SLOW} to look at the labels", "the wait before the first round"
    )
    waits = rf"waits for {SLOW}: computes for [\d.]+ s"  # of the round, after 30 s of the other
    until(lambda: re.search(waits, run.describe().waiting), "the wait", 90)
    said = run.describe()
    assert said.round == 0
    assert said.nodes["a"] == said.nodes["b"] == "done"
    assert said.nodes[SLOW].startswith("computes for")
    frozen.fleet.thaw(SLOW)
    rounds = list(run)
    assert [set(r.nodes) for r in rounds] == [set(NODES)] * 2
    assert run.describe().waiting == ""


def test_buffered_rounds_do_not_wait_for_it_and_take_its_update_when_it_comes(frozen):
    run = frozen.client.train(job(ENDLESS, strategy=StrategySpec("fedbuff", {"buffer": 2})))
    late = None
    for r in run:
        if r.number == 20:
            frozen.fleet.thaw(SLOW)
        if r.number < 20:
            assert set(r.nodes) <= {"a", "b"}
        if SLOW in r.nodes:
            late = r
            break
    run.stop()
    assert late.number > 20
    # It started from version 0, and its update weighs as little as that is long ago.
    assert late.nodes[SLOW].staleness == late.number - 1
    assert not re.search(rf"run {run.id}: .*waits", frozen.fleet.said(AGGREGATOR))


def test_an_update_that_is_too_old_is_left_out_of_the_buffer(frozen):
    strategy = StrategySpec("fedbuff", {"buffer": 2, "max_staleness": 3})
    run = frozen.client.train(job(ENDLESS, strategy=strategy))
    stale = []
    for r in run:
        stale += [part.staleness for part in r.nodes.values()]
        if r.number == 20:
            frozen.fleet.thaw(SLOW)
        if SLOW in r.nodes:
            break
    run.stop()
    assert max(stale) <= 3
    assert re.search(rf"run {run.id}: an update of {SLOW} is \d+ versions old", frozen.fleet.said(AGGREGATOR))


def test_a_node_that_hangs_for_good_fails_the_run_and_is_named(frozen):
    run = frozen.client.train(job(ENDLESS, patience_seconds=10.0))
    with pytest.raises(FailedPrecondition, match=rf"round 1 cannot end: .*waited for {SLOW}: computes for"):
        list(run)
    assert run.describe().state is RunState.FAILED
