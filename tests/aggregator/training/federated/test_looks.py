"""To look at what all nodes do takes as long as there are nodes: it is not done whenever one has answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aggregator.training.federated.buffered import Buffer
from aggregator.training.federated.looks import LOOK_PART, LOOK_SECONDS, Looks

NODES, UPDATES, STEPS = 50, 10, 20


class Members:
    """All are there; counts how often one is looked at."""

    def __init__(self):
        self.looked = 0

    def get(self, node):
        self.looked += 1

    def live(self, node):
        return True


class AtOnce:
    """Nodes that answer as soon as they are asked."""

    async def update(self, node, basis, connection, turn):
        return SimpleNamespace(node=node, turn=turn, close=lambda: None)

    def took_part(self, node, turn):
        pass


def test_buffered_rounds_look_at_all_nodes_now_and_then_and_not_for_every_update(monkeypatch):
    still = SimpleNamespace(monotonic=lambda: 100.0)
    for module in ("buffered", "collect"):
        monkeypatch.setattr(f"aggregator.training.federated.{module}.time", still)
    members = Members()
    job = SimpleNamespace(strategy=SimpleNamespace(name="fedbuff", options={"buffer": UPDATES}))
    nodes = {f"node-{number}": None for number in range(NODES)}

    async def train():
        active = SimpleNamespace(say=lambda *sentence: None)
        buffer = Buffer(active, job, SimpleNamespace(membership=members, metrics=None), AtOnce(), nodes, 60.0)
        taken = [await buffer.collect(SimpleNamespace(version=version)) for version in range(STEPS)]
        await buffer.close()
        return [len(each.updates) for each in taken]

    assert asyncio.run(train()) == [UPDATES] * STEPS
    assert 0 < members.looked <= NODES, "no time has passed since it looked first"


def test_it_is_looked_at_once_and_then_so_seldom_that_it_takes_a_small_part_of_the_time():
    looks = Looks()
    assert looks.due(0.0)
    looks.looked(10.0, 10.001)
    assert not looks.due(10.001 + LOOK_SECONDS * 0.99)
    assert looks.due(10.001 + LOOK_SECONDS * 1.01)
    looks.looked(20.0, 21.0)
    assert not looks.due(21.0 + LOOK_PART * 0.99)
    assert looks.due(21.0 + LOOK_PART * 1.01)
