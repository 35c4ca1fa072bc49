"""The checkup as the server adds it."""

from __future__ import annotations

from aggregator.checkup.checkup import Checkup
from aggregator.engine.recipe import Engine, Recipe


def checkup(engine: Engine) -> Recipe:
    """Says what this aggregator is, and how the way to a node is."""
    e = engine
    made = Checkup(e.membership, e.trips, e.http_port, folder=e.state.directory)
    return Recipe("checkup", made.endpoints())
