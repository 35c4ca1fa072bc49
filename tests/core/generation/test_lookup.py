"""Guesses from a sequence's own tokens, against a search of all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.generation.lookup import NgramLookup

SIZES = (4, 2)


def searched(tokens, most):
    for size in SIZES:
        if len(tokens) < size:
            continue
        tail = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tail:
                whole = list(tokens)
                place = start + size
                for i in range(most):
                    whole.append(whole[place + i])
                return size, tuple(whole[len(tokens) :])
    return 0, ()


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_it_finds_what_a_search_finds(tokens, most):
    lookup = NgramLookup(sizes=SIZES)
    for count, token in enumerate(tokens):
        assert lookup.guess(most) == searched(tokens[:count], most)
        lookup.append(token)
    assert lookup.guess(most) == searched(tokens, most)
    assert lookup.tokens == tokens


def test_a_run_goes_on_into_itself():
    assert NgramLookup([9, 1, 2, 3, 1, 2, 3], sizes=(3,)).guess(7) == (3, (1, 2, 3, 1, 2, 3, 1))
