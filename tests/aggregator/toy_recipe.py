"""A whole recipe in one file: asks every node that is here for a tensor back, and says who gave it.

What it brings: a method, the role and the audit line of that, a metric, a line on the page, and what draws a
section of its own there (toy_page.js).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from aggregator.engine.recipe import Recipe
from aggregator.engine.trip import Errand
from aggregator.observe.page import PagePart, Tile
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.messages.fleet import ListNodesResponse
from edge_attention.core.messages.program import Return
from edge_attention.wire.methods import Service
from edge_attention.wire.services import LIST_NODES

ROLL_CALL = replace(LIST_NODES, service=Service("edge_attention.toy.ToyService"), name="RollCall")


class Toy:
    def __init__(self, engine):
        self._membership, self._trips = engine.membership, engine.trips
        self._here = 0
        self._called = Counter()
        self._answers = engine.metrics.make.counter("roll_call_answers_total", "Nodes that were here.")

    async def roll_call(self, request, call):
        ask = Errand("", (), range(0), (Return("task/word", "word"),), {"word": (np.dtype(np.uint8), (1,))})
        word = {"task/word": np.ones(1, np.uint8)}
        live = [member.name for member in self._membership.members() if member.live]
        errands = [replace(ask, shard=name, holders=(name,), inline=word) for name in live]
        outcome = await self._trips.make(errands, 10.0)
        self._answers.inc(len(outcome.answered))
        self._here = len(outcome.answered)
        self._called.update(outcome.answered.values())
        nodes = self._membership.nodes(time.monotonic())
        return ListNodesResponse(tuple(node for node in nodes if node.name in outcome.answered))

    def page(self, fleet):
        tile = Tile(f"{self._here} of {len(fleet.nodes)}", "were here when asked")
        return PagePart({"called": dict(self._called)}, tile)


def toy(engine):
    made = Toy(engine)
    line = AuditLine("roll_called", lambda request, response: {"nodes": len(response.nodes)})
    script = Path(__file__).with_name("toy_page.js")
    return Recipe("Roll call", (Endpoint(ROLL_CALL, made.roll_call, "user", line),), made.page, script)
