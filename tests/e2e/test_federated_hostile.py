"""Nodes that lie: robust folds stand one of five, and one that sends no numbers is out for good."""

from __future__ import annotations

import itertools

import pytest
import schools
from schools import SCHOOLS, Schools

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import RunState

HONEST, LIAR = SCHOOLS[:4], SCHOOLS[4]
ROUNDS = 12
POINTS = 0.03


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Four honest nodes and one whose updates are of the opposite sign, ten times as large."""
    with Schools(tmp_path_factory.mktemp("hostile")) as own:
        own.allow(schools.job())
        own.start(*HONEST)
        own.start_hostile(LIAR, "flip")
        yield own


def accuracy(own, **changed):
    """Of the trained model, on images nobody trained on; the rounds."""
    run = own.client.train(schools.job(ROUNDS, **changed))
    rounds = list(run)
    assert len(rounds) == ROUNDS
    return schools.right(run.onnx(), own.tested) / len(own.tested.label), rounds


@pytest.fixture(scope="module")
def without(hostile):
    """The accuracy of the honest nodes alone."""
    found, rounds = accuracy(hostile, nodes=HONEST)
    assert found > 0.9
    assert set(rounds[-1].nodes) == set(HONEST)
    return found


def test_the_mean_of_honest_and_hostile_updates_learns_nothing(hostile, without):
    found, rounds = accuracy(hostile)
    assert found < 0.5
    # Nothing is wrong with any number: only a fold that doubts them helps.
    assert all(set(r.nodes) == set(SCHOOLS) and not r.left_out for r in rounds)


@pytest.mark.parametrize("combine", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_robust_fold_learns_as_if_the_hostile_node_were_not_there(hostile, without, combine):
    found, rounds = accuracy(hostile, combine=combine)
    assert found >= without - POINTS
    if "krum" in combine:
        assert all(LIAR in r.left_out for r in rounds), "it was never chosen"
        assert rounds[0].left_out[LIAR] == f"{combine} gave it no weight"


def test_a_node_that_sends_no_numbers_is_named_and_never_asked_again(tmp_path):
    with Schools(tmp_path) as own:
        own.allow(schools.job())
        own.start(*HONEST[:2])
        own.start_hostile(LIAR, "nan")
        run = own.client.train(schools.job(100_000, nodes=(*HONEST[:2], LIAR)))
        rounds = list(itertools.islice(run, 5))
        run.stop()
        said = own.fleet.said(AGGREGATOR)
        own.fleet.restart_aggregator()
        again = own.client.run(run.id)
        again.resume()
        rounds = list(itertools.islice(again, 10))
        stopped = again.stop()
        assert stopped.state is RunState.STOPPED
        assert [r.number for r in rounds] == list(range(1, 11))
        for r in rounds:
            assert set(r.nodes) == set(HONEST[:2])
            assert r.left_out[LIAR].startswith("quarantined: ")
            assert "is not finite" in r.left_out[LIAR]
        (named,) = [line for line in said.splitlines() if "ERROR" in line]
        assert f"run {run.id}: node {LIAR} is quarantined: node '{LIAR}' returned an update of" in named
        # The aggregator that was started anew has not asked it again.
        assert "quarantined" not in own.fleet.said(AGGREGATOR)
        assert schools.right(again.onnx(), own.tested) > 0.5 * len(own.tested.label)
