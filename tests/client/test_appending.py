"""An append whose connection breaks: the client learns what became of it, or says that it is not known."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from fake import serving

from edge_attention import Client, Unavailable, Unreachable
from edge_attention.client import appending, contexts
from edge_attention.client.background import BACKGROUND

SIZES = {"query_heads": 2, "key_heads": 2, "key_dim": 3, "value_dim": 2}
KEYS, VALUES = np.ones((7, 2, 3), np.float32), np.ones((7, 2, 2), np.float32)


def stored(fake):
    return sum(map(len, fake.contexts["c"][1]))


def test_an_answer_that_was_lost_is_asked_for(client, fake):
    context = client.create_context("c", **SIZES)
    fake.broken = ["after"]
    assert context.append(KEYS, VALUES).ranges == (range(7),)
    assert stored(fake) == 7


def test_the_asking_goes_on_while_the_aggregator_is_away(client, fake):
    context = client.create_context("c", **SIZES)
    fake.broken = ["after", "before", "before", "before"]
    assert context.append(KEYS, VALUES).ranges == (range(7),)


def test_what_was_not_appended_is_said_and_may_be_called_again(client, fake):
    context = client.create_context("c", **SIZES)
    fake.broken = ["before"]
    with pytest.raises(Unreachable, match=r"\(it was not appended\)$"):
        context.append(KEYS, VALUES, request_id="mine")
    assert stored(fake) == 0
    for _ in range(3):  # the first id was given up; of the second there is one append
        assert context.append(KEYS, VALUES, request_id="mine").ranges == (range(7),)
    assert list(fake.answers) == ["mine", "mine-2"]
    assert stored(fake) == 7


def test_what_cannot_be_learned_is_said_with_the_id_to_call_again_with(client, fake, monkeypatch):
    monkeypatch.setattr(appending, "ASK_SECONDS", 0.5)
    context = client.create_context("c", **SIZES)
    fake.broken = ["after", *["before"] * 100]
    with pytest.raises(Unreachable, match="is not known: call again with request_id='mine'"):
        context.append(KEYS, VALUES, request_id="mine")
    fake.broken = []
    assert context.append(KEYS, VALUES, request_id="mine").ranges == (range(7),)
    assert stored(fake) == 7


def test_an_aggregator_that_is_not_there_is_not_asked():
    with Client("127.0.0.1:1", timeout=20) as client:
        context = contexts.AsyncContext(
            client._client.connection, contexts.wire.Context(contexts.wire.ContextSpec("c", 2, 2, 3, 2), 0)
        )
        with pytest.raises(Unreachable, match="it was not appended"):
            BACKGROUND.run(context.append(KEYS, VALUES))


def test_an_error_of_the_aggregators_is_final(client, fake):
    context = client.create_context("c", **SIZES)
    fake.fail_append_after = 0
    with pytest.raises(Unavailable, match=r"lost$"):
        context.append(KEYS, VALUES)
    assert not fake.answers


def test_parts_of_a_divided_append_have_ids_of_their_own(client, fake, monkeypatch):
    monkeypatch.setattr(contexts, "APPEND_CALL", 40 * 3)  # a token takes 40 bytes
    context = client.create_context("c", **SIZES)
    fake.broken = ["", "after", "before", "", "before"]
    with pytest.raises(Unavailable, match=r"was not appended.*first 6 of 7 tokens"):
        context.append(KEYS, VALUES, request_id="mine")
    assert context.append(KEYS, VALUES, request_id="mine").ranges == (range(7),)
    assert list(fake.answers) == ["mine.0", "mine.1", "mine.2", "mine.2-2"]


def test_a_dataset_append_is_asked_for_too(fake):
    real = fake.append_dataset

    async def broken(request, call):
        fake.answers[request.request_id] = await real(request, call)
        await call.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    fake.handlers = {m: broken if m.name == "AppendDataset" else h for m, h in fake.handlers.items()}
    with serving(fake) as address, Client(address) as client:
        context = client.create_context("c", **SIZES)
        assert context.append_dataset("a", "d", b"a graph", {"x": "x"}).ranges == (range(3),)
