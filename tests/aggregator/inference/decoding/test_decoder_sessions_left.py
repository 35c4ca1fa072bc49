"""What nodes may keep of sessions after a restart of the aggregator."""

from __future__ import annotations

from types import SimpleNamespace

from aggregator.bounds.budget import Budgets
from aggregator.inference.decoding.sessions import DecoderSessions


def test_a_node_that_comes_forgets_sessions_of_an_earlier_life_and_none_of_this_one():
    def deployed(id, decoder):
        return SimpleNamespace(id=id, planned=SimpleNamespace(decoder=decoder))

    deployments = SimpleNamespace(
        leaving=[], deployed=lambda: (deployed("old", "{}"), deployed("new", "{}"), deployed("bert", ""))
    )
    engine = SimpleNamespace(
        budgets=Budgets(), membership=None, trips=SimpleNamespace(watch=lambda callback: None)
    )
    sessions = DecoderSessions(engine, deployments)
    sessions._serving["new"] = SimpleNamespace()
    assert sessions.unneeded(None) == ("job/old/cache/",)
