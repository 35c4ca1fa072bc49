from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core import release
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.release import (
    ANY,
    ANY_COLUMN,
    MAX_TEXT,
    GraphRule,
    Release,
    column,
    columns_of,
    numbered,
    output,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
ROWS = column("d", "x")
RELEASE = Release(
    {
        A: GraphRule({"x/*": frozenset({output(B, "next/x/0")})}, frozenset({"loss", "update/*/q"})),
        B: GraphRule({"x/*": frozenset({output(B, "next/x/7")}), "rows": frozenset({ROWS})}),
    }
)


@given(st.text(), st.text())
def test_a_column_is_told_from_any_other(dataset, name):
    assert columns_of(column(dataset, name)) == ((dataset, name),)
    assert column(dataset, name).isascii()


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("x/3", "x/*"),
        ("update/12/q", "update/*/q"),
        ("x3", "x3"),
        ("3", "3"),
        ("x/3a", "x/3a"),
        ("a/1/2", "a/*/*"),
    ],
)
def test_names_without_numbers(name, without):
    assert numbered(name) == without


def test_long_names_are_not_remembered():
    before = release._remembered.cache_info().currsize
    assert numbered("x" * 100_000 + "/7") == "x" * 100_000 + "/*"
    assert release._remembered.cache_info().currsize == before


def test_what_may_leave():
    assert RELEASE.leaves(A, "update/3/q")
    assert not RELEASE.leaves(A, "update/3")
    assert not RELEASE.leaves(B, "loss")
    assert not RELEASE.leaves(C, "loss")


@pytest.mark.parametrize(
    ("edge", "stranger"),
    [
        ((A, "x/*", output(B, "next/x/1")), False),
        ((B, "rows", ROWS), False),
        ((A, "x/*", ROWS), True),
        ((A, "anchor/*", output(B, "next/x/1")), True),
        ((A, "x/*", output(B, "next/slot/1")), True),
        ((A, "x/*", output(C, "next/x/1")), True),
        ((B, "rows", column("d", "y")), True),
        ((B, "rows", column("e", "x")), True),
        ((C, "rows", ROWS), True),
        ((B, "rows", "alignment"), True),
    ],
)
def test_what_it_may_be_computed_from(edge, stranger):
    assert (RELEASE.stranger({edge}) is not None) == stranger
    assert RELEASE.stranger({(B, "rows", ROWS), edge}) == (edge if stranger else None)


def test_any_graph_is_each_that_is_not_named():
    any_of = Release(
        {
            A: GraphRule({"keys": frozenset({f"{ANY}:keys"})}, frozenset({"out"})),
            ANY: GraphRule({ANY: frozenset({ANY_COLUMN})}),
        }
    )
    assert any_of.stranger({(C, "in", ROWS), (A, "keys", output(C, "keys"))}) is None
    for edge in (
        (A, "keys", output(C, "values")), (A, "keys", ROWS), (A, "q", ROWS), (C, "in", output(B, "keys")),
        (A, "keys", "x:keys"), (C, "in", "alignment"),
    ):  # fmt: skip
        assert any_of.stranger({edge}) == edge


def test_a_release_is_its_text():
    assert Release.parse(RELEASE.text) == RELEASE
    assert RELEASE.columns == (ROWS,)
    assert len(RELEASE.digest) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"graphs":{}}',
        '{"graphs":[],"release":1}',
        json.dumps(json.loads(RELEASE.text)),  # with spaces
        RELEASE.text.replace("release", "Release"),
        RELEASE.text.replace('"release":1', '"release":2'),
        RELEASE.text.replace(A, A.upper()),
        RELEASE.text.replace('{"graphs":{', '{"graphs":{},"graphs":{', 1),
        RELEASE.text.replace('"leaves":[]', '"leaves":["loss"],"leaves":[]'),
        '{"graphs":{"' + A + '":{"inputs":{"x":["b","a"]},"leaves":[]}},"release":1}',
        '{"graphs":{"' + A + '":{"inputs":{},"leaves":"loss"}},"release":1}',
        "[" * 5000,
        " " * (MAX_TEXT + 1),
    ],
)
def test_a_text_in_another_form_is_none(text):
    with pytest.raises(InvalidArgument, match="release"):
        Release.parse(text)
