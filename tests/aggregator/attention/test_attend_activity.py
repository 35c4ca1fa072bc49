"""What is remembered of queries, and that it is bounded."""

from __future__ import annotations

import math

import numpy as np

from aggregator.attention import activity
from aggregator.attention.activity import (
    LOOK_SECONDS,
    NODES,
    QUERIES,
    SPAN_SECONDS,
    SPANS,
    AttendActivity,
)
from edge_attention.core.messages.attention import AttendRequest, AttendResponse, Bound, Missing, ShardMass

REQUEST = AttendRequest("memory", np.zeros((3, 2, 4), np.float32))


def response(mass, missing=(), seconds=0.5, bound=None):
    """An answer of two heads and three queries over shards of a hundred tokens each."""
    shards = tuple(
        ShardMass(f"s{i}", node, range(100 * i, 100 * i + 100), np.full((3, 2), share, np.float32))
        for i, (node, share) in enumerate(mass)
    )
    return AttendResponse(
        out=np.zeros((3, 2, 4), np.float32),
        lse=np.zeros((3, 2), np.float32),
        exact=not missing,
        coverage=(range(100 * len(mass)),),
        mass=shards,
        tokens=100 * (len(mass) + len(missing)),
        bound=bound,
        missing=missing,
        seconds={"all": seconds},
    )


def test_a_query_is_remembered_with_what_each_node_received():
    seen = AttendActivity()
    seen.answered(REQUEST, response([("a", 0.25), ("b", 0.5), ("a", 0.25)]), 1000.0)
    (query,) = seen.queries
    assert (query.outcome, query.context, query.queries, query.share) == ("exact", "memory", 3, 1.0)
    assert query.mass == {"a": 0.5, "b": 0.5}
    assert query.bound is None


def test_a_partial_answer_says_on_what_it_stands_how_far_it_may_be_off_and_why():
    seen = AttendActivity()
    missing = (Missing("s1", range(100, 200), ("b", "c"), "node 'b' is lost"),)
    bound = Bound(np.array([[[0.1, 0.75]]], np.float32), True)
    seen.answered(REQUEST, response([("a", 1.0)], missing, bound=bound), 1000.0)
    (query,) = seen.queries
    assert (query.outcome, query.share, query.bound) == ("partial", 0.5, 0.75)
    assert query.why == ("100 tokens of b and c: node 'b' is lost",)


def test_reasons_beyond_a_few_are_counted():
    seen = AttendActivity()
    missing = tuple(Missing(f"s{i}", range(i, i + 1), ("b",), "lost") for i in range(activity.REASONS + 5))
    seen.answered(REQUEST, response([], missing), 0.0)
    assert len(seen.queries[0].why) == activity.REASONS + 1
    assert seen.queries[0].why[-1] == "and 5 more shards"


def test_what_a_failed_request_brought_is_not_trusted():
    seen = AttendActivity()
    seen.failed(AttendRequest("x" * 500, np.float32(3)), "y" * 5000, 0.0)
    (query,) = seen.queries
    assert (query.outcome, query.queries) == ("failed", 0)
    assert len(query.context) == 64
    assert len(query.why[0]) == 400


def test_spans_count_every_query_and_mean_the_mass():
    seen = AttendActivity()
    seen.answered(REQUEST, response([("a", 1.0)], seconds=0.1), 1000.0)
    seen.answered(REQUEST, response([("b", 1.0)], seconds=0.3), 1001.0)
    seen.failed(REQUEST, "no such context", 1002.0)
    seen.answered(REQUEST, response([("b", 1.0)]), 1000.0 + SPAN_SECONDS)
    first, second = seen.spans
    assert first.start == 1000.0
    assert first.outcomes == {"exact": 2, "partial": 0, "failed": 1}
    assert first.mass == {"a": 0.5, "b": 0.5}
    assert math.isclose(first.seconds, 0.4)
    assert first.slowest == 0.3
    assert second.mass == {"b": 1.0}


def test_of_many_queries_a_second_attention_is_looked_at_now_and_then():
    seen = AttendActivity()
    for i in range(100):
        seen.answered(REQUEST, response([("a", 1.0)]), 1000.0 + i * LOOK_SECONDS / 10)
    (span,) = seen.spans
    assert (span.answered, span.looked) == (100, 10)
    assert span.mass == {"a": 1.0}
    assert seen.queries[-1].mass == {}


def test_a_clock_that_is_set_back_does_not_put_spans_out_of_order():
    seen = AttendActivity()
    for now in (1000.0, 500.0, 1000.0 + SPAN_SECONDS):
        seen.answered(REQUEST, response([("a", 1.0)]), now)
    assert [span.start for span in seen.spans] == [1000.0, 1000.0 + SPAN_SECONDS]
    assert seen.spans[0].answered == 2


def test_memory_is_bounded():
    seen = AttendActivity()
    for i in range(10 * QUERIES):
        seen.answered(REQUEST, response([(f"n{i}-{j}", 0.1) for j in range(3)]), 3.0 * i)
    seen.answered(REQUEST, response([(f"more-{j}", 0.1) for j in range(2 * NODES)]), 1e6)
    assert len(seen.queries) == QUERIES
    assert len(seen.spans) <= SPANS
    assert len(seen.spans[-1].sums) == NODES
