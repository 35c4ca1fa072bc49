"""Text of tokens as they come, and words that end it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.generation.detokenise import MOST_HELD, UNFINISHED, Detokeniser
from edge_attention.core.generation.stops import StopWords


def pieces(tokens, decode, before=()):
    """The text that is given out after each token."""
    detokeniser = Detokeniser(before)
    for number, token in enumerate(tokens, start=1):
        detokeniser.push(token)
        given_, whole = detokeniser.windows
        yield detokeniser.read(decode(given_), decode(whole), number == len(tokens))


def as_bytes(tokens):
    return b"".join(tokens).decode("utf-8", "replace")


def as_words(tokens):
    """Decodes as tokenizers of words do: a space before each but the first."""
    return " ".join(tokens)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.randoms())
def test_bytes_in_any_tokens_give_whole_characters(text, random):
    data, tokens = text.encode(), []
    while data:
        size = random.randint(1, 5)
        tokens.append(data[:size])
        data = data[size:]
    found = list(pieces(tokens, as_bytes))
    assert "".join(found) == text
    if UNFINISHED not in text:
        assert all(UNFINISHED not in piece for piece in found)


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1))
def test_spaces_that_belong_to_words_are_kept(words):
    assert "".join(pieces(words, as_words)) == " ".join(words)


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1), st.integers(1, 20))
def test_the_first_word_has_the_space_that_its_prompt_gives_it(words, count):
    found = "".join(pieces(words, as_words, ["prompt"] * count))
    assert found == " " + " ".join(words)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), st.data())
def test_a_character_that_began_in_the_prompt_is_the_texts(text, data):
    """A prompt of token ids may end in the middle of one."""
    tokens = [bytes([byte]) for byte in text.encode()]
    cut = data.draw(st.integers(0, len(tokens) - 1))
    found = "".join(pieces(tokens[cut:], as_bytes, tokens[:cut]))
    whole = as_bytes(tokens[:cut])
    known = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, text, strict=False))
    )
    assert found == text[known:]


def test_bytes_that_never_are_a_character_are_not_waited_for():
    found = list(pieces([b"\xff"] * 100, as_bytes))
    assert list(map(len, found[:MOST_HELD])) == [0] * (MOST_HELD - 1) + [MOST_HELD]
    assert "".join(found) == UNFINISHED * 100


def stopped(parts, words):
    stops, found = StopWords(words), []
    for part in parts:
        found.append(stops.take(part))
        if stops.found:
            return "".join(found), True
    return "".join([*found, stops.end()]), False


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_first_word_that_ends_stops_it_in_whatever_pieces_it_comes(parts, words):
    text = "".join(parts)
    ends = [(at + len(word), at) for word in words if (at := text.find(word)) >= 0]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert stopped(parts, words) == expected
    assert stopped(itertools.chain(text), words) == expected


def test_nothing_of_a_stop_word_is_given_out_before_it_is_sure():
    stops = StopWords(["STOP"])
    assert [stops.take(part) for part in ("a ST", "A ", "S", "TOP b")] == ["a ", "STA ", "", ""]
    assert stops.found
    assert stops.take("more") == ""


@pytest.mark.parametrize("words", [[""], ["a" * 257], ["a"] * 17])
def test_words_beyond_bounds_are_refused(words):
    with pytest.raises(InvalidArgument, match="stop word"):
        StopWords(words)
