"""The consensus losses against DESIGN's formulae, written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.rounds.consensus import consensus_losses, squared_distance

NODES = ("a", "b", "c")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_losses_follow_the_formula(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    attention = {n: rng.random((2, 3, 5)).astype(np.float32) for n in NODES}
    alpha = rng.random((2, 3, 5)).astype(np.float32)
    own = {n: rng.standard_normal(size).astype(np.float32) for n in NODES}
    new = rng.standard_normal(size).astype(np.float32)
    cut = int(rng.integers(size + 1))
    distances = {
        n: squared_distance(x[:cut], new[:cut]) + squared_distance(x[cut:], new[cut:]) for n, x in own.items()
    }
    found = consensus_losses(attention, alpha, distances)

    wide = {n: a.astype(np.float64) for n, a in attention.items()}
    mean = sum(wide.values()) / 3
    apart = {n: float(((x.astype(np.float64) - new) ** 2).sum()) for n, x in own.items()}
    spread = {n: float(((a - mean) ** 2).sum()) for n, a in wide.items()}
    expected = {
        "total": sum(spread.values()) + sum(apart.values()),
        "attention": sum(spread.values()),
        "parameters": sum(apart.values()),
        "global": float(((mean - alpha) ** 2).sum()),
        **{f"node/{n}": float(((wide[n] - alpha) ** 2).sum()) + apart[n] for n in NODES},
    }
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_nodes_that_agree_lose_nothing() -> None:
    same = np.full((4, 4), 0.1, np.float32)
    found = consensus_losses(dict.fromkeys(NODES, same), same, dict.fromkeys(NODES, 0.0))
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-15)


def test_what_is_not_known_is_left_out() -> None:
    attention = {"a": np.zeros(2, np.float32), "b": np.array([2, 0], np.float32)}
    assert consensus_losses(attention, None, {}) == {"total": 2.0, "attention": 2.0}
    assert consensus_losses({}, None, {"a": 1.5, "b": 2.0}) == {
        "total": 3.5,
        "parameters": 3.5,
        "node/a": 1.5,
        "node/b": 2.0,
    }


def test_a_distance_of_close_float32_is_exact_in_float64() -> None:
    a = np.full(200_000, 1.0, np.float32)
    b = np.nextafter(a, np.float32(2))
    assert squared_distance(a, b) == pytest.approx(200_000 * 2.0**-46, rel=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    a = np.zeros(3, np.float32)
    with pytest.raises(InvalidArgument, match="of the same nodes; one lacks b"):
        consensus_losses({"a": a, "b": a}, None, {"a": 0.0})
    with pytest.raises(
        InvalidTensor, match=r"attention weights of 'b' have shape \[4\], those of others \[3\]"
    ):
        consensus_losses({"a": a, "b": np.zeros(4, np.float32)}, None, {})
    with pytest.raises(InvalidTensor, match=r"equal shapes, not \[3\] and \[4\]"):
        consensus_losses({"a": a}, np.zeros(4, np.float32), {})
