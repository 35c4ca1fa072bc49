"""The hostile graphs themselves: the same by the same seed, of every kind, every operator among them."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np

from edge_attention.graphs.reading.operators import OPERATORS
from hostile import by_hand, hostile_graphs, mutation, operators, outside


def same(made):
    return [
        (one.name, one.data, one.outputs, {name: (a.dtype, a.tobytes()) for name, a in one.feeds.items()})
        for one in made
    ]


def test_the_same_arguments_give_the_same_graphs():
    first, again, other = (same(hostile_graphs(200, seed)) for seed in (3, 3, 4))
    assert len(first) == 200
    assert first == again
    assert first != other


def test_names_are_those_of_one_graph_each():
    names = [made.name for made in hostile_graphs(1500, 0)]
    assert len(set(names)) == len(names) == 1500


def test_every_operator_of_the_list_is_tried():
    every = {f"{domain or 'ai.onnx'}.{name}, turn 0" for domain in OPERATORS for name in OPERATORS[domain]}
    assert {made.name for made in islice(operators.graphs(0), len(every))} == every


def test_every_kind_of_change_leaves_a_graph_that_is_another():
    kinds = {re.sub(r",.*", "", made.name) for made in islice(mutation.graphs(0), 200)}
    assert kinds == set(mutation.real())
    changed = [made.data for made in islice(mutation.graphs(0), 200)]
    assert len(set(changed)) > 180


def test_those_by_hand_are_finite_and_can_be_fed():
    made = list(by_hand.graphs())
    assert len(made) > 200
    assert all(isinstance(array, np.ndarray | np.generic) for one in made for array in one.feeds.values())


def test_data_outside_lies_where_the_caller_says(tmp_path):
    path = str(tmp_path / "told")
    made = list(outside.graphs(0, (path,)))
    assert len(made) == 3 * len(outside.places())
    assert all(path.encode() in one.data for one in made)
