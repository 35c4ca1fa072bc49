"""Origins of tasks alike are found once, and are what they would be if they were found each time."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attention.core.release import column, output
from edge_node import flows
from edge_node.flows import flow_of, origin_of_rows, origins_of
from edge_node.store.held import Held
from edge_node.store.origin import MAX_FLOW, Origin

X = np.ones(2, np.float32)
STEP, UPDATE = "a" * 64, "b" * 64
ROWS = column("d", "x")


def task():
    """By what an update is computed, and what it makes: from rows, over a step, as a task finds it."""
    rows = Held(X, origin_of_rows(ROWS, False))
    first = flow_of(STEP, {"x": rows, "p": Held(X)})
    made = origins_of(STEP, ["next/x/0", "next/x/1"], first)
    inputs = {f"x/{at}": Held(X, origin) for at, origin in enumerate(made.values())}
    second = flow_of(UPDATE, inputs)
    return first, made, second


def test_tasks_that_are_alike_have_the_very_same_origins():
    (first, made, second), again = task(), task()
    assert first == {(STEP, "x", ROWS)}
    assert second == first | {(UPDATE, "x/*", output(STEP, "next/x/0"))}
    assert made["next/x/1"] == Origin(STEP, "next/x/1", flow=first)
    assert made["next/x/1"].chosen
    assert again[0] is first
    assert again[1]["next/x/0"] is made["next/x/0"]
    assert again[2] is second


def test_of_one_input_that_is_not_known_nothing_is_known():
    known, unknown = Held(X, Origin("", ROWS, flow=frozenset())), Held(X, Origin("", ROWS))
    for _ in range(2):
        assert flow_of(STEP, {"x": known}) is not None
        assert flow_of(STEP, {"x": known, "y": unknown}) is None
        assert flow_of(STEP, {"x": known, "y": known}) is not None


def test_rows_that_private_data_has_chosen_are_others():
    plain, chosen = origin_of_rows(ROWS, False), origin_of_rows(ROWS, True)
    assert (plain.chosen, plain.flow) == (False, frozenset())
    assert (chosen.chosen, chosen.flow) == (True, None)
    assert origin_of_rows(ROWS, False) is plain


@pytest.mark.parametrize("names", [["x" * flows.LETTERS, "y"], [f"x{n}" * 100 for n in range(200)]])
def test_what_is_long_is_not_remembered(names):
    before = [kept.cache_info().currsize for kept in (flows._kept_flow, flows._kept_origins)]
    rows = Held(X, origin_of_rows(ROWS, False))
    flow = flow_of(STEP, dict.fromkeys(names, rows))
    assert flow is None or len(flow) == len(names)
    assert origins_of(STEP, names, flow).keys() == set(names)
    assert before == [kept.cache_info().currsize for kept in (flows._kept_flow, flows._kept_origins)]


def test_many_inputs_with_long_flows_of_their_own_are_not_remembered():
    before = flows._kept_flow.cache_info().currsize
    long = [frozenset({(f"{n:064}", "x", "s" * (MAX_FLOW // 2))}) for n in range(2 * flows.FLOWS // MAX_FLOW)]
    inputs = {f"{n}": Held(X, Origin(STEP, "y", flow=flow)) for n, flow in enumerate(long)}
    assert flow_of(UPDATE, inputs) is None, "more than a node remembers of a tensor"
    assert flows._kept_flow.cache_info().currsize == before
