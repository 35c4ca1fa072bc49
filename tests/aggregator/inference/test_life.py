"""The life of a deployment, from its plan to its last request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.life import Life
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.inference import DeploymentState


def serving():
    life = Life("m")
    life.planned(0.0)
    assert life.holders((), 1.0)
    return life


def test_it_serves_when_nothing_lacks():
    life = Life("m")
    life.planned(0.0)
    assert not life.holders(["part 0 waits for node a"], 1.0)
    assert life.state is DeploymentState.DELIVERING
    assert life.holders((), 2.0)
    assert life.state is DeploymentState.SERVING


def test_it_says_what_it_waits_for_and_when_that_changes():
    life = serving()
    assert life.holders(["part 0 waits for node a"], 2.0)
    assert (life.state, life.detail) == (DeploymentState.WAITING, "part 0 waits for node a")
    assert not life.holders(["part 0 waits for node a"], 3.0)
    assert life.holders(["part 0 waits for node a", "part 1 waits for node b"], 4.0)
    assert life.holders((), 5.0)
    assert (life.state, life.detail) == (DeploymentState.SERVING, "")


def test_a_version_that_leaves_answers_what_it_has_begun():
    life = serving()
    life.begin()
    life.begin()
    assert not life.leave(2.0, "version 2 serves")
    with pytest.raises(FailedPrecondition, match="leaving"):
        life.begin()
    assert not life.end(True)
    assert life.end(False)
    life.gone(3.0)
    assert (life.requests, life.failed, life.in_flight) == (1, 1, 0)
    life.check()


def test_one_without_requests_goes_at_once_and_once():
    life = serving()
    assert life.leave(2.0, "undeployed")
    assert not life.leave(2.0, "undeployed")


def test_a_recalled_one_takes_requests_that_wait():
    life = Life("m")
    life.recalled(0.0, "the aggregator was restarted")
    assert life.live
    assert life.detail == "the aggregator was restarted"
    life.begin()
    life.end(True)
    assert life.holders((), 1.0)
    life.check()


@given(st.lists(st.sampled_from("blewsx"), max_size=40))
def test_whatever_happens_it_holds_together(events):
    life = serving()
    for at, event in enumerate(events):
        if event == "b" and life.live:
            life.begin()
        elif event in "ex" and life.in_flight:
            if life.end(event == "e"):
                life.gone(at)
        elif event == "l" and life.leave(at, "undeployed"):
            life.gone(at)
        elif event in "ws":
            life.holders(["part 0 waits for node a"] if event == "w" else (), at)
        life.check()
