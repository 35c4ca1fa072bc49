"""Files whose nodes do not stand behind what they read, as some tools write them, are read as others are."""

from __future__ import annotations

import pytest
from onnx import GraphProto, ValueInfoProto, helper

from edge_attention.graphs.axes.node_order import put_in_order


def graph_of(*nodes: tuple[str, str, str], outputs: str = "") -> GraphProto:
    """Each (operator, what it reads, what it makes), one letter a value."""
    made = [helper.make_node(op, list(given), list(out)) for op, given, out in nodes]
    return helper.make_graph(made, "g", [], [ValueInfoProto(name=name) for name in outputs])


def order(graph: GraphProto) -> str:
    put_in_order(graph)
    return "".join(node.output[0] for node in graph.node)


def test_what_is_in_order_stays() -> None:
    assert order(graph_of(("Abs", "x", "b"), ("Abs", "x", "a"), ("Add", "ba", "c"), outputs="c")) == "bac"


def test_what_is_needed_before_goes_before_and_nothing_else_moves() -> None:
    nodes = ("Abs", "x", "a"), ("Add", "ac", "b"), ("Abs", "x", "d"), ("Cast", "e", "c"), ("Abs", "x", "e")
    assert order(graph_of(*nodes, outputs="b")) == "aecbd"


def test_what_casts_an_output_stands_behind_what_makes_it() -> None:
    nodes = ("Abs", "x", "a"), ("Abs", "a", "b"), ("Cast", "b", "q"), ("Cast", "a", "p")
    assert order(graph_of(*nodes, outputs="pq")) == "apbq"
    assert order(graph_of(*nodes, outputs="q")) == "abqp"


@pytest.mark.parametrize("count", [2, 3000])
def test_a_circle_is_left_as_it_is(count: int) -> None:
    made = [
        helper.make_node("Abs", [f"v{(at + 1) % count}"], [f"v{at}"], name=str(at)) for at in range(count)
    ]
    graph = helper.make_graph(made, "g", [], [])
    put_in_order(graph)
    assert [node.name for node in graph.node] == [str(at) for at in range(count)]


def test_a_long_chain_that_is_turned_round_is_put_in_order() -> None:
    """Without calls within calls, and without looking at each again and again."""
    made = [helper.make_node("Abs", [f"v{at}"], [f"v{at + 1}"]) for at in range(20_000)]
    graph = helper.make_graph(made[::-1], "g", [], [])
    put_in_order(graph)
    assert [node.output[0] for node in graph.node] == [f"v{at + 1}" for at in range(20_000)]
