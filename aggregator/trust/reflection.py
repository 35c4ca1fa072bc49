"""gRPC reflection; with TLS for viewers and up, not for strangers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from aggregator.trust.guard import Guard
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.wire.errors import to_status
from edge_attention.wire.open_inference import described


class _Guarded(ReflectionServicer):  # type: ignore[misc]
    def __init__(self, names: Sequence[str], guard: Guard, pool: Any) -> None:
        super().__init__(service_names=names, pool=pool)
        self._guard = guard

    async def ServerReflectionInfo(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with self._guard.admit("ServerReflection", "viewer", context):
                async for response in super().ServerReflectionInfo(requests, context):
                    yield response
        except EdgeAttentionError as error:
            await context.abort(*to_status(error))


def offer_reflection(server: grpc.aio.Server, names: Sequence[str], guard: Guard | None) -> None:
    """Serve reflection of the services `names`, and of itself."""
    names = [*names, reflection.SERVICE_NAME]
    pool = described(names)
    if guard is None:
        reflection.enable_server_reflection(names, server, pool)
    else:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Guarded(names, guard, pool), server)
