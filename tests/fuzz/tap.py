"""Stands between the callers of a gRPC server and the server, and hears every message of every call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from edge_attention.wire.methods import CHANNEL_OPTIONS

Heard = Callable[[int, str, bool, bytes], None]
"""Called with a call's number, its path, whether it is a request, and the message's bytes."""


class Tap(grpc.GenericRpcHandler):  # type: ignore[misc]  # without types in older stubs
    """Forwards all calls to `target`. Every kind of call is a stream both ways on the wire."""

    def __init__(self, target: str, heard: Heard) -> None:
        self._target, self._heard = target, heard
        self._calls = 0
        self.port = 0

    async def start(self) -> Tap:
        self._channel = grpc.aio.insecure_channel(self._target, CHANNEL_OPTIONS)
        self._server = grpc.aio.server(handlers=[self], options=CHANNEL_OPTIONS)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(0)
        await self._channel.close()

    def service(self, details: Any) -> Any:
        path = details.method

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self._calls += 1
            number = self._calls
            metadata = [
                (k, v) for k, v in context.invocation_metadata() if not k.startswith(("grpc-", "user-agent"))
            ]

            async def hearing() -> AsyncIterator[bytes]:
                async for data in requests:
                    self._heard(number, path, True, data)
                    yield data

            call = self._channel.stream_stream(path)(
                hearing(), metadata=metadata, timeout=context.time_remaining()
            )
            try:
                async for data in call:
                    self._heard(number, path, False, data)
                    yield data
                context.set_trailing_metadata(await call.trailing_metadata())
            except grpc.aio.AioRpcError as error:
                with contextlib.suppress(Exception):
                    await context.abort(
                        error.code(), error.details() or "", tuple(error.trailing_metadata() or ())
                    )
                raise
            finally:
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(forward)
