"""The data plane: what both doors of the Open Inference Protocol ask, in plain types.

Errors are those of the catalogue, in Triton's words where a real tritonserver has such. Methods that change
something, or take long, say for whom (`caller`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from importlib.metadata import version

from aggregator.bounds.bounds import INFERENCE_BYTES, INFERENCES
from aggregator.bounds.budget import Budgets, Lease
from aggregator.inference.protocol.checking import checked
from aggregator.inference.protocol.classification import classified, classified_bytes
from aggregator.inference.protocol.served import CheckedRequest, ModelAnswered, ModelSource, OfferedModel
from edge_attention.core.errors import InvalidArgument, NotFound, Unimplemented
from edge_attention.core.messages.open_inference import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    LogSetting,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    NamedTensor,
    RepositoryParameter,
    RequestedOutput,
    ServerMetadata,
    TraceSetting,
)
from edge_attention.core.tensors import Array

__all__ = ["DataPlane"]

BY_THREAD = 64 * 1024
"""Bytes of a request from which a thread checks it, and of an answer from which one classifies it."""
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Those of the protocol's that are served."""
TRACE = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
"""What the trace settings always are."""


class DataPlane:
    """Models of all sources, by the protocol."""

    def __init__(self, sources: Iterable[ModelSource] = (), budgets: Budgets | None = None) -> None:
        self._sources = list(sources)
        self._release = version("edge-attention")
        self._budgets = budgets or Budgets()

    def add(self, source: ModelSource) -> None:
        """Its models are served, too. Of one name the source that came first has it."""
        self._sources.append(source)

    # What there is

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        """It takes requests. Whether a model is ready is the model's."""
        return True

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("edge-attention", self._release, EXTENSIONS)

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether it could answer now; of a model that is not there, no."""
        found = self._find(name, version)
        return found is not None and found.ready

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Raises NotFound."""
        return self.require(name, version).metadata()

    def model_config(self, name: str, version: str = "") -> ModelConfig:
        """Raises NotFound."""
        return self.require(name, version).config()

    def model_statistics(self, name: str = "", version: str = "") -> tuple[ModelStatistics, ...]:
        """Of one version, of all of a model, or of all.

        Raises:
            InvalidArgument: there is no such model.
        """
        number = version.lstrip("0") or version
        found = tuple(one for source in self._sources for one in source.statistics(name, number))
        if not found and name:
            at = f", version {version[:40]}," if version else ""
            raise InvalidArgument(f"requested model '{name[:80]}'{at} is not available")
        return found

    def repository_index(self, ready: bool = False) -> tuple[ModelIndex, ...]:
        """All models there are; `ready`: those that could answer now."""
        found = (one for source in self._sources for one in source.index())
        return tuple(one for one in found if one.state == "READY" or not ready)

    # What changes

    async def load(
        self, name: str, parameters: Mapping[str, RepositoryParameter] | None = None, caller: str = ""
    ) -> None:
        """Have a model serve.

        Raises:
            NotFound: there is none of that name.
            EdgeAttentionError: what keeps it from it.
        """
        for source in self._sources:
            if await source.load(name, parameters or {}, caller):
                return
        raise NotFound(
            f"failed to load '{name[:80]}', no such model is in the repository; bring it there with "
            "edge-attention deploy"
        )

    async def unload(self, name: str, parameters: Mapping[str, RepositoryParameter] | None = None) -> None:
        """Have a model take no more requests of the protocol.

        Raises:
            NotFound: there is none of that name.
        """
        for source in self._sources:
            if await source.unload(name):
                return
        raise NotFound(f"failed to unload '{name[:80]}', no such model is loaded")

    # Requests

    def room(self, caller: str) -> Lease:
        """Room for a request's tensors, which grows with them. Give it back when the answer has gone."""
        return self._budgets.take(INFERENCE_BYTES, caller, 0)

    async def infer(
        self, request: InferenceRequest, caller: str, room: Lease | None = None
    ) -> InferenceResponse:
        """The one answer to a request.

        Args:
            room: what `room` gave; None: counted while it is made, and no longer.

        Raises:
            NotFound: no such model or version.
            InvalidArgument: the request does not fit the model.
            Unimplemented: the model answers on streams alone.
            DeadlineExceeded: says what was waited for.
            EdgeAttentionError: what keeps it from answering.
        """
        async with AsyncExitStack() as stack:
            model, config, asked = await self._asked(request, caller, room, stack)
            if config.model_transaction_policy.decoupled:
                raise Unimplemented(
                    f"ModelInfer RPC doesn't support models with decoupled transaction policy: "
                    f"'{model.name}' may give several answers to a request; ask it with ModelStreamInfer"
                )
            return await _response(config, request, asked, model, await model.infer(asked))

    async def stream(
        self, request: InferenceRequest, caller: str, room: Lease | None = None
    ) -> AsyncGenerator[InferenceResponse]:
        """The answers to a request as they come: one, of a model that is not decoupled. Raises as `infer`;
        close it where it is left early."""
        async with AsyncExitStack() as stack:
            model, config, asked = await self._asked(request, caller, room, stack)
            answers = await stack.enter_async_context(aclosing(model.stream(asked)))
            async for answer in answers:
                yield await _response(config, request, asked, model, answer)

    async def _asked(
        self, request: InferenceRequest, caller: str, room: Lease | None, stack: AsyncExitStack
    ) -> tuple[OfferedModel, ModelConfig, CheckedRequest]:
        model = self.require(request.model, request.version)
        config = model.config()
        stack.enter_context(self._budgets.take(INFERENCES, caller))
        if room is None:
            room = stack.enter_context(self.room(caller))
        size = sum(tensor.nbytes for tensor in request.inputs)
        room.grow(size)
        asked = (request, model.metadata(), config, caller, room, model.joined)
        # All elements are looked at, of some types.
        found = await asyncio.to_thread(checked, *asked) if size > BY_THREAD else checked(*asked)
        return model, config, found

    # Settings, which are what they are

    def trace_settings(self, settings: Mapping[str, TraceSetting] | None = None) -> dict[str, TraceSetting]:
        """Raises Unimplemented for any to be changed."""
        if settings:
            raise Unimplemented(
                "trace settings cannot be changed: nothing is traced here; docs/observability.md says what "
                "there is"
            )
        return {name: TraceSetting(value) for name, value in TRACE.items()}

    def log_settings(self, settings: Mapping[str, LogSetting] | None = None) -> dict[str, LogSetting]:
        """Raises Unimplemented for any to be changed."""
        if settings:
            raise Unimplemented("log settings cannot be changed by a call: start the aggregator with others")
        return {
            "log_file": LogSetting(string_param=""),
            "log_info": LogSetting(bool_param=True),
            "log_warning": LogSetting(bool_param=True),
            "log_error": LogSetting(bool_param=True),
            "log_verbose_level": LogSetting(uint32_param=0),
            "log_format": LogSetting(string_param="default"),
        }

    def require_region(self, name: str, kind: str) -> None:
        """Raises NotFound for any region that is named; of all there are none. `kind`: system or cuda."""
        if name:
            raise NotFound(
                f"Unable to find {kind} shared memory region: '{name[:80]}'; there is no shared memory with "
                "this server"
            )

    def refuse_shared_memory(self) -> None:
        """Raises Unimplemented."""
        raise Unimplemented(
            "shared memory regions cannot be registered: models run on other machines; send tensors as bytes"
        )

    # Inside

    def _find(self, name: str, version: str) -> OfferedModel | None:
        if version and not (version.isascii() and version.isdigit() and len(version) < 19):
            raise InvalidArgument(
                f"failed to get model version from specified version string '{version[:40]}'; a version "
                "should be an integral value > 0"
            )
        for source in self._sources:
            if (found := source.find(name, version.lstrip("0") or version)) is not None:
                return found
        return None

    def require(self, name: str, version: str) -> OfferedModel:
        """The model.

        Raises:
            NotFound: there is none, or not of that version.
            InvalidArgument: `version` is no number.
        """
        found = self._find(name, version)
        if found is None:
            at = f" version {version}" if version and self._find(name, "") is not None else ""
            raise NotFound(f"Request for unknown model: '{name[:80]}'{at} is not found")
        return found


async def _response(
    config: ModelConfig,
    request: InferenceRequest,
    accepted: CheckedRequest,
    model: OfferedModel,
    answer: ModelAnswered,
) -> InferenceResponse:
    wanted = {one.name: one for one in request.outputs}
    datatypes = {one.name: one.data_type for one in config.output}

    def make() -> tuple[NamedTensor, ...]:
        return tuple(
            _output(name, array, datatypes.get(name), wanted.get(name), batched=bool(config.max_batch_size))
            for name, array in answer.results.items()
        )

    sorts = any("classification" in one.parameters for one in request.outputs)
    for name, array in answer.results.items():
        classes = wanted[name].parameters.get("classification") if name in wanted else None
        if classes is not None:
            batched = bool(config.max_batch_size)
            accepted.room.grow(classified_bytes(array, classes, name, batched=batched))
    size = sum(array.nbytes for array in answer.results.values())
    outputs = await asyncio.to_thread(make) if sorts and size > BY_THREAD else make()
    return InferenceResponse(model.name, model.version, request.id, answer.parameters, outputs)


def _output(
    name: str, array: Array, datatype: Datatype | None, asked: RequestedOutput | None, *, batched: bool
) -> NamedTensor:
    classes = asked.parameters.get("classification") if asked is not None else None
    if classes is not None:
        array, datatype = classified(array, classes, name, batched=batched), Datatype.BYTES
    assert datatype is not None, f"the model's configuration does not name its output {name!r}"
    return NamedTensor(name, datatype.value, tuple(array.shape), array)
