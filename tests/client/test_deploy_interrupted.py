"""What Ctrl-C says of a deployment, which may just have begun to serve."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge_attention.cli import deployed
from edge_attention.cli.deployed_shown import print_model
from edge_attention.core.errors import NotFound, Unreachable
from edge_attention.core.messages.inference import DeployedModel, DeploymentState

S = DeploymentState


def model(version, state, name="m"):
    return SimpleNamespace(name=name, version=version, state=state)


def said(*lists):
    """What is said where the aggregator's models are these, one list after the other."""
    left = list(lists)

    def models():
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now

    return deployed._left(SimpleNamespace(models=models), "m", 1)


def test_it_says_what_stays(monkeypatch):
    old = model(1, S.SERVING)
    assert said([old, model(7, S.SERVING, "other")]) == "nothing of this version of m stays"
    # The call's end has not come there yet.
    assert said([old, model(2, S.PLANNING)], [old]) == "nothing of this version of m stays"
    serves = said([old, model(2, S.DELIVERING)], [model(1, S.LEAVING), model(2, S.SERVING)])
    assert serves == "version 2 of m serves already; take it back with: edge-attention undeploy m"
    monkeypatch.setattr(deployed, "LEFT_SECONDS", 0.0)
    assert said([model(2, S.DELIVERING)]).startswith("version 2 of m is delivering; look with:")


def test_where_that_cannot_be_known_it_says_so():
    away = said(Unreachable("the aggregator is away"))
    assert away == (
        "what became of it cannot be said (the aggregator is away); look with: edge-attention models m"
    )


def of_name(name, serving, *listed):
    """What `models NAME` shows, of an aggregator where `serving` is called so, and these are listed."""

    def one(asked):
        if asked == serving.name and serving.state is S.SERVING:
            return SimpleNamespace(info=serving)
        raise NotFound(f"no model {asked!r} is deployed")

    return deployed._of_name(SimpleNamespace(model=one, models=lambda: [serving, *listed]), name)


def test_a_model_on_its_way_is_shown_where_none_of_its_name_serves():
    serves, comes = model(1, S.SERVING), model(2, S.DELIVERING)
    assert of_name("m", serves, comes) is serves
    first = model(1, S.PLANNING, "new")
    assert of_name("new", serves, comes, first) is first
    for gone in (model(1, S.LEAVING, "new"), model(1, S.GONE, "new")):
        with pytest.raises(NotFound, match="no model 'new' is deployed"):
            of_name("new", serves, gone)


def test_of_a_model_that_is_not_planned_yet_no_inputs_are_printed(capsys):
    print_model(DeployedModel("new", 1, S.PLANNING, bytes=1000, plan="auto"))
    assert capsys.readouterr().out == "new, version 1: planning; 1000 B, plan auto\n"
