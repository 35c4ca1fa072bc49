"""The estimate of what fewer nodes would take."""

from __future__ import annotations

import doctest
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.doctor import fewer
from edge_attention.doctor.fewer import Measured, NodeCost, estimates, fit, further

seconds = st.floats(0, 1, allow_nan=False)
costs = st.lists(
    st.builds(
        NodeCost,
        name=st.uuids().map(str),
        fixed=seconds,
        per_token=st.floats(0, 1e-4),
        overhead=seconds,
        room=st.none() | st.integers(0, 10_000),
        measured=st.just(0) | st.integers(1, 10_000),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda cost: cost.name,
)
tokens = st.integers(1, 10_000)


def alike(count: int, overhead: float = 1e-3, per_token: float = 1e-7) -> list[NodeCost]:
    return [NodeCost(f"n{i}", 1e-4, per_token, overhead) for i in range(count)]


def test_the_example_holds():
    assert doctest.testmod(fewer).attempted > 0
    assert doctest.testmod(fewer).failed == 0


@given(costs, tokens, seconds)
def test_of_each_number_of_nodes_the_fastest_are_chosen(costs, tokens, more):
    """Against every choice there is."""
    for estimate in estimates(tokens, costs, more):
        count = len(estimate.nodes)
        share = tokens / count
        choices = [c for c in combinations(costs, count) if all(n.room is None or n.room >= share for n in c)]
        assert estimate.fits is bool(choices)
        if choices:
            best = min(max(n.alone(share) for n in c) for c in choices) + more * (count - 1)
            assert estimate.seconds == pytest.approx(best)
        assert estimate.seconds == pytest.approx(estimate.kernel + estimate.overhead)


@given(costs, tokens, tokens, seconds)
def test_more_tokens_are_never_faster(costs, few, many, more):
    few, many = sorted((few, many))
    roomy = [NodeCost(c.name, c.fixed, c.per_token, c.overhead, None, c.measured) for c in costs]
    for small, large in zip(estimates(few, roomy, more), estimates(many, roomy, more), strict=True):
        assert small.seconds <= large.seconds + 1e-12


@given(costs, tokens)
def test_beyond_what_was_measured_a_node_is_no_faster_a_token(costs, tokens):
    for cost in costs:
        assert (
            cost.kernel(tokens) >= cost.fixed + cost.per_token * tokens - 1e-9
            or cost.measured == 0
            or (cost.kernel(tokens) / tokens >= cost.kernel(cost.measured) / cost.measured - 1e-12)
        )


def test_without_overhead_all_nodes_are_best_and_with_much_one_is():
    free = estimates(100_000, alike(4, overhead=0.0), 0.0)
    assert min(free, key=lambda e: e.seconds).nodes == ("n0", "n1", "n2", "n3")
    dear = estimates(3_000, alike(4), 1e-3)
    assert len(min(dear, key=lambda e: e.seconds).nodes) == 1


@given(st.lists(st.tuples(st.integers(1, 10**6), seconds), min_size=1, max_size=4))
def test_a_fit_is_a_line_that_takes_no_time_back(points):
    fixed, per_token = fit(points)
    assert fixed >= 0
    assert per_token >= 0


@given(
    st.floats(0, 1), st.floats(0, 1e-3), st.lists(st.integers(1, 10**6), min_size=2, max_size=4, unique=True)
)
def test_a_fit_finds_a_line(fixed, per_token, counts):
    found = fit([(count, fixed + per_token * count) for count in counts])
    for count in counts:
        assert found[0] + found[1] * count == pytest.approx(fixed + per_token * count, rel=1e-6, abs=1e-6)


@given(st.integers(2, 5), st.integers(100, 10_000), st.floats(0, 1))
def test_the_formula_gives_what_was_measured_for_the_placement_there_is(count, each, extra):
    nodes = alike(count)
    took = nodes[0].alone(each) + extra
    measured = Measured("m", 1, count * each, {n.name: each for n in nodes}, took, took, {}, tuple(nodes))
    table = estimates(measured.tokens, measured.costs, further(measured))
    assert table[-1].seconds == pytest.approx(took)


def measured(
    took: float, each: int, count: int = 3, quick: float | None = None, room: int | None = None
) -> Measured:
    nodes = tuple(NodeCost(n.name, n.fixed, n.per_token, n.overhead, room) for n in alike(count))
    placed = {node.name: each for node in nodes}
    return Measured("memory", 1, each * count, placed, took, took if quick is None else quick, {}, nodes)


def test_fewer_nodes_are_advised_where_they_are_faster():
    finding = fewer.fewer(measured(4e-3, 1000))
    assert finding.status.value == "warning"
    assert "3 nodes: 4 ms measured" in finding.measured
    assert "1 node 1.4 ms" in finding.measured
    assert "n0" in finding.fix
    assert "estimate" in finding.fix
    assert [len(e["nodes"]) for e in finding.data["estimates"]] == [1, 2, 3]


def test_and_not_where_the_work_is_large_or_the_gain_is_noise():
    assert fewer.fewer(measured(12e-3, 100_000)).status.value == "ok"
    assert fewer.fewer(measured(1.45e-3, 1000)).status.value == "ok"
    # It varies so much that the quicker ones are as quick as one node.
    assert fewer.fewer(measured(4e-3, 1000, quick=1.5e-3)).status.value == "ok"


def test_nor_where_one_node_has_no_room():
    finding = fewer.fewer(measured(4e-3, 1000, room=1600))
    assert "1 node 1.4 ms (no room)" in finding.measured
    assert "n0, n1" in finding.fix


def test_one_node_is_as_few_as_there_can_be():
    assert fewer.fewer(measured(4e-3, 1000, count=1)).status.value == "ok"


def test_what_cannot_be_measured_is_said():
    assert fewer.fewer(Measured("m", 1, 0, {})).status.value == "skipped"
    partial = fewer.fewer(Measured("m", 1, 10, {}, problem="its answers are partial: node 'b' is lost"))
    assert partial.status.value == "failed"
    assert "partial" in partial.measured
