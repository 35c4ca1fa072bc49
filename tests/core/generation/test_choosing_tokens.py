"""Tokens out of logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, NotFinite
from edge_attention.core.generation.sampling import GREEDY, MAX_TEMPERATURE, Sampling, choose

LOGITS = st.lists(st.floats(-20, 20, width=32) | st.just(-np.inf), min_size=1, max_size=40).filter(
    lambda found: max(found) > -np.inf
)


def allowed(logits, sampling):
    """Tokens that may be drawn, worked out one after the other."""
    scores = {i: float(x) / sampling.temperature for i, x in enumerate(logits)}
    order = sorted(scores, key=lambda i: (-scores[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    top = scores[order[0]]
    weights = {i: float(np.exp(scores[i] - top)) for i in order}
    kept, sum_, whole = set(), 0.0, sum(weights.values())
    for i in order:
        if sum_ >= sampling.top_p * whole * (1 + 1e-12):
            break
        kept.add(i)
        sum_ += weights[i]
    return {i for i in kept if weights[i] >= sampling.min_p * (1 - 1e-12) and weights[i] > 0}


@given(LOGITS)
def test_greedy_takes_the_likeliest_and_of_several_the_first(logits):
    array = np.array(logits, np.float32)
    assert choose(array, GREEDY, 0) == int(array.argmax())


@given(
    LOGITS,
    st.floats(0.05, 5),
    st.integers(0, 50),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 10**6),
)
def test_only_what_the_filters_leave_is_drawn_and_the_same_each_time(
    logits, temperature, top_k, top_p, min_p, seed, place
):
    array = np.array(logits, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = choose(array, sampling, place)
    assert token == choose(array.copy(), sampling, place)
    assert token in allowed(array, sampling)


def test_draws_have_the_softmax_for_their_shares():
    logits = np.array([1.0, 0.0, -1.0, 2.0], np.float32)
    sampling = Sampling(temperature=0.8, seed=5)
    drawn = np.bincount([choose(logits, sampling, place) for place in range(20_000)], minlength=4)
    shares = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    assert np.abs(drawn / 20_000 - shares).max() < 0.02


def test_each_filter():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    def drawn(**settings):
        sampling = Sampling(temperature=1.0, **settings)
        return {choose(logits, sampling, place) for place in range(300)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0, 1}
    assert drawn(top_p=0.45) == {0}
    assert drawn(min_p=0.2) == {0, 1, 2}
    # Likelier by less than a weight can say is likelier all the same.
    close = np.array([0.0, 1e-30, 20.0], np.float32)
    hot = Sampling(temperature=MAX_TEMPERATURE, top_k=2)
    assert {choose(close, hot, place) for place in range(300)} == {1, 2}
    near = Sampling(temperature=1.0, top_p=0.25)
    assert {choose(close[:2], near, place) for place in range(300)} == {1}
    # Of equal ones those of the lowest numbers.
    even = np.zeros(5, np.float32)
    assert {choose(even, Sampling(temperature=1.0, top_k=2), place) for place in range(100)} == {0, 1}


def test_a_penalty_makes_what_was_there_less_likely():
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    assert choose(logits, Sampling(repetition_penalty=2.0), 0, [0, 0]) == 1
    assert choose(logits, Sampling(repetition_penalty=2.0), 0, []) == 0
    down = np.array([-1.0, -1.5, -9.0], np.float32)
    assert choose(down, Sampling(repetition_penalty=2.0), 0, {0}) == 1


def test_what_has_come_counts_against_a_token_as_often_as_it_came():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, as OpenAI has it, of what came, not of the prompt."""
    logits = np.array([2.0, 1.5, 1.0, 0.0], np.float32)
    for settings, came, expected in (
        ({"frequency_penalty": 0.3}, {0: 1}, 0),
        ({"frequency_penalty": 0.3}, {0: 2}, 1),
        ({"frequency_penalty": 0.3}, {0: 5, 1: 3}, 2),
        ({"presence_penalty": 0.6}, {0: 1}, 1),
        ({"presence_penalty": 0.6}, {0: 9, 1: 1}, 0),
        ({"frequency_penalty": -2.0}, {3: 2}, 3),
        ({"presence_penalty": -2.0}, {2: 1}, 2),
        ({"presence_penalty": 2.0}, {}, 0),
    ):
        assert choose(logits, Sampling(**settings), 0, [0, 0, 0], came) == expected, (settings, came)


def test_a_bias_is_added_after_the_penalties():
    logits = np.array([2.0, 1.5, 1.0, 0.0], np.float32)
    assert choose(logits, Sampling(logit_bias=((3, 2.5),)), 0) == 3
    assert choose(logits, Sampling(logit_bias=((0, -100.0), (1, -100.0))), 0) == 2
    both = Sampling(repetition_penalty=100.0, logit_bias=((3, 1.9),))
    assert choose(logits, both, 0, [0, 1, 2]) == 3
    hot = Sampling(temperature=1.0, logit_bias=((1, 100.0),))
    assert {choose(logits, hot, place) for place in range(100)} == {1}


def test_only_what_takes_the_likeliest_logit_is_greedy():
    assert GREEDY.greedy
    for settings in (
        {"temperature": 1.0},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"logit_bias": ((1, 1.0),)},
    ):
        assert not Sampling(**settings).greedy


def test_a_bias_is_for_a_token_of_the_vocabulary():
    Sampling(logit_bias=((9, 1.0),)).check_vocabulary(10)
    for token in (-1, 10):
        with pytest.raises(InvalidArgument, match=f"logit_bias has token {token}; the model knows 0 to 9"):
            Sampling(logit_bias=((token, 1.0),)).check_vocabulary(10)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_that_say_nothing_are_refused(bad):
    with pytest.raises(NotFinite, match="place 7"):
        choose(np.array(bad, np.float32), GREEDY, 7)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"repetition_penalty": 1e-310}, r"repetition_penalty is 1e-310; it must be at least 0\.01"),
        ({"repetition_penalty": 100.5}, "repetition_penalty"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1; it must be at least -2 and at most 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"logit_bias": ((1, 100.5),)}, "a logit_bias is 100.5"),
        ({"logit_bias": ((1, float("nan")),)}, "a logit_bias"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, "a token twice"),
        (
            {"logit_bias": tuple((n, 1.0) for n in range(301))},
            "bound logit-biases: logit_bias has 301",
        ),
    ],
)
def test_settings_that_none_can_have_are_refused(settings, name):
    with pytest.raises(InvalidArgument, match=name):
        Sampling(**settings).check()


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_least_and_the_largest_penalty_leave_numbers(penalty):
    sampling = Sampling(repetition_penalty=penalty, temperature=1.0)
    sampling.check()
    largest = float(np.finfo(np.float32).max)
    assert choose(np.array([largest, -largest, 0.0], np.float32), sampling, 0, [0, 1]) in range(3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9, 1.0, 100.0])
@pytest.mark.parametrize("seed", [-(2**63), 0, 2**63 - 1])
def test_at_the_edges_of_all_settings_a_token_comes_that_may(temperature, seed):
    """Without a warning, which an aggregator would write for each token."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=50) * 10).astype(np.float32)
    logits[[3, 7]] = -np.inf
    for top_k in (0, 1, 50, 51):
        for top_p in (5e-324, 0.5, 1.0):
            for min_p in (0.0, 1.0):
                sampling = Sampling(1.0, temperature, top_k, top_p, min_p, seed)
                sampling.check()
                token = choose(logits, sampling, 2**40, ())
                assert logits[token] > -np.inf
                if temperature < 1e-6 or top_k == 1 or top_p < 0.1 or min_p == 1:
                    assert token == int(logits.argmax())
