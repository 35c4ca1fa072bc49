"""The Open Inference Protocol in plain types: what both of its doors, gRPC and REST, say to one data plane.

A tensor's elements are a NumPy array, or bytes as the protocol has them (raw): little-endian, row-major; of
BYTES each element after its length in four bytes. Whoever answers checks what is raw against the shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.tensors import Array

__all__ = [
    "ConfiguredInput",
    "ConfiguredOutput",
    "Datatype",
    "InferBatchStatistics",
    "InferStatistics",
    "InferenceRequest",
    "InferenceResponse",
    "LatestVersions",
    "LogSetting",
    "LogSettingsRequest",
    "LogSettingsResponse",
    "ModelConfig",
    "ModelConfigParameter",
    "ModelConfigRequest",
    "ModelConfigResponse",
    "ModelDynamicBatching",
    "ModelIndex",
    "ModelMetadata",
    "ModelMetadataRequest",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ModelStatistics",
    "ModelStatisticsRequest",
    "ModelStatisticsResponse",
    "ModelTransactionPolicy",
    "ModelVersionPolicy",
    "NamedTensor",
    "Parameter",
    "RepositoryIndexRequest",
    "RepositoryIndexResponse",
    "RepositoryModelRequest",
    "RepositoryModelResponse",
    "RepositoryParameter",
    "RequestedOutput",
    "ServerLiveRequest",
    "ServerLiveResponse",
    "ServerMetadata",
    "ServerMetadataRequest",
    "ServerReadyRequest",
    "ServerReadyResponse",
    "SharedMemoryRegisterRequest",
    "SharedMemoryRequest",
    "SharedMemoryResponse",
    "StatisticDuration",
    "StreamedInference",
    "TensorMetadata",
    "TraceSetting",
    "TraceSettingRequest",
    "TraceSettingResponse",
]

Parameter = bool | int | float | str
"""Of a request, a tensor, an answer."""
RepositoryParameter = bool | int | str | bytes
"""Of a call that loads or unloads."""


class Datatype(Enum):
    """Types of elements by the protocol's names, in the order of its enum, where BYTES is a string."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"
    BF16 = "BF16"


# Requests, and their answers


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """A tensor of a request or an answer.

    Attributes:
        datatype: as its sender calls it, of an answer one of Datatype.
        data: an array (of BYTES of objects, `bytes` each; of BF16 of uint16, its bits) with as many elements
            as `shape` says, or raw bytes, which nobody has checked yet; None: the sender gave none.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | bytes | memoryview | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of its elements; of an array of objects of what points to them."""
        if self.data is None:
            return 0
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes


@dataclass(frozen=True)
class RequestedOutput:
    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """One request to a model.

    Attributes:
        version: "": the newest that serves.
        id: comes back with the answer.
        outputs: those that are wanted; (): all.
        seconds: within which whoever asks wants the answer; None: not said.
        refused: what is wrong with it, of one on a stream, where that is its answer and not the stream's end.
    """

    model: str
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    inputs: tuple[NamedTensor, ...] = ()
    outputs: tuple[RequestedOutput, ...] = ()
    seconds: float | None = None
    refused: EdgeAttentionError | None = None


@dataclass(frozen=True, eq=False)
class InferenceResponse:
    """One answer; the `data` of its outputs are arrays."""

    model: str
    version: str
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: tuple[NamedTensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of its tensors, about."""
        return sum(tensor.nbytes for tensor in self.outputs)


@dataclass(frozen=True, eq=False)
class StreamedInference:
    """What comes on a stream of answers: one, or in words why there is none to the request of that id."""

    response: InferenceResponse
    error: str = ""


# What models are


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output; in `shape` -1 is a size that the model leaves open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


@dataclass(frozen=True)
class ConfiguredInput:
    name: str
    data_type: Datatype
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ConfiguredOutput:
    name: str
    data_type: Datatype
    dims: tuple[int, ...]


@dataclass(frozen=True)
class LatestVersions:
    num_versions: int = 1


@dataclass(frozen=True)
class ModelVersionPolicy:
    latest: LatestVersions = field(default_factory=LatestVersions)


@dataclass(frozen=True)
class ModelDynamicBatching:
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0


@dataclass(frozen=True)
class ModelTransactionPolicy:
    """`decoupled`: a request may have any number of answers."""

    decoupled: bool = False


@dataclass(frozen=True)
class ModelConfigParameter:
    string_value: str


@dataclass(frozen=True)
class ModelConfig:
    """What serving tools read of a model. `max_batch_size`: 0, or the first dimension is a batch's, of so
    many rows, and left out of `dims`."""

    name: str
    platform: str
    version_policy: ModelVersionPolicy
    max_batch_size: int
    input: tuple[ConfiguredInput, ...]
    output: tuple[ConfiguredOutput, ...]
    dynamic_batching: ModelDynamicBatching | None = None
    parameters: Mapping[str, ModelConfigParameter] = field(default_factory=dict)
    backend: str = ""
    model_transaction_policy: ModelTransactionPolicy = field(default_factory=ModelTransactionPolicy)


@dataclass(frozen=True)
class ModelIndex:
    """A line of the list of models. `state`: READY, LOADING, UNLOADING or UNAVAILABLE, with the reason."""

    name: str
    version: str
    state: str
    reason: str = ""


# What is counted


@dataclass(frozen=True)
class StatisticDuration:
    """How often, and how many nanoseconds together."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class InferStatistics:
    success: StatisticDuration = field(default_factory=StatisticDuration)
    fail: StatisticDuration = field(default_factory=StatisticDuration)
    queue: StatisticDuration = field(default_factory=StatisticDuration)
    compute_input: StatisticDuration = field(default_factory=StatisticDuration)
    compute_infer: StatisticDuration = field(default_factory=StatisticDuration)
    compute_output: StatisticDuration = field(default_factory=StatisticDuration)
    cache_hit: StatisticDuration = field(default_factory=StatisticDuration)
    cache_miss: StatisticDuration = field(default_factory=StatisticDuration)


@dataclass(frozen=True)
class InferBatchStatistics:
    batch_size: int
    compute_input: StatisticDuration = field(default_factory=StatisticDuration)
    compute_infer: StatisticDuration = field(default_factory=StatisticDuration)
    compute_output: StatisticDuration = field(default_factory=StatisticDuration)


@dataclass(frozen=True)
class ModelStatistics:
    """Of one version of a model, since the aggregator began.

    Attributes:
        last_inference: milliseconds since 1970; 0: none.
        inference_count: rows of requests that were answered.
        execution_count: runs of the model.
    """

    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferStatistics = field(default_factory=InferStatistics)
    batch_stats: tuple[InferBatchStatistics, ...] = ()


# The other calls, a class a message; messages that are alike share one


@dataclass(frozen=True)
class ServerLiveRequest:
    pass


@dataclass(frozen=True)
class ServerLiveResponse:
    live: bool


@dataclass(frozen=True)
class ServerReadyRequest:
    pass


@dataclass(frozen=True)
class ServerReadyResponse:
    ready: bool


@dataclass(frozen=True)
class ModelReadyRequest:
    name: str
    version: str = ""


@dataclass(frozen=True)
class ModelReadyResponse:
    ready: bool


@dataclass(frozen=True)
class ServerMetadataRequest:
    pass


@dataclass(frozen=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class ModelMetadataRequest:
    name: str
    version: str = ""


@dataclass(frozen=True)
class ModelConfigRequest:
    name: str
    version: str = ""


@dataclass(frozen=True)
class ModelConfigResponse:
    config: ModelConfig


@dataclass(frozen=True)
class ModelStatisticsRequest:
    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class ModelStatisticsResponse:
    model_stats: tuple[ModelStatistics, ...]


@dataclass(frozen=True)
class RepositoryIndexRequest:
    repository_name: str = ""
    ready: bool = False


@dataclass(frozen=True)
class RepositoryIndexResponse:
    models: tuple[ModelIndex, ...]


@dataclass(frozen=True)
class RepositoryModelRequest:
    """Loads or unloads a model."""

    repository_name: str
    model_name: str
    parameters: Mapping[str, RepositoryParameter] = field(default_factory=dict)


@dataclass(frozen=True)
class RepositoryModelResponse:
    pass


@dataclass(frozen=True)
class SharedMemoryRequest:
    """Of system and CUDA regions: their status, or that one goes; "": all."""

    name: str = ""


@dataclass(frozen=True)
class SharedMemoryRegisterRequest:
    name: str


@dataclass(frozen=True)
class SharedMemoryResponse:
    """Of all these calls: there are no regions."""


@dataclass(frozen=True)
class TraceSetting:
    value: tuple[str, ...]


@dataclass(frozen=True)
class TraceSettingRequest:
    settings: Mapping[str, TraceSetting] = field(default_factory=dict)
    model_name: str = ""


@dataclass(frozen=True)
class TraceSettingResponse:
    settings: Mapping[str, TraceSetting] = field(default_factory=dict)


@dataclass(frozen=True)
class LogSetting:
    """One of them is said."""

    bool_param: bool | None = None
    uint32_param: int | None = None
    string_param: str | None = None


@dataclass(frozen=True)
class LogSettingsRequest:
    settings: Mapping[str, LogSetting] = field(default_factory=dict)


@dataclass(frozen=True)
class LogSettingsResponse:
    settings: Mapping[str, LogSetting] = field(default_factory=dict)
