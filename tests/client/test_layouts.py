"""Batches and PyTorch's order of dimensions: the same numbers as without, in another order."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attention.client.layouts import arranged_queries, arranged_tokens
from edge_attention.core.errors import InvalidArgument, InvalidTensor

SIZES = {"query_heads": 4, "key_heads": 2, "key_dim": 8, "value_dim": 6}
RANDOM = np.random.default_rng(3)
KEYS, VALUES = RANDOM.standard_normal((40, 2, 8), np.float32), RANDOM.standard_normal((40, 2, 6), np.float32)
QUERIES = RANDOM.standard_normal((3, 5, 4, 8), np.float32)


@pytest.fixture
def filled(client):
    context = client.create_context("memory", **SIZES)
    context.append(KEYS, VALUES)
    return context


def test_what_is_appended_in_pytorchs_layout_is_the_same(client, filled):
    turned = client.create_context("turned", **SIZES)
    turned.append(KEYS.swapaxes(0, 1), VALUES.swapaxes(0, 1)[None], layout="torch")
    expected = filled.attend(QUERIES[0])
    np.testing.assert_array_equal(turned.attend(QUERIES[0]).out, expected.out)


@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_is_what_its_rows_are_alone(filled, causal):
    alone = [filled.attend(row, causal=causal, weights=True) for row in QUERIES]
    batch = filled.attend(QUERIES, causal=causal, weights=True)
    turned = filled.attend(QUERIES.swapaxes(1, 2), causal=causal, weights=True, layout="torch")
    assert batch.out.shape == (3, 5, 4, 6)
    assert turned.out.shape == (3, 4, 5, 6)
    assert turned.lse.shape == (3, 4, 5)
    assert turned.weights.shape == (3, 4, 5, 40)
    for row, answer in enumerate(alone):
        for what in ("out", "lse", "weights"):
            expected = getattr(answer, what)
            np.testing.assert_allclose(getattr(batch, what)[row], expected, atol=1e-6)
            np.testing.assert_allclose(getattr(turned, what)[row].swapaxes(0, 1), expected, atol=1e-6)
        for node, mass in answer.mass.items():
            np.testing.assert_allclose(batch.mass[node][row], mass, atol=1e-6)
            np.testing.assert_allclose(turned.mass[node][row].T, mass, atol=1e-6)
    shard = turned.shards[0]
    assert shard.mass.shape == (3, 4, 5)


def test_positions_of_a_batch_are_for_all_rows_or_for_each(filled):
    positions = np.array([3, 9, 20, 30, 39])
    alike = filled.attend(QUERIES, causal=True, positions=positions)
    each = filled.attend(QUERIES, causal=True, positions=np.tile(positions, (3, 1)))
    np.testing.assert_array_equal(alike.out, each.out)
    np.testing.assert_allclose(
        alike.out[1], filled.attend(QUERIES[1], causal=True, positions=positions).out, atol=1e-6
    )
    with pytest.raises(InvalidTensor, match=r"positions has shape \[4\]; give \[5\] for all 3 rows"):
        filled.attend(QUERIES, causal=True, positions=positions[:4])


def test_one_row_of_pytorchs_layout_needs_no_batch(filled):
    turned = filled.attend(QUERIES[0].swapaxes(0, 1), layout="torch")
    np.testing.assert_allclose(turned.out.swapaxes(0, 1), filled.attend(QUERIES[0]).out, atol=1e-6)


def test_other_shapes_are_said():
    with pytest.raises(InvalidTensor, match=r"queries has shape \[5, 8\]; in PyTorch's layout it is \[heads"):
        arranged_queries(np.zeros((5, 8), np.float32), "torch")
    with pytest.raises(InvalidTensor, match=r"keys has shape .*a context holds one sequence"):
        arranged_tokens(np.zeros((2, 2, 5, 8), np.float32), "keys", "torch")


@pytest.mark.parametrize(
    ("layout", "given", "said"),
    [
        (
            "torch",
            (5, 4, 8),
            r"shape \[5, 4, 8\]; in PyTorch's layout it must be \[4, queries, 8\]",
        ),
        ("torch", (3, 5, 4, 8), r"shape \[3, 5, 4, 8\]; .* or \[batch, 4, queries, 8\]"),
        ("tokens", (3, 4, 5, 8), r"shape \[3, 4, 5, 8\]; it must be .* or \[batch, queries, 4, 8\]"),
    ],
)
def test_a_wrong_shape_is_said_as_it_was_given(filled, layout, given, said):
    with pytest.raises(InvalidTensor, match=said):
        filled.attend(np.zeros(given, np.float32), layout=layout)


def test_wrong_keys_and_values_are_said_as_they_were_given(filled):
    keys, values = KEYS.swapaxes(0, 1), VALUES.swapaxes(0, 1)
    with pytest.raises(InvalidTensor, match=r"keys has shape \[40, 2, 8\]; .* be \[2, tokens, 8\]"):
        filled.append(KEYS, values, layout="torch")
    with pytest.raises(InvalidTensor, match="values has 39 tokens, keys 40; give as many of both"):
        filled.append(keys, values[:, 1:], layout="torch")


def test_a_layout_that_is_none(filled):
    with pytest.raises(InvalidArgument, match="layout is 'heads'; it must be one of tokens, torch"):
        filled.attend(QUERIES[0], layout="heads")


def test_positions_of_queries_without_a_batch_are_one_row(filled):
    with pytest.raises(InvalidTensor, match="positions"):
        filled.attend(QUERIES[0, :4], causal=True, positions=[[1, 2], [3, 4]])
