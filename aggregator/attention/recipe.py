"""The attention recipe as the server adds it: contexts, appends, attends, and their upkeep."""

from __future__ import annotations

import time
from pathlib import Path

from aggregator.attention.activity import AttendActivity
from aggregator.attention.append import Appender
from aggregator.attention.attend import Attender
from aggregator.attention.contexts import Contexts
from aggregator.attention.metrics import AttendMetrics
from aggregator.attention.page import AttentionPage
from aggregator.attention.service import AttentionApi
from aggregator.attention.upkeep import Upkeep
from aggregator.attention.upkeep_service import UpkeepApi
from aggregator.engine.recipe import Engine, Recipe


def attention(engine: Engine) -> Recipe:
    """Attends over contexts. Nodes that hold tokens of one are expected from now on."""
    e, activity, metrics = engine, AttendActivity(), AttendMetrics(engine.metrics)
    contexts = Contexts(e.state, e.membership, metrics, e.budgets)
    holders = {name for c in contexts.list() for segment in c.segments for name in segment.holders}
    e.membership.expect(holders, time.monotonic())
    appender = Appender(contexts, e.membership, e.trips, e.bulk, e.turns)
    attender = Attender(contexts, e.trips, metrics, activity, e.turns)
    api = AttentionApi(e.trips, e.bulk, contexts, appender, attender, e.budgets, e.turns)
    upkeep = UpkeepApi(Upkeep(contexts, e.membership, e.trips), e.budgets)
    page = AttentionPage(contexts, e.membership, activity)
    script = Path(__file__).with_name("page.js")
    return Recipe(
        "attention",
        (*api.endpoints(), *upkeep.endpoints()),
        page,
        script,
        unneeded=contexts.unknown,
        only_on=contexts.only_on,
        forget=contexts.forget_node,
    )
