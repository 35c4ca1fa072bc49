"""A connection that TLS gives up is one that broke: no error without a name of its own."""

from __future__ import annotations

from types import SimpleNamespace

import grpc

from edge_attention.core.errors import EdgeAttentionError, Unreachable
from edge_attention.wire.errors import from_rpc


def failed(details):
    return SimpleNamespace(
        code=lambda: grpc.StatusCode.UNKNOWN, details=lambda: details, trailing_metadata=lambda: ()
    )


def test_bytes_that_tls_refuses_are_a_connection_that_broke():
    found = from_rpc(failed("Stream removed (Unwrap failed (TSI_DATA_CORRUPTED))"), "the aggregator at a:1")
    assert type(found) is Unreachable
    assert "the connection to the aggregator at a:1 broke" in found.message


def test_another_server_s_unknown_stays_what_it_is():
    assert type(from_rpc(failed("something else"))) is EdgeAttentionError
