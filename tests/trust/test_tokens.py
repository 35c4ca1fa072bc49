"""Tokens as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.trust.tokens import make_token, parse_token, read_token, secret_hash

PIN = "0123456789abcdef" * 2


@given(st.sampled_from(["join", "access"]), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_what_is_made_is_parsed_and_never_shown_by_repr(kind, pin):
    token = make_token(kind, pin)
    assert parse_token(f" {token.text}\n") == token
    assert token.secret not in f"{token!r} {token}"
    assert token.text.startswith("eaj_" if kind == "join" else "eat_")


@given(st.text(max_size=200))
def test_anything_else_is_refused_without_being_repeated(text):
    with pytest.raises(InvalidArgument) as caught:
        parse_token(text)
    if len(text.strip()) > 40:
        assert text not in caught.value.message


@given(st.integers(0, 93))
def test_a_token_with_a_digit_missing_is_none(at):
    text = make_token("join", PIN).text
    with pytest.raises(InvalidArgument, match="this is not a token"):
        parse_token(text[:at] + text[at + 1 :])


@pytest.mark.parametrize(("kind", "other"), [("join", "access"), ("access", "join")])
def test_each_kind_is_for_one_thing(kind, other):
    with pytest.raises(InvalidArgument, match="is for"):
        parse_token(make_token(kind, PIN).text, other)


def test_a_file_holds_one(tmp_path):
    token = make_token("access", PIN)
    file = tmp_path / "token"
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_token(file)
    file.write_text(token.text + "\n")
    assert read_token(file, "access") == token
    file.write_bytes(b"\xff\x00")
    with pytest.raises(InvalidArgument, match=str(file)):
        read_token(file)


def test_secrets_are_long_and_kept_as_a_hash():
    made = {make_token("join", PIN).secret for _ in range(100)}
    assert len(made) == 100
    assert all(len(secret) == 48 for secret in made)
    assert len({secret_hash(secret) for secret in made} | made) == 200
