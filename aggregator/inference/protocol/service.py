"""inference.GRPCInferenceService: the gRPC door of the data plane. Each method is a line or two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.streaming import RequestStream
from aggregator.trust.callers import caller_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.messages import open_inference as o
from edge_attention.core.messages.open_inference import InferenceRequest, InferenceResponse, StreamedInference
from edge_attention.wire import open_inference as wire

LOADED = AuditLine("model_loaded", lambda q, r: {"model": q.model_name})
UNLOADED = AuditLine("model_unloaded", lambda q, r: {"model": q.model_name})
REGIONS = "system", "cuda"
BY_THREAD = 1 << 20
"""Bytes of an answer from which a thread writes it."""


class OpenInferenceApi:
    def __init__(self, plane: DataPlane, budgets: Budgets | None = None) -> None:
        self._plane = plane
        self._budgets = budgets or Budgets()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(wire.SERVER_LIVE, self.server_live, "viewer"),
            Endpoint(wire.SERVER_READY, self.server_ready, "viewer"),
            Endpoint(wire.MODEL_READY, self.model_ready, "viewer"),
            Endpoint(wire.SERVER_METADATA, self.server_metadata, "viewer"),
            Endpoint(wire.MODEL_METADATA, self.model_metadata, "viewer"),
            Endpoint(wire.MODEL_CONFIG, self.model_config, "viewer"),
            Endpoint(wire.MODEL_STATISTICS, self.model_statistics, "viewer"),
            Endpoint(wire.MODEL_INFER, self.infer, "user"),
            Endpoint(wire.MODEL_STREAM_INFER, self.stream, "user"),
            Endpoint(wire.REPOSITORY_INDEX, self.index, "viewer"),
            Endpoint(wire.REPOSITORY_MODEL_LOAD, self.load, "operator", LOADED),
            Endpoint(wire.REPOSITORY_MODEL_UNLOAD, self.unload, "operator", UNLOADED),
            Endpoint(wire.TRACE_SETTING, self.trace, "viewer"),
            Endpoint(wire.LOG_SETTINGS, self.log, "viewer"),
            *(
                Endpoint(method, partial(self.region, kind), "viewer")
                for kind, method in zip(REGIONS, wire.SHARED_MEMORY_STATUS, strict=True)
            ),
            *(Endpoint(method, self.no_regions, "user") for method in wire.SHARED_MEMORY_UNREGISTER),
            *(Endpoint(method, self.register_region, "user") for method in wire.SHARED_MEMORY_REGISTER),
        )

    async def server_live(self, request: o.ServerLiveRequest, call: Any) -> o.ServerLiveResponse:
        return o.ServerLiveResponse(self._plane.server_live())

    async def server_ready(self, request: o.ServerReadyRequest, call: Any) -> o.ServerReadyResponse:
        return o.ServerReadyResponse(self._plane.server_ready())

    async def model_ready(self, request: o.ModelReadyRequest, call: Any) -> o.ModelReadyResponse:
        return o.ModelReadyResponse(self._plane.model_ready(request.name, request.version))

    async def server_metadata(self, request: o.ServerMetadataRequest, call: Any) -> o.ServerMetadata:
        return self._plane.server_metadata()

    async def model_metadata(self, request: o.ModelMetadataRequest, call: Any) -> o.ModelMetadata:
        return self._plane.model_metadata(request.name, request.version)

    async def model_config(self, request: o.ModelConfigRequest, call: Any) -> o.ModelConfigResponse:
        return o.ModelConfigResponse(self._plane.model_config(request.name, request.version))

    async def model_statistics(
        self, request: o.ModelStatisticsRequest, call: Any
    ) -> o.ModelStatisticsResponse:
        return o.ModelStatisticsResponse(self._plane.model_statistics(request.name, request.version))

    async def index(self, request: o.RepositoryIndexRequest, call: Any) -> o.RepositoryIndexResponse:
        return o.RepositoryIndexResponse(self._plane.repository_index(request.ready))

    async def load(self, request: o.RepositoryModelRequest, call: Any) -> o.RepositoryModelResponse:
        await self._plane.load(request.model_name, request.parameters, caller_of(call))
        return o.RepositoryModelResponse()

    async def unload(self, request: o.RepositoryModelRequest, call: Any) -> o.RepositoryModelResponse:
        await self._plane.unload(request.model_name, request.parameters)
        return o.RepositoryModelResponse()

    async def trace(self, request: o.TraceSettingRequest, call: Any) -> o.TraceSettingResponse:
        if request.model_name:
            self._plane.require(request.model_name, "")
        return o.TraceSettingResponse(self._plane.trace_settings(request.settings))

    async def log(self, request: o.LogSettingsRequest, call: Any) -> o.LogSettingsResponse:
        return o.LogSettingsResponse(self._plane.log_settings(request.settings))

    async def region(self, kind: str, request: o.SharedMemoryRequest, call: Any) -> o.SharedMemoryResponse:
        self._plane.require_region(request.name, kind)
        return o.SharedMemoryResponse()

    async def no_regions(self, request: o.SharedMemoryRequest, call: Any) -> o.SharedMemoryResponse:
        return o.SharedMemoryResponse()

    async def register_region(
        self, request: o.SharedMemoryRegisterRequest, call: Any
    ) -> o.SharedMemoryResponse:
        self._plane.refuse_shared_memory()
        return o.SharedMemoryResponse()

    async def infer(self, request: InferenceRequest, call: Any) -> InferenceResponse | bytes:
        caller = caller_of(call)
        room = self._plane.room(caller)
        # gRPC has the answer until its caller has taken it.
        call.add_done_callback(lambda _: room.give_back())
        response = await self._plane.infer(_within(request, call), caller, room)
        del request
        if response.nbytes < BY_THREAD:
            return response
        return await asyncio.to_thread(wire.RESPONSE.encode, response)

    async def stream(
        self, requests: AsyncIterator[InferenceRequest], call: Any
    ) -> AsyncGenerator[StreamedInference | bytes]:
        stream = RequestStream(self._plane, self._budgets, caller_of(call))
        async with aclosing(stream.answers(_each_within(requests, call))) as answers:
            async for answer in answers:
                if answer.response.nbytes < BY_THREAD:
                    yield answer
                else:
                    yield await asyncio.to_thread(wire.STREAMED.encode, answer)
                del answer


def _within(request: InferenceRequest, call: Any) -> InferenceRequest:
    """The request with the seconds that its call has left."""
    left = call.time_remaining()
    return request if left is None else replace(request, seconds=max(float(left), 0.0))


async def _each_within(
    requests: AsyncIterator[InferenceRequest], call: Any
) -> AsyncGenerator[InferenceRequest]:
    async for request in requests:
        yield _within(request, call)
        del request
