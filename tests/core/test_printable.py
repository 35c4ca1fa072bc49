"""Words of others: whatever they are, what is shown of them is one line that no terminal obeys."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core import errors
from edge_attention.core.printable import NODE_WORDS, WORDS, json_line, shown

# Surrogates, too: Python's text can hold them.
texts = st.text(st.characters(codec=None, categories=None, exclude_categories=()), max_size=300) | st.text(
    st.sampled_from(
        "a b\\\n\r\t\x00\x1b\x07\x7f\x85\x9b\xad\u2028\u2029\u200b\u200e\u202e\u2066\ufeff\ud800\U000e0041"
    )
)
OBEYED = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def safe(text: str) -> bool:
    return not any(unicodedata.category(c) in OBEYED for c in text)


@given(texts)
def test_nothing_a_terminal_obeys_is_left(text):
    assert safe(shown(text))
    assert shown(shown(text)) == shown(text), "what is shown once is shown twice as well"


@given(texts, st.integers(3, 40))
def test_a_limit_is_kept(text, limit):
    assert len(shown(text, limit)) <= limit
    assert safe(shown(text, limit))


@pytest.mark.parametrize("text", ["", "plain", "naïve: 100% of 在那里, 'x' → y", "a b"])
def test_what_can_be_shown_stays_as_it_is(text):
    assert shown(text) == text


@given(st.sampled_from([*errors.__all__, "", "nonsense\n"]), texts, texts)
def test_no_error_holds_more_than_one_line_of_a_peer(name, text, node):
    for error in (errors.by_name(name, text), errors.of_node(node, name, text)):
        assert str(error) == error.message
        assert safe(error.message)
        assert len(error.message) <= WORDS


def test_lines_below_an_error_are_set_in_each_as_one():
    error = errors.FailedPrecondition("it ended:\nnot a line", ["one\x1b[2J", "two\nforged"])
    assert error.message == "it ended:\\nnot a line\n    one\\x1b[2J\n    two\\nforged"


def test_a_node_cannot_speak_for_the_aggregator():
    for name in (
        "Revoked",
        "Unauthenticated",
        "Unreachable",
        "Internal",
        "EdgeAttentionError",
        "x",
    ):
        error = errors.of_node("n", name, "so there")
        assert type(error) is errors.NodeFailed
        assert error.message == f"node 'n', which calls it {name}: so there"
    assert type(errors.of_node("n", "PrivateTensor", "no")) is errors.PrivateTensor
    assert len(errors.of_node("n", "NotFound", "x" * 10_000).message) <= NODE_WORDS + 20


@given(texts)
def test_json_is_shown_safely_too(text):
    line = json_line(json.dumps({"said": text}))
    assert safe(line)
    assert json.loads(line) == {"said": text}
