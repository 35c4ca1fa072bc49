"""A generation as decisions: guesses change nothing of what comes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.generation.course import GenerationCourse
from edge_attention.core.generation.sampling import GREEDY, Sampling
from edge_attention.core.generation.speculation import SpeculationRule

VOCABULARY = 7


def logits_after(tokens, order):
    """Of a model that looks at the last `order` tokens alone, so that it repeats itself."""
    digest = hashlib.sha256(bytes(tokens[-order:])).digest()
    return np.frombuffer(digest[: 2 * VOCABULARY], "<i2").astype(np.float32) / 2**13


def generated(prompt, sampling, most, ends=(), rule=None, rows=256, order=2):
    """All that comes, and the course; the model's state is kept as a session would."""
    course = GenerationCourse(prompt, sampling, most, ends, rule, rows)
    held, came, trips = [], [], 0
    while not course.finish:
        asked = course.ask()
        assert 0 < len(asked) <= max(rows, 16)
        logits = np.stack([logits_after([*held, *asked[: i + 1]], order) for i in range(len(asked))])
        held += asked
        if rule is not None:
            rule.took(len(asked), 0.005)
        came += course.take(logits)
        trips += 1
        assert course.length <= len(held)
        del held[course.length :]
        assert held == list(course.tokens[: len(held)])
    assert list(course.tokens) == [*prompt, *came]
    return came, course, trips


@given(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30),
    st.integers(0, 2**63 - 1),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 1.3]),
    st.integers(1, 60),
    st.sets(st.integers(0, VOCABULARY - 1), max_size=1),
    st.integers(1, 3),
    st.sampled_from([1, 3, 256]),
)
def test_guesses_change_nothing(prompt, seed, temperature, penalty, most, ends, order, rows):
    sampling = Sampling(penalty, temperature, seed=seed)
    plain, course, _ = generated(prompt, sampling, most, ends, None, rows, order)
    guessed, other, _ = generated(prompt, sampling, most, ends, SpeculationRule(), rows, order)
    assert guessed == plain
    assert other.finish == course.finish
    assert other.accepted <= other.guessed


def test_what_repeats_itself_takes_few_trips():
    prompt, sampling = [1, 2, 3, 4, 5], GREEDY
    plain, _, trips = generated(prompt, sampling, 300)
    guessed, course, fewer = generated(prompt, sampling, 300, rule=SpeculationRule())
    assert guessed == plain
    assert trips == 300
    assert fewer < 60
    assert course.accepted > 0.8 * course.guessed


def test_how_it_ends():
    came, course, _ = generated([1, 2], GREEDY, 5)
    assert (len(came), course.finish) == (5, "length")
    came, course, _ = generated([1, 2], GREEDY, 50, ends=[came[3]])
    assert course.finish == "stop"
    assert len(came) <= 3


def test_a_prompt_is_read_piece_by_piece():
    course = GenerationCourse(list(range(5)) * 2, GREEDY, 3, prompt_rows=4)
    asked = []
    while course.length < 10:
        asked.append(course.ask())
        came = course.take(np.zeros((len(asked[-1]), 7), np.float32))
    assert list(map(len, asked)) == [4, 4, 2]
    assert came == (0,)


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidArgument, match="prompt is empty"):
        GenerationCourse([], GREEDY, 1)
    with pytest.raises(InvalidArgument, match="max_tokens"):
        GenerationCourse([1], GREEDY, 0)
    course = GenerationCourse([1, 2], GREEDY, 1)
    course.ask()
    with pytest.raises(InvalidTensor, match="2 tokens"):
        course.take(np.zeros((1, 7), np.float32))
