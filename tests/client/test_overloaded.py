"""A client that is told to come again does, as long as its own time allows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from fake import Fake, serving

from edge_attention import Client, Overloaded

SPEC = {"query_heads": 2, "key_heads": 1, "key_dim": 4, "value_dim": 4}
KEYS = np.ones((3, 1, 4), np.float32)
QUERIES = np.ones((2, 2, 4), np.float32)


def busy(name, times, retry_after=0.05):
    """A fake whose method `name` is overloaded so many times."""
    fake = Fake()
    left = [times]

    def refusing(handler):
        async def call(request, context):
            if left[0]:
                left[0] -= 1
                raise Overloaded("bound attend-turns: 4 run and 9 wait", retry_after=retry_after)
            return await handler(request, context)

        return call

    fake.handlers = {
        method: refusing(handler) if method.name == name else handler
        for method, handler in fake.handlers.items()
    }
    return fake, left


@pytest.mark.parametrize("deadline", [None, 120.0])
def test_an_attend_is_asked_again_within_its_deadline(deadline):
    fake, left = busy("Attend", 3)
    with serving(fake) as address, Client(address) as client:
        context = client.create_context("c", **SPEC)
        context.append(KEYS, KEYS)
        assert context.attend(QUERIES, deadline=deadline).exact
    assert left == [0]


def test_what_is_left_of_the_deadline_is_all_the_server_gets():
    fake, _ = busy("Attend", 2, retry_after=0.2)
    with serving(fake) as address, Client(address) as client:
        context = client.create_context("c", **SPEC)
        context.append(KEYS, KEYS)
        context.attend(QUERIES, deadline=120.0)
    (deadline,) = [call[-1] for call in fake.calls if call[0] == "attend"]
    assert deadline < 120.0 - 2 * 0.75 * 0.2


def test_it_is_not_waited_for_past_the_deadline():
    fake, _ = busy("Attend", 10**9, retry_after=30.0)
    with serving(fake) as address, Client(address) as client:
        context = client.create_context("c", **SPEC)
        context.append(KEYS, KEYS)
        began = time.monotonic()
        with pytest.raises(Overloaded, match="bound attend-turns") as raised:
            context.attend(QUERIES, deadline=15.0)
        assert time.monotonic() - began < 10
        assert raised.value.retry_after == 30.0


def test_a_client_that_is_not_to_wait_is_told_at_once():
    fake, left = busy("Attend", 3)
    with serving(fake) as address, Client(address, retry=False) as client:
        context = client.create_context("c", **SPEC)
        context.append(KEYS, KEYS)
        with pytest.raises(Overloaded):
            context.attend(QUERIES)
    assert left == [2]


def test_an_append_is_sent_again_and_stored_once():
    fake, left = busy("Append", 2)
    with serving(fake) as address, Client(address) as client:
        context = client.create_context("c", **SPEC)
        assert context.append(KEYS, KEYS).ranges == (range(3),)
        assert context.describe().tokens == 3
    assert left == [0]
