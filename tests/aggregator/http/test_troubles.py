"""What is wrong, in words."""

from __future__ import annotations

import dataclasses

from aggregator.attention import page as attention_page
from aggregator.attention.activity import Query, Span
from aggregator.http.troubles import LOST_SECONDS, troubles
from aggregator.observe.page import Fleet, PagePart
from aggregator.training import page as training_page
from edge_attention.core.messages.attention import Context, ContextSpec, Segment
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.messages.training import RunState, TrainingRun

NOW = 100_000.0
NOTHING = Fleet(NOW, (), "1.0", NOW - 60, {})


def node(name, state=NodeState.READY, silent=0.0, memory=0, software="1.0"):
    return Node(name, state, "CPU", 1, 1000, memory, (), silent, software, 0, ())


def context(*segments):
    """Segments as (holders, those of them that are live), a hundred tokens each."""
    made = tuple(
        Segment(f"s{i}", range(100 * i, 100 * i + 100), tuple(holders), tuple(live))
        for i, (holders, live) in enumerate(segments)
    )
    return Context(ContextSpec("memory", 2, 1, 4, 4), 100 * len(made), made)


def run(state=RunState.RUNNING, **changed):
    fields = {"detail": "", "round": 1, "rounds": 9, "version": 1, "created": NOW}
    return TrainingRun("r-1", "r", state, **{**fields, **changed})


def found(contexts=(), runs=(), queries=(), spans=(), **fleet):
    """What is wrong with such a fleet, where recipes tell this."""
    seen = dataclasses.replace(NOTHING, **fleet)
    answers = dict(attention_page.troubles(NOW, queries, spans))
    asked = PagePart(lacks=attention_page.lacks(contexts), troubles=answers)
    trained = PagePart(troubles=dict(training_page.troubles(runs, seen.started)))
    return troubles(seen, [trained, asked])


def test_a_fleet_that_is_well_has_none():
    well = [node("a", memory=900), node("b")]
    assert found(nodes=well, contexts=[context(("a", "a"), ("ab", "ab"))], runs=[run()]) == {}
    assert troubles(NOTHING, ()) == {}


def test_a_lost_node_is_worse_if_nobody_else_has_its_tokens():
    nodes = [node("a"), node("b", NodeState.LOST, 30.0)]
    replicated = found(nodes=nodes, contexts=[context(("ab", "a"))])
    assert replicated["node/b"]["severity"] == "warn"
    assert replicated["node/b"]["since"] == NOW - 30
    alone = found(nodes=nodes, contexts=[context(("ab", "a"), ("b", ""), ("b", ""))])
    assert alone["node/b"]["severity"] == "bad"
    assert "200 tokens of 'memory'" in alone["node/b"]["text"]
    assert "--name b" in alone["node/b"]["remedy"]


def test_a_node_lost_long_ago_is_news_only_if_it_is_missed():
    nodes = [node("b", NodeState.LOST, LOST_SECONDS + 1)]
    assert found(nodes=nodes) == {}
    assert set(found(nodes=nodes, contexts=[context(("b", ""))])) == {"node/b"}


def test_a_node_that_was_revoked_is_not_told_to_start_again():
    revoked = {"b": 0.0, "c": 0.0}
    for state in (NodeState.SUSPECT, NodeState.LOST):
        nodes = [node("a"), node("b", state, 30.0)]
        told = found(nodes=nodes, revoked=revoked)["node/b"]
        assert told["severity"] == "note"
        assert "was revoked at 1970-01-01 00:00:00 UTC by an operator" in told["text"]
        assert "token create --role node --name b" in told["remedy"]
        assert "--store" not in told["remedy"]
    told = found(nodes=nodes, revoked=revoked, contexts=[context(("b", ""), ("c", ""))])
    assert {told[key]["severity"] for key in ("node/b", "node/c")} == {"bad"}
    assert "revoked" in told["node/c"]["text"], "one that has not come since the aggregator started, too"
    assert found(nodes=[node("b")], revoked=revoked) == {}, "one that is here was let in again"


def test_a_holder_that_never_came_is_named():
    told = found(contexts=[context(("c", ""))])
    assert "has not come since the aggregator started" in told["node/c"]["text"]


def test_the_worst_comes_first():
    nodes = [node("a", NodeState.DRAINING), node("b", NodeState.SUSPECT), node("c", NodeState.LOST)]
    told = found(nodes=nodes, contexts=[context(("c", ""))])
    assert [(key, one["severity"]) for key, one in sorted(told.items(), key=lambda i: i[1]["rank"])] == [
        ("node/c", "bad"),
        ("node/b", "warn"),
        ("node/a", "note"),
    ]


def test_memory_near_its_limit_and_another_release():
    told = found(
        nodes=[node("a", memory=901), node("b", software="0.9"), node("c", NodeState.LOST, 1e9, 999, "0")]
    )
    assert set(told) == {"memory/a", "versions"}
    assert "b (0.9)" in told["versions"]["text"]


def test_runs_that_wait_say_for_what_and_those_that_failed_why():
    assert (
        "Run r-1 waits for node 'b' (lost), until 12:00"
        in (found(runs=[run(waiting="node 'b' (lost), until 12:00")])["run/r-1"]["text"])
    )
    assert found(runs=[run(waiting="round 4 waits for b: asked")])["run/r-1"]["text"] == (
        "Run r-1: round 4 waits for b: asked."
    )
    failed = found(runs=[run(RunState.FAILED, detail="no quorum")])["run/r-1"]
    assert failed["severity"] == "bad"
    assert "no quorum" in failed["text"]
    assert found(runs=[run(RunState.FAILED, detail="x", created=NOW - 3600)]) == {}


def test_partial_answers_of_the_last_minutes_with_the_last_cause():
    outcomes = {"exact": 3, "partial": 2, "failed": 0}
    old = Span(NOW - 4000, {"exact": 0, "partial": 9, "failed": 0})
    query = Query(7, NOW - 5, "memory", 1, "partial", 100, 0.5, why=("100 tokens of b: node 'b' is lost",))
    told = found(spans=[old, Span(NOW - 10, outcomes)], queries=[query])
    assert set(told) == {"answers/partial"}
    assert told["answers/partial"]["text"].startswith("2 of 5 queries in the last five minutes were partial.")
    assert "node 'b' is lost" in told["answers/partial"]["text"]
    assert found(spans=[old], queries=[query]) == {}


def test_a_certificate_that_has_ended():
    assert set(found(days={"a": 3.0, "b": -0.1})) == {"certificate/b"}
