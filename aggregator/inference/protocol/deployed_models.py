"""Deployments as the models that the protocol serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence

from aggregator.inference.asking import ModelAsker
from aggregator.inference.deployed import Deployed
from aggregator.inference.protocol.served import CheckedRequest, ModelAnswered
from edge_attention.core.datatypes import datatype_of
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.inference import ANY_RANK, DeploymentState, ModelTensor
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    ModelConfig,
    ModelConfigParameter,
    ModelDynamicBatching,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ModelVersionPolicy,
    Parameter,
    RepositoryParameter,
    TensorMetadata,
)

__all__ = ["ANSWER_BYTES_OF_ONE", "MAX_ROWS", "DeployedModels", "ServedDeployment", "described_tensors"]

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
"""What serving tools know ONNX files by."""
MAX_ROWS = 1024
"""Of a batch, of a model whose inputs and outputs all begin with one open dimension."""
ANSWER_BYTES_OF_ONE = 2_000_000_000
"""Bytes of the outputs of one request: what a message holds."""
_STATES = {
    DeploymentState.SERVING: "READY",
    DeploymentState.PLANNING: "LOADING",
    DeploymentState.DELIVERING: "LOADING",
    DeploymentState.LEAVING: "UNLOADING",
}


class ServedDeployment:
    """One deployment that takes requests."""

    def __init__(self, deployed: Deployed, asker: ModelAsker) -> None:
        assert deployed.planned is not None
        self._deployed = deployed
        self._asker = asker
        self._inputs, self._outputs = deployed.planned.inputs, deployed.planned.outputs
        self.joined = deployed.planned.joined

    @property
    def name(self) -> str:
        return self._deployed.name

    @property
    def version(self) -> str:
        return str(self._deployed.version)

    @property
    def ready(self) -> bool:
        return self._deployed.life.state is DeploymentState.SERVING

    def metadata(self) -> ModelMetadata:
        return ModelMetadata(
            self.name,
            (self.version,),
            PLATFORM,
            described_tensors(self._inputs),
            described_tensors(self._outputs),
        )

    def config(self) -> ModelConfig:
        batched = _batched((*self._inputs, *self._outputs))
        return ModelConfig(
            self.name,
            PLATFORM,
            ModelVersionPolicy(),
            MAX_ROWS if batched else 0,
            tuple(ConfiguredInput(one.name, _datatype(one), _dims(one)[batched:]) for one in self._inputs),
            tuple(ConfiguredOutput(one.name, _datatype(one), _dims(one)[batched:]) for one in self._outputs),
            dynamic_batching=_dynamic(self._deployed) if batched else None,
            parameters={"plan": ModelConfigParameter(self._deployed.request.plan or "auto")},
            backend=BACKEND,
        )

    async def infer(self, request: CheckedRequest) -> ModelAnswered:
        with self._asker.begin(self._deployed) as asking:
            report, results = await asking.answer(
                request.feeds,
                request.outputs,
                request.seconds,
                request.caller,
                request.room,
                most=ANSWER_BYTES_OF_ONE,
                priority=request.priority,
                rows=request.rows,
            )
        said: dict[str, Parameter] = {}
        if not report.exact:  # an answer says what it is
            said = {"exact": False, "coverage": report.coverage, "lacking": report.lacking}
        return ModelAnswered(results, said)

    async def stream(self, request: CheckedRequest) -> AsyncGenerator[ModelAnswered]:
        yield await self.infer(request)


class DeployedModels:
    """All deployments, as a source of models.

    To unload one is to serve it here no more: it stays deployed, with its weights on the nodes, until
    somebody undeploys it, as no tool that unloads a model means to delete its file. A version deployed after
    that serves, and so does the aggregator's next life.
    """

    def __init__(self, asker: ModelAsker) -> None:
        self._asker = asker
        self._deployments = asker.deployments
        self._unloaded: dict[str, int] = {}
        """Name -> version."""

    def find(self, name: str, version: str) -> ServedDeployment | None:
        deployed = self._deployments.serving(name)
        if deployed is None or version not in ("", str(deployed.version)):
            return None
        if self._unloaded.get(name) == deployed.version:
            return None
        return ServedDeployment(deployed, self._asker)

    def _forget(self) -> None:
        """Of what has gone nothing is kept."""
        for name, version in list(self._unloaded.items()):
            deployed = self._deployments.serving(name)
            if deployed is None or deployed.version != version:
                del self._unloaded[name]

    def index(self) -> Iterable[ModelIndex]:
        for model in self._deployments.list():
            state, reason = _STATES.get(model.state, "UNAVAILABLE"), model.detail
            if _takes(model.state) and self._unloaded.get(model.name) == model.version:
                state, reason = "UNAVAILABLE", "unloaded"
            yield ModelIndex(model.name, str(model.version), state, reason)

    def statistics(self, name: str, version: str) -> Iterator[ModelStatistics]:
        for model in self._deployments.list():
            if name in ("", model.name) and version in ("", str(model.version)) and _takes(model.state):
                yield self._asker.counts.of(model.name, model.version)

    async def load(self, name: str, parameters: Mapping[str, RepositoryParameter], caller: str) -> bool:
        if self._deployments.serving(name) is None:
            return False
        if parameters:
            raise FailedPrecondition(
                f"failed to load '{name[:80]}': a load with parameters would change the model; deploy its "
                "next version with edge-attention deploy"
            )
        self._unloaded.pop(name, None)
        return True

    async def unload(self, name: str) -> bool:
        deployed = self._deployments.serving(name)
        if deployed is None:
            return False
        self._forget()
        self._unloaded[name] = deployed.version
        return True


def _dynamic(deployed: Deployed) -> ModelDynamicBatching | None:
    """How requests run together; None: each runs by itself."""
    if not deployed.joins:
        return None
    request = deployed.request
    return ModelDynamicBatching((deployed.most_rows,), round(1e6 * request.max_queue_delay))


def _takes(state: DeploymentState) -> bool:
    return state in (DeploymentState.SERVING, DeploymentState.WAITING)


def _datatype(tensor: ModelTensor) -> Datatype:
    return datatype_of(tensor.data_type)


def _dims(tensor: ModelTensor) -> tuple[int, ...]:
    return tuple(int(size) if size.isdigit() else -1 for size in tensor.shape)


def described_tensors(tensors: Sequence[ModelTensor]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(one.name, _datatype(one).value, _dims(one)) for one in tensors)


def _batched(tensors: Sequence[ModelTensor]) -> bool:
    """Whether all begin with one open dimension: that of a batch."""
    first = {one.shape[0] if one.shape else "?" for one in tensors}
    (name, *more) = first or {"?"}
    return not more and name not in ("?", ANY_RANK) and not name.isdigit()
