"""A network that says nothing, and a node that says nonsense: every call ends in its time, and is right."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reference
from fleets import Fleet
from proxy import Blackhole, HalfOpen, Pass, Proxy

from edge_attention import Client
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, Unavailable

RANDOM = np.random.default_rng(4)
KEYS, VALUES = (RANDOM.standard_normal((100, 2, 8)).astype(np.float32) for _ in range(2))
QUERIES = RANDOM.standard_normal((3, 4, 8)).astype(np.float32)
SHAPE = {"query_heads": 4, "key_heads": 2, "key_dim": 8, "value_dim": 8}
ROOM = 60.0  # seconds beyond what is promised, for a machine that is busy


def right(answer, times=1):
    scores = reference.scores(QUERIES, np.concatenate([KEYS] * times), 8**-0.5)
    out, _ = reference.attend(scores, np.concatenate([VALUES] * times))
    assert answer.exact, answer.missing
    np.testing.assert_allclose(answer.out, out, atol=1e-5)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("silent")) as fleet:
        fleet.nodes("a", "b")
        yield fleet


def test_a_client_whose_connection_died_works_with_its_next_call(fleet):
    with Proxy(fleet.address) as proxy, Client(proxy.address, timeout=120) as client:
        context = client.create_context("halfopen", **SHAPE)
        context.append(KEYS, VALUES)
        right(context.attend(QUERIES, deadline=60))
        for number in range(2):
            proxy.set_mode(HalfOpen())
            proxy.set_mode(Pass())
            right(context.attend(QUERIES, deadline=60))
            assert proxy.connections == 2 + number
        proxy.set_mode(HalfOpen())
        proxy.set_mode(Pass())
        assert context.append(KEYS, VALUES).tokens == 100
        assert context.describe().tokens == 200, "once"
        right(context.attend(QUERIES, deadline=60), times=2)


def test_where_the_network_swallows_everything_every_call_ends_in_its_time(fleet):
    took = []

    def call(context):
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises((DeadlineExceeded, Unavailable)):
                context.attend(QUERIES, deadline=2)
            took.append(time.monotonic() - began)

    with Proxy(fleet.address) as proxy, Client(proxy.address, timeout=8) as client:
        context = client.create_context("hole", **SHAPE)
        context.append(KEYS, VALUES)
        right(context.attend(QUERIES, deadline=60))
        proxy.set_mode(Blackhole())
        threads = [threading.Thread(target=call, args=(context,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert len(took) == 32
        assert max(took) < 3 + ROOM
        for what in (client.nodes, client.contexts, client.runs, context.describe):
            began = time.monotonic()
            with pytest.raises((DeadlineExceeded, Unavailable)):
                what()
            assert time.monotonic() - began < 9 + ROOM


def test_a_node_that_answers_nonsense_costs_nothing_and_its_words_are_obeyed_by_nobody(tmp_path):
    with Fleet(tmp_path) as fleet, pytest.MonkeyPatch.context() as changed:
        fleet.nodes("good")
        changed.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        changed.setattr(fleet, "node_module", "hostile_node", raising=False)
        fleet.start_node("evil", "--threads", "1", "--lie", "refuse", wait=False)
        fleet.wait_ready("evil")
        with fleet.client() as client:
            context = client.create_context("both", **SHAPE, replicas=2)
            context.append(KEYS, VALUES)
            assert {h for s in context.describe().segments for h in s.holders} == {"good", "evil"}
            for _ in range(8):
                right(context.attend(QUERIES, deadline=60))
            alone = client.create_context("alone", **SHAPE)
            alone.append(KEYS, VALUES, node="evil")
            said = []
            try:
                answer = alone.attend(QUERIES, deadline=60)
                said += [one.reason for one in answer.missing]
            except EdgeAttentionError as error:
                said.append(error.message)
            assert said
            assert all("node 'evil'" in one and one.isprintable() for one in said)
            assert all(line.isprintable() for line in fleet.said("aggregator").splitlines())
            assert not any(
                line.startswith("2026-11-28 00:00:00") for line in fleet.said("aggregator").splitlines()
            )
