"""Nodes and the aggregator killed, frozen and restarted: a retry, a labelled answer, never a wrong number."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import numpy as np
import pytest
from fleets import SPEC, certified, exact, queries, states, tokens, until

from edge_attention.cli.local_fleet import AGGREGATOR

COUNT = 6_000
KEYS, VALUES = tokens(COUNT)
LEASE = ("--lease", "5")
ASKED = queries(3)


def spread(client, *nodes, **options):
    """A context with an even share of the tokens on each of `nodes`."""
    context = client.create_context("memory", **SPEC, **options)
    for index, node in enumerate(nodes):
        part = slice(index * COUNT // len(nodes), (index + 1) * COUNT // len(nodes))
        context.append(KEYS[part], VALUES[part], node=node)
    return context


class Asking:
    """Attends one after the other, on threads, until `stop`; `answers` holds what came."""

    def __init__(self, context, deadline, threads=2):
        self._context, self._deadline = context, deadline
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.answers = []
        self._tasks = [self._pool.submit(self._ask) for _ in range(threads)]

    def _ask(self):
        while not self._stop.is_set():
            self.answers.append(self._context.attend(ASKED, deadline=self._deadline))

    def more(self, count=3):
        before = len(self.answers)
        until(lambda: len(self.answers) >= before + count, "more answers")

    def stop(self):
        self._stop.set()
        for task in self._tasks:
            task.result(240)
        self._pool.shutdown()
        return self.answers


def test_with_replicas_a_killed_node_costs_a_retry(fleet):
    own = fleet(*LEASE)
    own.nodes("a", "b", "c")
    with own.client() as client:
        context = client.create_context("memory", **SPEC, replicas=2)
        context.append(KEYS, VALUES)
        asking = Asking(context, deadline=120.0)
        asking.more()
        own.kill("b")
        asking.more(6)
        for answer in asking.stop():
            exact(answer, ASKED, KEYS, VALUES)
        assert "b" not in context.attend(ASKED).mass


def test_without_replicas_a_killed_node_costs_a_labelled_answer(fleet):
    own = fleet("--lease", "10")
    own.nodes("a", "b")
    with own.client() as client:
        context = spread(client, "a", "b")
        asking = Asking(context, deadline=4.0)
        asking.more()
        own.kill("b")
        asking.more(6)
        answers = asking.stop()
        partial = [answer for answer in answers if not answer.exact]
        assert partial
        for answer in answers:
            if answer.exact:
                exact(answer, ASKED, KEYS, VALUES)
        for answer in partial:
            assert certified(answer, ASKED, KEYS, VALUES).max() > 0
            assert answer.coverage == (range(0, COUNT // 2),)
            assert {gap.holders for gap in answer.missing} == {("b",)}
            assert set(answer.mass) == {"a"}
        until(lambda: states(client) == {"a": "ready", "b": "lost"}, "the lease's end")
        # Who is lost is not waited for.
        answer = context.attend(ASKED)
        certified(answer, ASKED, KEYS, VALUES)
        assert "'b' is lost" in answer.missing[0].reason
        # It comes back without its tokens, and the answer goes on saying so; new tokens are exact.
        own.nodes("b")
        certified(context.attend(ASKED), ASKED, KEYS, VALUES)
        other = client.create_context("other", **SPEC)
        other.append(KEYS, VALUES)
        exact(other.attend(ASKED), ASKED, KEYS, VALUES)


def test_a_frozen_node_is_lost_after_its_lease_and_comes_back_by_itself(fleet):
    own = fleet(*LEASE)
    own.nodes("a", "b")
    with own.client() as client:
        context = spread(client, "a", "b")
        own.freeze("b")
        answer = context.attend(ASKED, deadline=3.0)
        certified(answer, ASKED, KEYS, VALUES)
        until(lambda: states(client)["b"] == "lost", "the lease's end")
        certified(context.attend(ASKED), ASKED, KEYS, VALUES)
        own.thaw("b")
        until(lambda: states(client)["b"] == "ready", "the node's return")
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        # Back for good: it works and is heard.
        context.append(KEYS[:10], VALUES[:10], node="b")
        time.sleep(5.5)
        until(lambda: all_ready(client), "the nodes, of which none is lost for good")


def test_a_node_frozen_for_less_than_its_lease_answers_late(fleet):
    own = fleet("--lease", "20")
    own.nodes("a", "b")
    with own.client() as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        context = spread(client, "a", "b")
        own.freeze("b")
        waiting = pool.submit(context.attend, ASKED, deadline=120.0)
        time.sleep(0.5)
        own.thaw("b")
        exact(waiting.result(120), ASKED, KEYS, VALUES)


def test_a_node_with_a_store_keeps_its_tokens_over_kill_9(fleet):
    own = fleet(*LEASE)
    own.nodes("a")
    own.nodes("b", flags=("--store", str(own.folder / "b")))
    with own.client() as client:
        context = spread(client, "a", "b")
        own.kill("b")
        own.nodes("b", flags=("--store", str(own.folder / "b")))
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        context.append(KEYS[:700], VALUES[:700], node="b")
        longer = np.concatenate([KEYS, KEYS[:700]]), np.concatenate([VALUES, VALUES[:700]])
        own.kill("b")
        own.nodes("b", flags=("--store", str(own.folder / "b")))
        exact(context.attend(ASKED), ASKED, *longer)
        # What was dropped while it was away is gone when it is back.
        own.kill("b")
        context.drop()
        own.nodes("b", flags=("--store", str(own.folder / "b")))
        until(lambda: not list((own.folder / "b").glob("*.tiles")), "the tokens' end")


def test_sigterm_drains_a_node(fleet):
    own = fleet("--lease", "300")  # that it is lost is its own word, and not the end of its lease
    own.nodes("a", "b", "c")
    with own.client() as client:
        context = client.create_context("memory", **SPEC, replicas=2)
        context.append(KEYS, VALUES)
        asking = Asking(context, deadline=120.0)
        asking.more()
        assert own.terminate("b") == 0
        until(lambda: states(client)["b"] == "lost", "its leaving")
        asking.more()
        for answer in asking.stop():
            exact(answer, ASKED, KEYS, VALUES)
        assert own.terminate("c") == 0


def test_contexts_survive_kill_9_of_the_aggregator(fleet):
    own = fleet(*LEASE, state=True)
    own.nodes("a", "b")
    with own.client() as client:
        context = spread(client, "a", "b")
        before = context.describe()
        own.restart_aggregator("--lease", "20")
        # Asked at once: the nodes are waited for, they are on their way back.
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        after = context.describe()
        assert (after.tokens, [s.id for s in after.segments]) == (COUNT, [s.id for s in before.segments])
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        context.append(KEYS[:300], VALUES[:300])
        longer = np.concatenate([KEYS, KEYS[:300]]), np.concatenate([VALUES, VALUES[:300]])
        exact(context.attend(ASKED), ASKED, *longer)
        for name in "ab":
            assert own.child(name).running


def all_ready(client):
    return states(client) == {"a": "ready", "b": "ready"}


def test_an_aggregator_without_state_forgets_and_leaves_alone_what_nodes_store(fleet):
    """It may have been started without its --state by mistake."""
    own = fleet(*LEASE)
    own.nodes("a", "b")
    with own.client() as client:
        spread(client, "a", "b")
        own.restart_aggregator(*LEASE)
        until(lambda: all_ready(client), "the nodes' return")
        assert client.contexts() == []
        until(lambda: all(node.memory > 0 for node in client.nodes()), "the nodes' word of what they store")


def test_an_aggregator_frozen_for_longer_than_every_lease_has_its_nodes_back(fleet):
    own = fleet(*LEASE)
    own.nodes("a", "b")
    with own.client() as client:
        context = spread(client, "a", "b")
        own.freeze(AGGREGATOR)
        time.sleep(6)
        own.thaw(AGGREGATOR)
        until(lambda: all_ready(client), "the nodes' return")
        # Whoever was lost a moment too early is back too, for good.
        time.sleep(1)
        until(lambda: all_ready(client), "the nodes' return")
        answer = until(lambda: (a := context.attend(ASKED)).exact and a, "an exact answer")
        exact(answer, ASKED, KEYS, VALUES)


def test_a_node_killed_during_an_append_leaves_nothing_half_done(fleet):
    own = fleet(*LEASE)
    own.nodes("a", "b")
    with own.client() as client:
        context = spread(client, "a", "b")
        own.freeze("b")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            many = 20 * 512
            keys, values = tokens(many, seed=9)
            appending = pool.submit(context.append, keys, values)
            time.sleep(0.3)
            own.kill("b")
            with pytest.raises(Exception, match=r"nothing was appended.*'b'"):
                appending.result(240)
        assert context.describe().tokens == COUNT
        certified(context.attend(ASKED), ASKED, KEYS, VALUES)


def test_the_aggregator_stops_on_sigterm_and_nodes_wait_for_it(fleet):
    own = fleet(*LEASE, state=True)
    own.nodes("a", "b")
    assert own.terminate(AGGREGATOR) == 0
    time.sleep(0.5)
    assert own.child("a").running
    own.start_aggregator(*LEASE)
    with own.client() as client:
        until(lambda: all_ready(client), "the nodes' return")
