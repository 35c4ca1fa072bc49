"""What the page tells of a deployment: the notes of its plan, its queue, and what ran together."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.inference.activity import InferenceActivity
from aggregator.inference.feeds import require_looked_up
from aggregator.inference.page import NOTE, NOTES, InferencePage
from aggregator.observe.page import Fleet, Lack
from edge_attention.core.errors import InvalidTensor, Unavailable
from edge_attention.core.messages.inference import (
    DeployedModel,
    DeployedPart,
    DeploymentState,
    InferReport,
)

FLEET = Fleet(1000.0, (), "1.0", 0.0, {})


class Deployed:
    def __init__(self, *models):
        self._models = models

    def list(self):
        return self._models


def told(activity, **fields):
    model = DeployedModel(**{"name": "bert", "version": 1, "state": DeploymentState.SERVING, **fields})
    return InferencePage(Deployed(model), activity)(FLEET)


def test_the_notes_of_a_plan_are_told_the_latest_of_many():
    note = "planned anew 2026-01-01 12:00:00 UTC, as b is gone"
    activity = InferenceActivity()
    (model,) = told(activity, notes=("it is a decoder", note, "")).sections["models"].values()
    assert model["notes"] == ["it is a decoder", note]
    many = tuple(f"{i} {'x' * 1000}" for i in range(100))
    (model,) = told(activity, notes=many).sections["models"].values()
    assert [one[:2] for one in model["notes"]] == [str(100 - NOTES + i) for i in range(NOTES)]
    assert max(map(len, model["notes"])) == NOTE


def test_what_waits_and_what_ran_together():
    activity = InferenceActivity()
    (model,) = told(activity, queued=3, in_flight=5).sections["models"].values()
    assert (model["queued"], model["in_flight"], model["together"], model["rows"]) == (3, 5, None, None)
    for rows in (0, 8):
        activity.answered("bert", {}, InferReport(1, True, 1.0, rows=rows))
    (model,) = told(activity).sections["models"].values()
    assert 0 < model["together"] < 1
    assert model["rows"] == 8, "the mean of batches, not of requests that ran alone"


def test_what_a_request_holds_is_told_to_nobody_but_who_sent_it():
    activity = InferenceActivity()
    wrong = {"ids": np.array([[7, 31337]])}
    with pytest.raises(InvalidTensor, match="31337") as refused:
        require_looked_up({"ids": 100}, wrong)
    activity.failed("bert", 0.1, refused.value)
    activity.failed("bert", 0.1, Unavailable("nobody holds part 1"))
    lines = told(activity).sections["infers"].values()
    assert [line["why"] for line in lines] == [
        "InvalidTensor: who sent it was told what is wrong with it",
        "nobody holds part 1",
    ]


def test_a_part_nobody_here_has_is_lacked_by_those_that_are_away():
    parts = (
        DeployedPart(part=0, layers=range(0, 1), share="all", bytes=1, holders=("a",), live=("a",)),
        DeployedPart(part=1, layers=range(1, 2), share="all", bytes=1, holders=("b", "c"), live=()),
    )
    activity = InferenceActivity()
    assert told(activity, parts=parts, state=DeploymentState.WAITING).lacks == (
        Lack(frozenset("bc"), "part 1 of model bert"),
    )
    assert told(activity, parts=parts).lacks == ()
