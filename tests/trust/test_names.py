"""Roles and the names in certificates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.names import CLIENT_ROLES, DOMAIN, ROLES, may, parse_uri, require_role, uri

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def test_client_roles_are_a_ladder_and_nodes_stand_beside_it():
    for have, need in itertools.product(ROLES, ROLES):
        if "node" in (have, need):
            assert may(have, need) == (have == need)
        else:
            assert may(have, need) == (CLIENT_ROLES.index(have) >= CLIENT_ROLES.index(need))


@given(st.sampled_from(ROLES), NAMES)
def test_a_name_survives_its_certificate(role, name):
    assert parse_uri(uri(role, name)) == (role, name)


@pytest.mark.parametrize(
    "text",
    ["", DOMAIN, f"{DOMAIN}/node", f"{DOMAIN}/node/", f"{DOMAIN}/root/a", f"{DOMAIN}/node/a/b",
     "spiffe://elsewhere/node/a", f"x{DOMAIN}/node/a", "node/a"],
)  # fmt: skip
def test_no_other_uri_names_a_peer(text):
    with pytest.raises(InvalidArgument):
        parse_uri(text)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "ä", "x" * 65, "-a"])
def test_a_name_that_is_none_gets_no_certificate(name):
    with pytest.raises(InvalidArgument):
        uri("node", name)


def test_other_words_are_no_roles():
    with pytest.raises(InvalidArgument, match="node, viewer, user, operator"):
        require_role("admin")
