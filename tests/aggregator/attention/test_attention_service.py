"""What clients call about contexts, in front of the recipe."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from aggregator.attention import service
from aggregator.attention.service import LARGE_ANSWER, AttentionApi
from edge_attention.core.messages.attention import AttendRequest, AttendResponse, Bound
from edge_attention.core.tensors import Encoded, Encoding
from edge_attention.wire import services


class Call:
    def peer(self):
        return "ipv4:127.0.0.1:1"

    def time_remaining(self):
        return 10.0


class Attender:
    def __init__(self, response):
        self.response = response

    async def attend(self, request, caller, seconds):
        return self.response


SMALL = np.zeros((1, 2, 4), np.float32)
LARGE = np.zeros((LARGE_ANSWER // 32 + 1, 2, 4), np.float32)


def answer(out=SMALL, **more):
    return AttendResponse(out, np.zeros(out.shape[:2], np.float32), True, (), (), 1, **more)


@pytest.mark.parametrize(
    ("response", "beside"),
    [
        (answer(), False),
        (answer(LARGE), True),
        (answer(weights=LARGE), True),
        (answer(bound=Bound(LARGE, True)), True),
    ],
    ids=["small", "large", "weights", "bound"],
)
def test_a_large_answer_is_encoded_beside_the_loop(monkeypatch, response, beside):
    threads = []
    encode = services.ATTEND.response.encode

    def seen(value):
        threads.append(threading.get_ident())
        return encode(value)

    monkeypatch.setattr(service.services.ATTEND.response, "encode", seen)
    nothing: Any = None
    api = AttentionApi(nothing, nothing, nothing, nothing, Attender(response))  # type: ignore[arg-type]
    found = asyncio.run(api.attend(AttendRequest("c", np.zeros((1, 2, 4), np.float32)), Call()))
    if not beside:
        assert found is response
        assert not threads
    else:
        assert found == encode(response)
        assert threads
        assert threads[0] != threading.get_ident()


def test_what_travels_in_halves_is_as_large_as_it_is_here():
    halves = AttendResponse(Encoded(LARGE, Encoding.FLOAT16), LARGE[..., 0], True, (), (), 1)
    assert service._bytes(halves) == LARGE.nbytes
