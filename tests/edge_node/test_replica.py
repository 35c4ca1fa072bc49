"""A replica's number, in what is said of the node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edge_attention.core.errors import FailedPrecondition
from edge_node import replica
from edge_node.options import JoinOptions
from edge_node.replica import Replica, numbered


def said(monkeypatch, text):
    def run(words, **_):
        assert words[:4] == ["getent", "-s", "dns", "hosts"]
        return subprocess.CompletedProcess(words, 0 if text else 2, text, "")

    monkeypatch.setattr(replica.subprocess, "run", run)
    monkeypatch.setattr(replica.socket, "gethostbyname", lambda _: "172.18.0.4")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("172.18.0.4      edge-attention-edge-node-2.edge-attention_fleet\n", "2"),
        ("172.18.0.4      edge-attention_edge-node_13.edge-attention_fleet\n", "13"),
        ("172.18.0.4 9a8b7c6d_my.box-edge-node-7.net edge-node\n", "7"),
    ],
)
def test_the_number_is_that_of_the_containers_name(monkeypatch, text, number):
    said(monkeypatch, text)
    assert numbered("/data/{replica}/a.csv", None) == f"/data/{number}/a.csv"


@pytest.mark.parametrize("text", ["", "172.18.0.4 loft\n", "172.18.0.4 box.example\n"])
def test_a_network_that_does_not_say_it_is_told_of(monkeypatch, text):
    said(monkeypatch, text)
    with pytest.raises(FailedPrecondition, match=r"of 172.18.0.4 it says .*give --replica N"):
        numbered("edge-node-{replica}", None)


def test_what_is_given_goes_first_and_a_text_without_a_place_asks_nobody(monkeypatch):
    monkeypatch.setattr(replica.subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    assert numbered("edge-node-{replica}-{replica}", 0) == "edge-node-0-0"
    assert numbered("samples=/data/{id}.csv", None) == "samples=/data/{id}.csv"


def test_a_name_with_a_number_is_a_suggestion():
    found = Replica(3, "edge-node-{replica}", Path("/s/{replica}"), ("a=/d/{replica}.csv",), JoinOptions())
    assert (found.name, found.suggested, found.store) == (None, "edge-node-3", Path("/s/3"))
    assert (found.data, found.join) == (("a=/d/3.csv",), JoinOptions())
    plain = Replica(3, "loft", None, (), JoinOptions(identity=Path("/i/{replica}")))
    assert (plain.name, plain.suggested, plain.store) == ("loft", "", None)
    assert plain.join.identity == Path("/i/3")
