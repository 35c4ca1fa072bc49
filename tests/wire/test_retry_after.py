"""When to come again travels with an error, as data, also as gRPC's own retries read it."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest

from edge_attention.core.errors import Overloaded, ResourceExhausted, Unavailable
from edge_attention.wire.errors import ERROR_KEY, PUSHBACK_KEY, RETRY_KEY, from_rpc, to_status


def failed(code, metadata):
    return SimpleNamespace(
        code=lambda: code, details=lambda: "too much", trailing_metadata=lambda: tuple(metadata)
    )


@pytest.mark.parametrize("cls", [Overloaded, ResourceExhausted])
def test_it_comes_back_as_it_was_sent(cls):
    code, details, metadata = to_status(cls("too much", retry_after=1.25))
    assert dict(metadata) == {ERROR_KEY: cls.__name__, RETRY_KEY: "1250", PUSHBACK_KEY: "1250"}
    found = from_rpc(failed(code, metadata))
    assert type(found) is cls
    assert found.retry_after == 1.25
    assert details == "too much"


def test_an_overloaded_server_is_one_that_clients_try_again():
    assert to_status(Overloaded("x"))[0] is grpc.StatusCode.UNAVAILABLE
    assert issubclass(Overloaded, Unavailable)


def test_without_it_nothing_is_said():
    code, _, metadata = to_status(Overloaded("x"))
    assert metadata == ((ERROR_KEY, "Overloaded"),)
    assert from_rpc(failed(code, metadata)).retry_after is None


@pytest.mark.parametrize("said", ["", "-1", "1e3", "soon", "9" * 30, "١٢"])
def test_what_is_no_number_of_milliseconds_is_no_word_on_it(said):
    metadata = ((ERROR_KEY, "Overloaded"), (RETRY_KEY, said))
    assert from_rpc(failed(grpc.StatusCode.UNAVAILABLE, metadata)).retry_after is None


@pytest.mark.parametrize(("given", "told"), [(0.0, 0.001), (1e-9, 0.001), (1e9, 3600.0)])
def test_it_stays_between_a_millisecond_and_an_hour(given, told):
    code, _, metadata = to_status(Overloaded("x", retry_after=given))
    assert from_rpc(failed(code, metadata)).retry_after == told
