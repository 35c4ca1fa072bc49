"""How likely tokens were, against the softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, NotFinite
from edge_attention.core.generation.course import GenerationCourse
from edge_attention.core.generation.log_probabilities import told_token
from edge_attention.core.generation.sampling import GREEDY, Sampling
from edge_attention.core.generation.speculation import SpeculationRule
from edge_attention.core.messages.inference import ToldToken

LOGITS = st.lists(st.integers(-30, 30) | st.just(-np.inf), min_size=1, max_size=40).filter(
    lambda found: max(found) > -np.inf
)


@given(LOGITS, st.integers(0, 45), st.data())
def test_a_token_is_told_with_its_log_probability_and_the_likeliest(logits, count, data):
    array = np.array(logits, np.float32)
    token = data.draw(st.integers(0, len(logits) - 1))
    told = told_token(array, token, 3, count)
    shares = np.exp(array.astype(np.float64)) / np.exp(array.astype(np.float64)).sum()
    with np.errstate(divide="ignore"):
        expected = np.log(shares)
    assert told.token == token
    np.testing.assert_allclose(told.logprob, expected[token], rtol=1e-9, atol=1e-9)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]
    assert [one.token for one in told.likeliest] == order
    np.testing.assert_allclose([one.value for one in told.likeliest], expected[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [511, 512, 513, 5000, 20_011])
@pytest.mark.parametrize("values", [3, 10**6])
@pytest.mark.parametrize("left_out", [0.0, 0.999])
def test_the_likeliest_of_many_are_those_of_all_sorted(size, values, left_out):
    rng = np.random.default_rng(size)
    logits = rng.integers(-values, values, size).astype(np.float32)
    logits[rng.random(size) < left_out] = -np.inf
    logits[size // 2] = 1.0
    told = told_token(logits, 0, 3, 20)
    order = sorted(range(size), key=lambda i: (-logits[i], i))[:20]
    assert [one.token for one in told.likeliest] == order


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_that_say_nothing_are_refused(bad):
    with pytest.raises(NotFinite, match="place 7"):
        told_token(np.array(bad, np.float32), 0, 7, 1)


VOCABULARY = 7


def logits_after(tokens):
    """A model of which each row depends on all tokens until then, and that often repeats itself."""
    weights = np.random.default_rng(sum(tokens[-2:])).normal(size=VOCABULARY)
    weights[(tokens[-1] + 1) % VOCABULARY] += 4
    return weights.astype(np.float32)


def followed(course):
    """All that a course tells, and how many tokens each of its trips had."""
    told, trips = [], []
    if course.finish:
        told.extend(course.told)
    while not course.finish:
        first, asked = course.length, course.ask()
        tokens = [*course.tokens[:first], *asked]
        course.take(np.array([logits_after(tokens[: first + i + 1]) for i in range(len(asked))]))
        told.extend(course.told)
        trips.append(len(asked))
    return told, trips


def told_one_by_one(tokens, first, count):
    told = [ToldToken(tokens[0])] if first == 0 else []
    places = range(max(first, 1), len(tokens))
    told += [told_token(logits_after(tokens[:place]), tokens[place], place, count) for place in places]
    return told


@pytest.mark.parametrize("rows", [1, 3, 256])
@pytest.mark.parametrize("guesses", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.5, seed=3, frequency_penalty=0.3)])
def test_a_course_tells_each_token_once_whatever_is_asked_at_a_time(rows, guesses, sampling):
    prompt = [0, 1, 2, 3, 4, 5, 6] * 3
    for most, prompt_told in ((30, True), (30, False), (0, True)):
        rule = SpeculationRule() if guesses else None
        if rule is not None:
            rule.took(1, 1.0)
        course = GenerationCourse(
            prompt, sampling, most, rule=rule, prompt_rows=rows, likeliest=2, prompt_told=prompt_told
        )
        told, trips = followed(course)
        assert told == told_one_by_one(course.tokens, 0 if prompt_told else len(prompt), 2)
        assert (len(course.tokens), course.finish) == (len(prompt) + most, "length")
        assert max(trips) <= max(rows, 16)
        if guesses and most:
            assert course.accepted


def test_of_a_prompt_alone_nothing_more_is_asked_than_it_takes():
    told, trips = followed(GenerationCourse([3], GREEDY, 0, likeliest=1, prompt_told=True))
    assert (told, trips) == ([ToldToken(3)], [])
    course = GenerationCourse([3, 4, 5], GREEDY, 0, likeliest=1, prompt_told=True)
    assert course.ask() == (3, 4), "what comes after the last is not asked"
    assert followed(GenerationCourse([3, 4], GREEDY, 0, prompt_told=True)) == ([], [])
    with pytest.raises(InvalidArgument, match="max_tokens is 0"):
        GenerationCourse([3], GREEDY, 0)


def test_a_token_that_ends_the_text_is_told_by_itself():
    course = GenerationCourse([0, 1], GREEDY, 9, ends=range(VOCABULARY), likeliest=0)
    assert followed(course) == ([], [2])
    logits = logits_after([0, 1])
    assert (course.finish, course.end) == ("stop", told_token(logits, int(logits.argmax()), 2, 0))
    course = GenerationCourse([0, 1], GREEDY, 9, ends=range(VOCABULARY))
    followed(course)
    assert (course.finish, course.end) == ("stop", None)


def test_more_than_may_be_told_is_refused():
    with pytest.raises(InvalidArgument, match="logprobs is 21; it must be 0 to 20"):
        GenerationCourse([0], GREEDY, 1, likeliest=21)
