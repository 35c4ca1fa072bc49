"""The Open Inference Protocol over HTTP, with Triton's extensions: binary tensors, statistics, the
repository.

    GET  /v2                                        what this server is
    GET  /v2/health/live, /v2/health/ready          needs no token, as other probes
    GET  /v2/models/NAME[/versions/V]               what a model takes and gives
    GET  /v2/models/NAME[/versions/V]/ready, /config, /stats
    GET  /v2/models/stats
    POST /v2/models/NAME[/versions/V]/infer
    POST /v2/repository/index
    POST /v2/repository/models/NAME/load, /unload
    GET  /v2/trace/setting, /v2/models/NAME/trace/setting, /v2/logging; to POST there is refused
    GET  /v2/systemsharedmemory[/region/NAME]/status, as of cudasharedmemory
    POST /v2/systemsharedmemory/region/NAME/register, refused; [/region/NAME]/unregister

Errors are `{"error": "..."}` with Triton's statuses (endpoints.py). The data plane, which gRPC's door asks,
too, does the rest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from aggregator.bounds.bounds import BODIES
from aggregator.bounds.budget import Budgets
from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.http.bodies import BODY_BYTES, read_body, send
from aggregator.http.endpoints import HttpCall, HttpEndpoint
from aggregator.http.infer_body import HEADER_LENGTH, answer_of, request_of, require_64_bits, split
from aggregator.http.json_apart import JSON_PROCESSES, read_json
from aggregator.http.json_tensors import strict_json
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages.open_inference import Datatype, LogSetting, TraceSetting
from edge_attention.trust.names import Role

__all__ = ["OpenInference", "error_form"]

SMALL_BODY_BYTES = 64 * 1024
"""Of a request that brings no tensors."""
LEVELS = "trace_level"
"""The one of the trace settings that is a list."""
PARSING = "failed to parse the request JSON buffer"


def error_form(status: int, error: EdgeAttentionError) -> web.Response:
    """An error as the protocol has it."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="edge-attention"'
    return web.json_response({"error": error.message}, status=status, headers=headers)


class OpenInference:
    """`state`: the state folder, in which long JSON is read."""

    def __init__(self, plane: DataPlane, budgets: Budgets, state: Path) -> None:
        self._plane = plane
        self._budgets = budgets
        self._state = state
        self._processes = CallersInTurn(JSON_PROCESSES)

    def endpoints(self) -> tuple[HttpEndpoint, ...]:
        def models(rest: str) -> tuple[str, str]:
            return f"/v2/models/{{model}}{rest}", f"/v2/models/{{model}}/versions/{{version}}{rest}"

        def get(path: str, handler: Any, role: Role | None = "viewer") -> HttpEndpoint:
            return HttpEndpoint("GET", path, handler, role)

        repository = "/v2/repository/models/{model}"
        return (
            get("/v2", self.server),
            get("/v2/", self.server),
            get("/v2/health/live", self.live, None),
            get("/v2/health/ready", self.ready, None),
            get("/v2/models/stats", self.all_statistics),
            *(get(path, self.model) for path in models("")),
            *(get(path, self.model_ready) for path in models("/ready")),
            *(get(path, self.config) for path in models("/config")),
            *(get(path, self.statistics) for path in models("/stats")),
            *(HttpEndpoint("POST", path, self.infer, "user") for path in models("/infer")),
            HttpEndpoint("POST", "/v2/repository/index", self.index, "viewer"),
            HttpEndpoint("POST", f"{repository}/load", self.load, "operator", "model_loaded"),
            HttpEndpoint("POST", f"{repository}/unload", self.unload, "operator", "model_unloaded"),
            *(
                HttpEndpoint(method, path, handler, "viewer")
                for path, handler in (
                    ("/v2/trace/setting", self.trace),
                    ("/v2/models/{model}/trace/setting", self.trace),
                    ("/v2/logging", self.logging),
                )
                for method in ("GET", "POST")
            ),
            *(one for kind in ("system", "cuda") for one in self._regions(f"/v2/{kind}sharedmemory", kind)),
        )

    def _regions(self, path: str, kind: str) -> tuple[HttpEndpoint, ...]:
        async def status(call: HttpCall) -> web.StreamResponse:
            self._plane.require_region(call.request.match_info.get("region", ""), kind)
            return said(())

        async def register(call: HttpCall) -> web.StreamResponse:
            self._plane.refuse_shared_memory()
            return web.Response()

        async def unregister(call: HttpCall) -> web.StreamResponse:
            return web.Response()

        region = f"{path}/region/{{region}}"
        return (
            HttpEndpoint("GET", f"{path}/status", status, "viewer"),
            HttpEndpoint("GET", f"{region}/status", status, "viewer"),
            HttpEndpoint("POST", f"{region}/register", register, "user"),
            HttpEndpoint("POST", f"{region}/unregister", unregister, "user"),
            HttpEndpoint("POST", f"{path}/unregister", unregister, "user"),
        )

    # The server

    async def server(self, call: HttpCall) -> web.StreamResponse:
        return said(self._plane.server_metadata())

    async def live(self, call: HttpCall) -> web.StreamResponse:
        return _yes(self._plane.server_live(), "live")

    async def ready(self, call: HttpCall) -> web.StreamResponse:
        return _yes(self._plane.server_ready())

    async def index(self, call: HttpCall) -> web.StreamResponse:
        asked = await self._object(call)
        ready = asked.get("ready", False)
        if type(ready) is not bool:
            raise InvalidArgument("`ready` is true or false")
        return said(self._plane.repository_index(ready))

    async def trace(self, call: HttpCall) -> web.StreamResponse:
        if model := call.request.match_info.get("model", ""):
            self._plane.require(model, "")
        asked = await self._object(call)
        settings = self._plane.trace_settings({name: TraceSetting(()) for name in asked})
        return said({n: one.value if n == LEVELS else one.value[0] for n, one in settings.items()})

    async def logging(self, call: HttpCall) -> web.StreamResponse:
        asked = await self._object(call)
        return said(self._plane.log_settings({name: LogSetting() for name in asked}))

    # Models

    async def model(self, call: HttpCall) -> web.StreamResponse:
        return said(self._plane.model_metadata(*_model(call)))

    async def model_ready(self, call: HttpCall) -> web.StreamResponse:
        return _yes(self._plane.model_ready(*_model(call)))

    async def config(self, call: HttpCall) -> web.StreamResponse:
        return said(self._plane.model_config(*_model(call)))

    async def statistics(self, call: HttpCall) -> web.StreamResponse:
        return said({"model_stats": self._plane.model_statistics(*_model(call))})

    async def all_statistics(self, call: HttpCall) -> web.StreamResponse:
        return said({"model_stats": self._plane.model_statistics()})

    async def load(self, call: HttpCall) -> web.StreamResponse:
        await self._plane.load(_model(call)[0], await self._parameters(call), call.caller)
        return web.Response()

    async def unload(self, call: HttpCall) -> web.StreamResponse:
        await self._plane.unload(_model(call)[0], await self._parameters(call))
        return web.Response()

    async def infer(self, call: HttpCall) -> web.StreamResponse:
        model, version = _model(call)
        caller = call.caller
        with self._budgets.take(BODIES, caller, 0) as lease, self._plane.room(caller) as room:
            body = await read_body(call.request, lease, BODY_BYTES)
            head, binary = split(body, call.request.headers.get(HEADER_LENGTH))
            read = await read_json(head, PARSING, lease, self._state, self._processes, caller)
            request, wishes = request_of(model, version, read.said, binary, read.arrays)
            del body, head, binary, read
            response = await self._plane.infer(request, caller, room)
            del request
            answer = await asyncio.to_thread(answer_of, response, wishes)
            del response
            sent = web.StreamResponse()
            sent.content_type = "application/json" if answer.header is None else "application/octet-stream"
            if answer.header is not None:
                sent.headers[HEADER_LENGTH] = str(answer.header)
            return await send(call, sent, answer.pieces, answer.size)

    async def _object(self, call: HttpCall) -> Mapping[str, Any]:
        """The JSON object of a small body; of none an empty one."""
        with self._budgets.take(BODIES, call.caller, 0) as lease:
            body = await read_body(call.request, lease, SMALL_BODY_BYTES)
        said = strict_json(body, PARSING) if body else {}
        if not isinstance(said, dict):
            raise InvalidArgument("the request is no JSON object")
        return said

    async def _parameters(self, call: HttpCall) -> Mapping[str, bool | int | str]:
        parameters: Any = (await self._object(call)).get("parameters", {})
        types = {type(one) for one in parameters.values()} if isinstance(parameters, dict) else {dict}
        if types - {bool, int, str}:
            raise InvalidArgument("`parameters` is an object of strings, whole numbers, true and false")
        for name, one in parameters.items():
            require_64_bits(name, one, "the request")
        return dict(parameters)


def _model(call: HttpCall) -> tuple[str, str]:
    told = call.request.match_info
    return told["model"], told.get("version", "")


def _yes(yes: bool, what: str = "ready") -> web.Response:
    """By the status, as Triton has it, and in words, which KServe's client reads."""
    return web.json_response({what: yes}, status=200 if yes else 400)


def said(value: Any) -> web.Response:
    """A value of the protocol's messages as JSON."""
    data = json.dumps(_plain(value), separators=(",", ":"))
    return web.Response(body=data.encode(), headers={hdrs.CONTENT_TYPE: "application/json"})


def _plain(value: Any) -> Any:
    if isinstance(value, Datatype):  # of a configuration, whose names are those of Triton's enum
        return "TYPE_STRING" if value is Datatype.BYTES else f"TYPE_{value.value}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, LogSetting):
        return next((one for one in dataclasses.astuple(value) if one is not None), None)
    if dataclasses.is_dataclass(value):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return {name: _plain(one) for name, one in fields.items() if one is not None}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value
