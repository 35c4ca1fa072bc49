"""What is wrong, in words."""

from __future__ import annotations

import dataclasses

from aggregator.attention import page as attention_page
from aggregator.attention.activity import Query, Span
from aggregator.http.troubles import LOST_SECONDS, troubles
from aggregator.observe.page import Fleet, Lack, PagePart
from aggregator.training import page as training_page
from aggregator.training.divergence import diverged
from aggregator.training.remedies import InQuarantine, remedy_of
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.attention import Context, ContextSpec, Segment
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.messages.training import RunState, TrainingRun
from edge_attention.core.sentence import Away, Sentence

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


def found(contexts=(), runs=(), queries=(), spans=(), lacks=(), **fleet):
    """What is wrong with such a fleet, where recipes tell this."""
    seen = dataclasses.replace(NOTHING, **fleet)
    answers = dict(attention_page.troubles(NOW, queries, spans))
    asked = PagePart(lacks=(*attention_page.lacks(contexts), *lacks), troubles=answers)
    trained = PagePart(troubles=dict(training_page.troubles(runs, seen.started)))
    return troubles(seen, [trained, asked])


def test_a_fleet_that_is_well_has_none():
    well = [node("a", memory=900), node("b")]
    assert found(nodes=well, contexts=[context(("a", "a"), ("ab", "ab"))], runs=[run()]) == {}
    assert troubles(NOTHING, ()) == {}


def test_a_lost_node_is_worse_if_nobody_else_has_its_tokens():
    nodes = [node("a"), node("b", NodeState.LOST, 30.0)]
    replicated = found(nodes=nodes, contexts=[context(("ab", "a"))])
    assert replicated["nodes/lost"]["severity"] == "warn"
    assert replicated["nodes/lost"]["since"] == NOW - 30
    alone = found(nodes=nodes, contexts=[context(("ab", "a"), ("b", ""), ("b", ""))])
    assert set(alone) == {"nodes/missed"}
    assert alone["nodes/missed"]["severity"] == "bad"
    assert alone["nodes/missed"]["text"] == (
        "Node b is lost. Nobody else that is here holds its 200 tokens of 'memory': answers over them "
        "are partial."
    )
    assert "--name b" in alone["nodes/missed"]["remedy"]


def test_all_nodes_of_one_cause_have_one_sentence():
    nodes = [node("a"), *(node(name, NodeState.LOST, 30.0 + i) for i, name in enumerate("bcd"))]
    told = found(nodes=nodes, contexts=[context(("bc", ""), ("b", ""), ("ad", "a"))])
    assert {key: (one["text"], one["nodes"]) for key, one in told.items()} == {
        "nodes/missed": (
            "Nodes b and c are lost. Nobody else that is here holds their 200 tokens of 'memory': answers "
            "over them are partial.",
            ("b", "c"),
        ),
        "nodes/lost": ("Node d is lost.", ("d",)),
    }
    assert told["nodes/missed"]["since"] == NOW - 31, "when the first of them began"
    assert "what they share" in told["nodes/missed"]["remedy"]
    many = found(nodes=[node(f"n{i:02}", NodeState.LOST, 5.0) for i in range(40)])
    assert many["nodes/lost"]["text"] == "Nodes n00, n01, n02, n03, n04, n05 and 34 more are lost."
    assert len(many["nodes/lost"]["nodes"]) == 40
    leaving = found(nodes=[node("a", NodeState.DRAINING), node("b", NodeState.DRAINING)])
    assert leaving["nodes/draining"]["text"] == "Nodes a and b finish what they have and leave."
    full = found(nodes=[node("a", memory=950), node("b", memory=920), node("c")])
    assert full["memory"]["text"] == "Nodes a and b have each stored over 90% of what they may."
    ended = found(days={"a": -0.1, "b": -1.0, "server": -0.2})
    assert ended["certificates"]["text"] == "The certificates of a and b have ended."
    assert "--tls-certificate" in ended["certificate/server"]["remedy"], "no node is started for it"


def test_what_recipes_miss_of_the_same_nodes_follows_their_sentence():
    missed = (
        Lack(frozenset("b"), "part 3 of model bert"),
        Lack(frozenset("b"), "part 4 of model bert"),
        Lack(frozenset("x"), "part 5 of model bert"),
    )
    told = found(
        nodes=[node("b", NodeState.LOST, 9.0), node("x", NodeState.SUSPECT)],
        contexts=[context(("b", ""))],
        lacks=missed,
    )
    assert told["nodes/missed"]["text"] == (
        "Node b is lost. Nobody else that is here holds its 100 tokens of 'memory': answers over them are "
        "partial. Nobody else that is here holds its part 3 of model bert and part 4 of model bert."
    )
    assert told["nodes/suspect"]["text"].endswith("holds its part 5 of model bert.")


def test_a_node_lost_long_ago_is_news_only_if_it_is_missed():
    nodes = [node("b", NodeState.LOST, LOST_SECONDS + 1)]
    assert found(nodes=nodes) == {}
    assert set(found(nodes=nodes, contexts=[context(("b", ""))])) == {"nodes/missed"}


def test_a_node_that_was_revoked_is_not_told_to_start_again():
    revoked = {"b": 0.0, "c": 0.0}
    for state in (NodeState.SUSPECT, NodeState.LOST):
        nodes = [node("a"), node("b", state, 30.0)]
        told = found(nodes=nodes, revoked=revoked)["nodes/shut-out"]
        assert told["severity"] == "note"
        assert "was revoked at 1970-01-01 00:00:00 UTC by an operator" in told["text"]
        assert "token create --role node --name b" in told["remedy"]
        assert "--store" not in told["remedy"]
    told = found(nodes=nodes, revoked=revoked, contexts=[context(("b", ""), ("c", ""))])
    assert {key: one["severity"] for key, one in told.items()} == {"nodes/shut-out-missed": "bad"}
    assert told["nodes/shut-out-missed"]["nodes"] == ("b", "c"), "one that has not come since the start, too"
    assert found(nodes=[node("b")], revoked=revoked) == {}, "one that is here was let in again"


def test_a_holder_that_never_came_is_named():
    told = found(contexts=[context(("c", ""))])
    assert "has not come since the aggregator started" in told["nodes/absent"]["text"]


def test_the_worst_comes_first():
    nodes = [node("a", NodeState.DRAINING), node("b", NodeState.SUSPECT), node("c", NodeState.LOST)]
    told = found(nodes=nodes, contexts=[context(("c", ""))])
    assert [(key, one["severity"]) for key, one in sorted(told.items(), key=lambda i: i[1]["rank"])] == [
        ("nodes/missed", "bad"),
        ("nodes/suspect", "warn"),
        ("nodes/draining", "note"),
    ]


def test_memory_near_its_limit_and_another_release():
    told = found(
        nodes=[node("a", memory=901), node("b", software="0.9"), node("c", NodeState.LOST, 1e9, 999, "0")]
    )
    assert set(told) == {"memory", "versions"}
    assert "b (0.9)" in told["versions"]["text"]


def test_runs_that_wait_say_for_what_and_those_that_failed_why():
    assert (
        "Run r-1 waits for node 'b' (lost), until 12:00"
        in (found(runs=[run(waiting="node 'b' (lost), until 12:00")])["run/r-1"]["text"])
    )
    assert found(runs=[run(waiting="round 4 waits for b: asked")])["run/r-1"]["text"] == (
        "Run r-1: round 4 waits for b: asked."
    )
    assert found(runs=[run(RunState.FAILED, detail="x", created=NOW - 3600)]) == {}


def test_a_run_that_failed_was_wrong_and_its_reason_is_said_where_it_is_drawn():
    told = found(nodes=[node("a", NodeState.LOST, 9.0)], runs=[run(RunState.FAILED, detail="no quorum")])
    failed = told["run/r-1"]
    assert (failed["text"], failed["over"]) == ("Run r-1 failed after round 1 of 9.", True)
    assert failed["more"] == "run/r-1"
    assert failed["rank"] > told["nodes/lost"]["rank"], "what is wrong now comes before what was, however bad"


def test_a_run_is_not_to_be_resumed_where_that_cannot_work():
    failed = run(RunState.FAILED)
    assert "train resume r-1" in remedy_of(failed, FailedPrecondition("node 'b' is lost"))
    ends = InQuarantine("a: NaN"), diverged("the loss", 2, 10.0, None, "lower optimizer.lr")
    for error in ends:
        assert "resume r-1" not in remedy_of(failed, error)
        assert "start it anew" in remedy_of(failed, error)
        assert "runs delete r-1" in remedy_of(failed, error)
    assert remedy_of(failed, None) == "To forget it: edge-attention runs delete r-1", "nobody knows any more"
    assert remedy_of(run(), None) == ""


def test_partial_answers_of_the_last_minutes_with_the_last_cause():
    outcomes = {"exact": 3, "partial": 2, "failed": 0}
    old = Span(NOW - 4000, {"exact": 0, "partial": 9, "failed": 0})
    query = Query(7, NOW - 5, "memory", 1, "partial", 100, 0.5, why=("100 tokens of b: node 'b' is lost",))
    told = found(spans=[old, Span(NOW - 10, outcomes)], queries=[query])
    assert set(told) == {"answers/partial"}
    assert told["answers/partial"]["text"].startswith("2 of 5 queries in the last five minutes were partial.")
    assert "node 'b' is lost" in told["answers/partial"]["text"]
    assert not told["answers/partial"]["over"]
    assert found(spans=[old], queries=[query]) == {}
    other, since = (dataclasses.replace(query, number=n, context=c, outcome="exact", why=()) for n, c in
                    ((8, "other"), (9, "memory")))  # fmt: skip
    spans = [Span(NOW - 10, outcomes)]
    assert not found(spans=spans, queries=[query, other])["answers/partial"]["over"]
    assert found(spans=spans, queries=[query, other, since])["answers/partial"]["over"], (
        "answered in full since"
    )


def lost(*names, quoted=True):
    """As what waits for nodes says it of those that are away."""
    return Sentence.joined(
        ", ", [Sentence(f"node {n!r}" if quoted else n, Away(" (lost)", frozenset(n))) for n in names]
    )


def test_why_nodes_are_away_is_said_once():
    away = [node(name, NodeState.LOST, 30.0) for name in "bc"]
    waits = run(waiting=Sentence(lost("b", "c", "d"), ", until 12:00"))
    why = [
        Sentence(f"{n} tokens of {who}", Away(f": node {who!r} is lost", frozenset(who)))
        for n, who in [(200, "b"), (9, "d")]
    ]
    query = Query(7, NOW - 5, "memory", 1, "partial", 100, 0.5, why=tuple(why))
    spans = [Span(NOW - 10, {"exact": 0, "partial": 1, "failed": 0})]
    told = found(nodes=away, runs=[waits], queries=[query], spans=spans)
    assert told["nodes/lost"]["text"] == "Nodes b and c are lost."
    assert told["run/r-1"]["text"] == "Run r-1 waits for node 'b', node 'c', node 'd' (lost), until 12:00."
    assert told["answers/partial"]["text"].endswith(
        ", lacked 200 tokens of b; 9 tokens of d: node 'd' is lost."
    )
    assert {type(one["text"]) for one in told.values()} == {str}, "as JSON has it"
    waits = run(
        waiting=Sentence(lost("b", quoted=False), ", c (asked 3.0 s ago) and ", lost("d", quoted=False))
    )
    assert found(nodes=away, runs=[waits])["run/r-1"]["text"] == (
        "Run r-1 waits for b, c (asked 3.0 s ago) and d (lost)."
    )


def test_nothing_is_left_out_of_what_only_looks_like_it():
    """As a name, or a reason that a node gave."""
    away = [node("b", NodeState.LOST, 30.0)]
    waits = run(waiting="a node called 'b (lost)': node 'b' is lost, it says")
    assert "'b (lost)': node 'b' is lost, it says." in found(nodes=away, runs=[waits])["run/r-1"]["text"]


def test_a_certificate_that_has_ended():
    assert set(found(days={"a": 3.0, "b": -0.1})) == {"certificates"}
