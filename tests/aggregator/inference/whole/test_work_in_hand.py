"""Which of several nodes is through first: what they have in hand, in seconds."""

from __future__ import annotations

from collections import Counter

import pytest

from aggregator.inference.whole.work_in_hand import FRESH, WorkInHand


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shared_out(work, sizes, nodes="ab", model="m"):
    found = Counter()
    for size in sizes:
        node = work.soonest(model, nodes, size)
        work.begin(model, node, size)
        found[node] += size
    return found


def test_of_nodes_alike_in_turn(clock):
    assert shared_out(WorkInHand(clock), [10] * 9, "abc") == {"a": 30, "b": 30, "c": 30}
    work = WorkInHand(clock)
    order = []
    for _ in range(4):  # one at a time
        order.append(work.soonest("m", "ab", 10))
        work.end(order[-1], work.begin("m", order[-1], 10))
    assert order == ["a", "b", "a", "b"]


def test_a_large_batch_counts_as_what_it_is(clock):
    work = WorkInHand(clock)
    work.begin("m", "a", 80)
    assert shared_out(work, [10] * 10) == {"a": 10, "b": 90}


def test_a_slow_node_has_as_many_seconds_and_not_as_many_requests(clock):
    work = WorkInHand(clock)
    work.took("m", "a", 100, 0.030)
    work.took("m", "b", 100, 0.010)
    assert shared_out(work, [100] * 12) == {"a": 300, "b": 900}
    assert shared_out(work, [100] * 12, model="other")["a"] > 300, "of another model nothing is known"


def test_measures_of_nodes_alike_differ_a_little(clock):
    work = WorkInHand(clock)
    work.took("m", "a", 100, 0.011)
    work.took("m", "b", 100, 0.010)
    assert shared_out(work, [100] * 12) == {"a": 600, "b": 600}


def test_who_was_slow_is_tried_again(clock):
    work = WorkInHand(clock)
    work.took("m", "a", 100, 1.0)
    work.took("m", "b", 100, 0.010)
    alone = [work.soonest("m", "ab", 100) for _ in range(3)]
    assert alone == ["b"] * 3
    work.end("b", work.begin("m", "b", 100))
    clock.now = FRESH
    assert work.soonest("m", "ab", 100) == "a"


def test_of_what_has_gone_nothing_is_kept(clock):
    work = WorkInHand(clock)
    work.took("m", "a", 100, 1.0)
    work.end("a", work.begin("m", "a", 100))
    work.keep("b")
    work.forget("m")
    assert not any((work._seconds, work._under_way, work._turns, work._pace))


def test_a_node_that_does_not_say_what_it_took_is_not_the_quickest(clock):
    work = WorkInHand(clock)
    for _ in range(50):
        work.took("m", "a", 100, 0.0)
        work.took("m", "b", 100, 0.010)
    assert shared_out(work, [100] * 10) == {"a": 500, "b": 500}
