"""What a context may be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.attention import ContextSpec

GOOD = ContextSpec("c1", query_heads=8, key_heads=2, key_dim=64, value_dim=32)


def test_a_good_spec_is_itself_and_knows_its_size():
    assert GOOD.check() is GOOD
    assert GOOD.token_bytes == 2 * (64 + 32) * 4


def test_replicas_not_said_on_the_wire_are_one():
    assert replace(GOOD, replicas=0) == GOOD


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "a/b"}, "name"),
        ({"query_heads": 0}, "query_heads"),
        ({"query_heads": 1025}, "query_heads"),
        ({"key_heads": 3}, "divide"),
        ({"key_heads": 0}, "key_heads"),
        ({"key_heads": 16}, "divide"),
        ({"key_dim": 0}, "key_dim"),
        ({"value_dim": 4097}, "value_dim"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 65}, "replicas"),
        ({"replicas": 0, "key_dim": 0}, "key_dim"),
    ],
)
def test_what_cannot_be_a_context_is_refused_by_name(change, says):
    with pytest.raises(InvalidArgument, match=says):
        replace(GOOD, **change).check()
