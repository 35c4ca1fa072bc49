"""Options of a generation that an aggregator of an earlier release passes over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from edge_attention.client.generation import AsyncGeneration
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.inference import (
    GenerateReport,
    GenerateRequest,
    GenerateResponse,
    TokenValue,
)


def ended(request, heeded):
    """The text of a generation whose aggregator says that it heeded these."""

    async def receive(*_):
        yield GenerateResponse("so", (5,))
        yield GenerateResponse(report=GenerateReport("length", 2, 1, 7, 1, 0, 0, heeded=heeded))

    connection = SimpleNamespace(address="here:1", caller=SimpleNamespace(receive=receive))
    return asyncio.run(AsyncGeneration(connection, request).rest())


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"logit_bias": (TokenValue(1, 2.0),)},
        {"logprobs": 0},
        {"echo": True, "logprobs": 2},
    ],
)
def test_what_an_earlier_release_passed_over_is_an_error_that_names_it(options):
    request = GenerateRequest("m", "text", **options)
    assert set(request.later) == set(options)
    assert ended(request, request.later) == "so"
    with pytest.raises(FailedPrecondition, match=next(iter(options))):
        ended(request, ())


def test_what_it_knew_is_as_it_was():
    assert ended(GenerateRequest("m", "text", temperature=1.0, seed=3), ()) == "so"
