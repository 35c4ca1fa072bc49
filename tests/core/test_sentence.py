"""Sentences that know which of their words say why a node is away."""

from __future__ import annotations

import copy
import json
import pickle

from edge_attention.core.rounds.progress import NodeProgress, name_nodes
from edge_attention.core.sentence import Away, Sentence

LOST = Sentence("node 'b'", Away(" (lost)", frozenset("b")))


def test_it_is_the_whole_text_wherever_a_text_is_wanted():
    said = Sentence("run r waits for ", LOST, ", until 12:00")
    assert said == "run r waits for node 'b' (lost), until 12:00"
    assert json.dumps([said]) == json.dumps([str(said)])
    assert f"{said}" == str(said)
    assert (
        copy.deepcopy(said).without("b") == pickle.loads(pickle.dumps(said)).without("b") == said.without("b")
    )


def test_of_these_nodes_it_is_not_said_why():
    said = Sentence.joined(
        "; ", [Sentence("x ", LOST), "y", Sentence(Away("c, d are lost", frozenset("cd")))]
    )
    assert said.without("b") == "x node 'b'; y; c, d are lost"
    assert said.without("bc").endswith("; c, d are lost"), "of d nothing else tells"
    assert said.without(["b", "c", "d"]) == "x node 'b'; y; "
    assert said.without(()) == said
    assert Sentence.joined(", ", ()) == Sentence() == ""


def test_whether_it_says_nothing_else():
    assert Sentence(Away("b is lost", frozenset("b")), Away(" and c", frozenset("c"))).only == {"b", "c"}
    assert LOST.only == Sentence("b is lost").only == Sentence().only == frozenset()


def test_nodes_that_are_waited_for_are_named_so():
    nodes = {name: NodeProgress(0.0, lost=name in "bd") for name in "abcde"}
    said = name_nodes(nodes, 3.0)
    assert said == "a (asked 3.0 s ago), b (lost), c (asked 3.0 s ago) and 2 more"
    assert said.without("bd") == "a (asked 3.0 s ago), b, c (asked 3.0 s ago) and 2 more"
    assert name_nodes({"b": nodes["b"]}, 3.0).without("b") == "b"
    assert name_nodes({"a": nodes["a"]}, 3.0) == "a: asked 3.0 s ago"
    assert name_nodes({}, 3.0) == ""
