"""The Open Inference Protocol on the wire: its methods, as every client of it calls them.

The messages of a request and of an answer are mostly bytes of tensors. These are taken out of a message as it
came, without a copy, before protobuf reads the rest, and are joined to what protobuf has written: parsing,
reading and setting a field of bytes each copy it, and hold the interpreter meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError, Message

from edge_attention.core.datatypes import NUMPY, array_of, raw_bytes
from edge_attention.core.errors import InvalidArgument, InvalidTensor, MessageTooLarge
from edge_attention.core.messages import open_inference as o
from edge_attention.core.messages.open_inference import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    NamedTensor,
    Parameter,
    RepositoryParameter,
    RequestedOutput,
    StreamedInference,
)
from edge_attention.core.tensors import Array
from edge_attention.wire.codec import FIELDS, MESSAGE_LIMIT, Codec, special
from edge_attention.wire.frames import read_varint, varint
from edge_attention.wire.methods import AnyMethod, Method, Service
from protos.edge_attention.open_inference.v2 import open_inference_pb2 as pb

__all__ = ["LARGEST_MESSAGE", "METHODS", "OPEN_INFERENCE", "described"]

Q = TypeVar("Q")
R = TypeVar("R")

OPEN_INFERENCE = Service("inference.GRPCInferenceService")

LARGEST_MESSAGE = (1 << 31) - 1
"""Bytes of a request and of an answer: protobuf's own limit, and gRPC's. What is not raw tensors has
MESSAGE_LIMIT at most."""
MESSAGE_FIELDS = 4096
"""Of a request's own: its inputs, raw tensors and parameters together."""
_RAW_INPUT, _RAW_OUTPUT = 7, 6
"""Numbers of the fields of raw tensors."""
_LENGTH_DELIMITED = 2


def lifted(data: bytes, number: int, what: str) -> tuple[list[memoryview], bytes]:
    """The values of field `number`, which is bytes, of a serialized message, and the message without them.

    Raises:
        InvalidArgument: the bytes are no message.
        MessageTooLarge: it has more than MESSAGE_FIELDS fields.
    """
    view, end = memoryview(data), len(data)
    found: list[memoryview] = []
    rest: list[memoryview] = []
    at = kept = 0
    try:
        for _ in range(MESSAGE_FIELDS + 1):
            if at >= end:
                break
            begun = at
            tag, at = read_varint(data, at)
            kind = tag & 7
            if kind == _LENGTH_DELIMITED:
                size, at = read_varint(data, at)
                start, at = at, at + size
                if tag >> 3 == number and at <= end:
                    rest.append(view[kept:begun])
                    found.append(view[start:at])
                    kept = at
            elif kind == 0:
                _, at = read_varint(data, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise LookupError
        else:
            raise MessageTooLarge(
                f"the {what} has over {MESSAGE_FIELDS:,} fields of its own, as inputs and raw tensors "
                "(MESSAGE_FIELDS): send fewer"
            )
        if at != end:
            raise LookupError
    except LookupError:
        raise InvalidArgument(f"these {len(data):,} bytes are not a {what}") from None
    rest.append(view[kept:])
    return found, b"".join(rest)


class InferenceRequestCodec(Codec[InferenceRequest]):
    """Reads requests of up to LARGEST_MESSAGE. Raw tensors are views of the bytes that came.

    A tensor that came raw and as typed contents, or neither way, is refused, as are raw ones that nothing is
    said of.
    """

    def __init__(self) -> None:
        super().__init__(InferenceRequest, pb.ModelInferRequest, parts=FIELDS, fields=FIELDS)

    def decode(self, data: bytes, sealed: bool | None = None) -> InferenceRequest:
        if len(data) > LARGEST_MESSAGE:
            raise MessageTooLarge(f"a request has at most {LARGEST_MESSAGE:,} bytes, not {len(data):,}")
        raw, rest = lifted(data, _RAW_INPUT, self._what)
        if len(rest) > MESSAGE_LIMIT:
            raise MessageTooLarge(
                f"all but raw tensors has {len(rest):,} bytes in this request, and {MESSAGE_LIMIT:,} at most "
                "(MESSAGE_LIMIT): send tensors as raw_input_contents"
            )
        request = super().decode(rest, sealed)
        return replace(request, inputs=_with_raw(request, raw))

    def encode(self, value: InferenceRequest) -> bytes:
        return _written(super().encode(value), value.inputs, _RAW_INPUT, "the request")


class StreamRequestCodec(InferenceRequestCodec):
    """The same of a stream: what is wrong with one request is said of it, and the stream goes on."""

    def decode(self, data: bytes, sealed: bool | None = None) -> InferenceRequest:
        try:
            return super().decode(data, sealed)
        except InvalidArgument as error:
            _, rest = lifted(data, _RAW_INPUT, self._what)
            try:
                message = pb.ModelInferRequest.FromString(rest)
            except DecodeError:
                raise error from None
            return InferenceRequest(message.model_name, message.model_version, message.id, refused=error)


def _with_raw(request: InferenceRequest, raw: Sequence[memoryview]) -> tuple[NamedTensor, ...]:
    """The inputs with their raw bytes. Those in shared memory have none, and the data plane refuses them."""
    found: list[NamedTensor] = []
    left = list(reversed(raw))
    where = f"for model '{request.model[:80]}'"
    for tensor in request.inputs:
        if "shared_memory_region" in tensor.parameters:
            found.append(tensor)
            continue
        if raw:
            if tensor.data is not None:
                raise InvalidArgument(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{tensor.name[:80]}' {where}"
                )
            if left:
                tensor = replace(tensor, data=left.pop())
        if tensor.data is None:
            raise InvalidArgument(
                f"unable to find data for input tensor '{tensor.name[:80]}' {where} in request."
            )
        found.append(tensor)
    if left:
        raise InvalidArgument(
            f"raw_input_contents has {len(raw)} tensors {where}, and the request has {len(found)} inputs: "
            "send one for each, in their order"
        )
    return tuple(found)


class InferenceResponseCodec(Codec[InferenceResponse]):
    """Writes answers, whose tensors are always raw, and reads such."""

    def __init__(self) -> None:
        super().__init__(InferenceResponse, pb.ModelInferResponse)

    def encode(self, value: InferenceResponse) -> bytes:
        return _written(super().encode(value), value.outputs, _RAW_OUTPUT, "the answer")

    def decode(self, data: bytes, sealed: bool | None = None) -> InferenceResponse:
        raw, rest = lifted(data, _RAW_OUTPUT, self._what)
        answer = super().decode(rest, sealed)
        if len(raw) != len(answer.outputs):
            raise InvalidTensor(f"the answer has {len(answer.outputs)} outputs and {len(raw)} tensors")
        outputs = []
        for tensor, elements in zip(answer.outputs, raw, strict=True):
            what = f"output '{tensor.name[:80]}'"
            try:
                datatype = Datatype(tensor.datatype)
            except ValueError:
                raise InvalidTensor(f"{what} is of a datatype that is not known here") from None
            outputs.append(replace(tensor, data=array_of(replace(tensor, data=elements), datatype, what)))
        return replace(answer, outputs=tuple(outputs))


class StreamedInferenceCodec(Codec[StreamedInference]):
    """Writes the answers of a stream."""

    def __init__(self) -> None:
        super().__init__(StreamedInference, pb.ModelStreamInferResponse)

    def encode(self, value: StreamedInference) -> bytes:
        inner = RESPONSE.encode(value.response)
        head = pb.ModelStreamInferResponse(error_message=value.error).SerializeToString()
        return b"".join((head, bytes([2 << 3 | _LENGTH_DELIMITED]), varint(len(inner)), inner))


def _written(head: bytes, tensors: Sequence[NamedTensor], number: int, what: str) -> bytes:
    """The message with its tensors raw, as field `number`."""
    parts: list[Any] = [head]
    for tensor in tensors:
        data = raw_bytes(tensor)
        parts += (bytes([number << 3 | _LENGTH_DELIMITED]), varint(len(data)), data)
    if (size := sum(map(len, parts))) > LARGEST_MESSAGE:
        raise MessageTooLarge(
            f"{what} has {size:,} bytes; a message has at most {LARGEST_MESSAGE:,}: ask for fewer "
            "outputs, or send fewer rows"
        )
    return b"".join(parts)


# Parameters

_CHOICE = "parameter_choice"


def _fill_parameter(message: Any, value: Parameter | RepositoryParameter) -> None:
    if isinstance(value, bool):
        message.bool_param = value
    elif isinstance(value, int):
        message.int64_param = value
    elif isinstance(value, float):
        message.double_param = value
    elif isinstance(value, bytes):
        message.bytes_param = value
    else:
        message.string_param = value


def _read_parameter(message: Any) -> Any:
    chosen = message.WhichOneof(_CHOICE)
    if chosen is None:
        raise InvalidArgument("a parameter has no value, or one of a kind that is not known here")
    return getattr(message, chosen)


special(Parameter, _fill_parameter, _read_parameter)
special(RepositoryParameter, _fill_parameter, _read_parameter)


def _parameters(field: Any) -> dict[str, Any]:
    return {key: _read_parameter(value) for key, value in field.items()}


def _fill_parameters(field: Any, values: Any) -> None:
    for key, value in values.items():
        _fill_parameter(field[key], value)


# Tensors

_CONTENTS: dict[str, tuple[Datatype, ...]] = {
    "bool_contents": (Datatype.BOOL,),
    "int_contents": (Datatype.INT8, Datatype.INT16, Datatype.INT32),
    "int64_contents": (Datatype.INT64,),
    "uint_contents": (Datatype.UINT8, Datatype.UINT16, Datatype.UINT32),
    "uint64_contents": (Datatype.UINT64,),
    "fp32_contents": (Datatype.FP32,),
    "fp64_contents": (Datatype.FP64,),
    "bytes_contents": (Datatype.BYTES,),
}


def _contents(tensor: Any, model: str) -> Array | None:
    """The elements that are typed contents of a tensor; None if it has none.

    Raises:
        InvalidTensor: they are in the field of another datatype, or past what it holds.
    """
    if not tensor.HasField("contents"):
        return None
    used = [field.name for field, _ in tensor.contents.ListFields()]
    if not used:
        return None
    (name, *more) = used
    what = f"input tensor '{tensor.name[:80]}' for model '{model[:80]}'"
    datatype = next((one for one in _CONTENTS[name] if one.value == tensor.datatype), None)
    if more or datatype is None:
        raise InvalidTensor(
            f"unexpected explicit tensor data for {what} of type '{tensor.datatype[:80]}': it is in "
            f"{', '.join(used)}; FP16 and BF16 have no typed contents, and travel raw"
        )
    values = list(getattr(tensor.contents, name))
    if datatype is Datatype.BYTES:
        array = np.empty(len(values), object)
        array[:] = values
        return array
    dtype = NUMPY[datatype]
    if dtype.kind not in "iu" or not values:
        return np.array(values, dtype)
    limits = np.iinfo(dtype)
    if min(values) < limits.min or max(values) > limits.max:
        raise InvalidTensor(f"{what}: an element is past what {datatype.value} holds")
    return np.array(values, dtype)


def _read_request(message: Any) -> InferenceRequest:
    model = message.model_name
    return InferenceRequest(
        model,
        message.model_version,
        message.id,
        _parameters(message.parameters),
        tuple(
            NamedTensor(
                tensor.name,
                tensor.datatype,
                tuple(tensor.shape),
                _contents(tensor, model),
                _parameters(tensor.parameters),
            )
            for tensor in message.inputs
        ),
        tuple(RequestedOutput(one.name, _parameters(one.parameters)) for one in message.outputs),
    )


def _fill_request(message: Any, request: InferenceRequest) -> None:
    message.model_name = request.model
    message.model_version = request.version
    message.id = request.id
    _fill_parameters(message.parameters, request.parameters)
    if request.seconds is not None:
        message.parameters["timeout"].int64_param = round(1e6 * request.seconds)  # as Triton's clients say it
    for tensor in request.inputs:
        made = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _fill_parameters(made.parameters, tensor.parameters)
    for output in request.outputs:
        _fill_parameters(message.outputs.add(name=output.name).parameters, output.parameters)


def _fill_response(message: Any, response: InferenceResponse) -> None:
    message.model_name = response.model
    message.model_version = response.version
    message.id = response.id
    _fill_parameters(message.parameters, response.parameters)
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _fill_parameters(output.parameters, tensor.parameters)


def _read_response(message: Any) -> InferenceResponse:
    return InferenceResponse(
        message.model_name,
        message.model_version,
        message.id,
        _parameters(message.parameters),
        tuple(
            NamedTensor(one.name, one.datatype, tuple(one.shape), None, _parameters(one.parameters))
            for one in message.outputs
        ),
    )


def _fill_streamed(message: Any, value: StreamedInference) -> None:
    raise TypeError("it is written by its codec")


special(InferenceRequest, _fill_request, _read_request)
special(InferenceResponse, _fill_response, _read_response)
special(StreamedInference, _fill_streamed, _read_response)

REQUEST, RESPONSE, STREAMED = InferenceRequestCodec(), InferenceResponseCodec(), StreamedInferenceCodec()


# Methods


def _method(
    name: str, request: type[Q], response: type[R], asked: type[Message], answered: type[Message]
) -> Method[Q, R]:
    return Method(
        OPEN_INFERENCE,
        name,
        Codec[Q](request, asked, parts=FIELDS, fields=FIELDS),
        Codec[R](response, answered),
    )


SERVER_LIVE = _method(
    "ServerLive", o.ServerLiveRequest, o.ServerLiveResponse, pb.ServerLiveRequest, pb.ServerLiveResponse
)
SERVER_READY = _method(
    "ServerReady", o.ServerReadyRequest, o.ServerReadyResponse, pb.ServerReadyRequest, pb.ServerReadyResponse
)
MODEL_READY = _method(
    "ModelReady", o.ModelReadyRequest, o.ModelReadyResponse, pb.ModelReadyRequest, pb.ModelReadyResponse
)
SERVER_METADATA = _method(
    "ServerMetadata",
    o.ServerMetadataRequest,
    o.ServerMetadata,
    pb.ServerMetadataRequest,
    pb.ServerMetadataResponse,
)
MODEL_METADATA = _method(
    "ModelMetadata",
    o.ModelMetadataRequest,
    o.ModelMetadata,
    pb.ModelMetadataRequest,
    pb.ModelMetadataResponse,
)
MODEL_CONFIG = _method(
    "ModelConfig", o.ModelConfigRequest, o.ModelConfigResponse, pb.ModelConfigRequest, pb.ModelConfigResponse
)
MODEL_STATISTICS = _method(
    "ModelStatistics",
    o.ModelStatisticsRequest,
    o.ModelStatisticsResponse,
    pb.ModelStatisticsRequest,
    pb.ModelStatisticsResponse,
)
MODEL_INFER = Method(OPEN_INFERENCE, "ModelInfer", REQUEST, RESPONSE, large=True)
MODEL_STREAM_INFER = Method(
    OPEN_INFERENCE,
    "ModelStreamInfer",
    StreamRequestCodec(),
    STREAMED,
    streams_request=True,
    streams_response=True,
    large=True,
)
REPOSITORY_INDEX = _method(
    "RepositoryIndex",
    o.RepositoryIndexRequest,
    o.RepositoryIndexResponse,
    pb.RepositoryIndexRequest,
    pb.RepositoryIndexResponse,
)
REPOSITORY_MODEL_LOAD = _method(
    "RepositoryModelLoad",
    o.RepositoryModelRequest,
    o.RepositoryModelResponse,
    pb.RepositoryModelLoadRequest,
    pb.RepositoryModelLoadResponse,
)
REPOSITORY_MODEL_UNLOAD = _method(
    "RepositoryModelUnload",
    o.RepositoryModelRequest,
    o.RepositoryModelResponse,
    pb.RepositoryModelUnloadRequest,
    pb.RepositoryModelUnloadResponse,
)
TRACE_SETTING = _method(
    "TraceSetting",
    o.TraceSettingRequest,
    o.TraceSettingResponse,
    pb.TraceSettingRequest,
    pb.TraceSettingResponse,
)
LOG_SETTINGS = _method(
    "LogSettings", o.LogSettingsRequest, o.LogSettingsResponse, pb.LogSettingsRequest, pb.LogSettingsResponse
)


def _shared_memory(kind: str, what: str, request: type[Q]) -> Method[Q, o.SharedMemoryResponse]:
    name = f"{kind}SharedMemory{what}"
    return _method(
        name, request, o.SharedMemoryResponse, getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response")
    )


SHARED_MEMORY_STATUS = tuple(
    _shared_memory(kind, "Status", o.SharedMemoryRequest) for kind in ("System", "Cuda")
)
SHARED_MEMORY_UNREGISTER = tuple(
    _shared_memory(kind, "Unregister", o.SharedMemoryRequest) for kind in ("System", "Cuda")
)
SHARED_MEMORY_REGISTER = tuple(
    _shared_memory(kind, "Register", o.SharedMemoryRegisterRequest) for kind in ("System", "Cuda")
)
METHODS: tuple[AnyMethod, ...] = (
    SERVER_LIVE,
    SERVER_READY,
    MODEL_READY,
    SERVER_METADATA,
    MODEL_METADATA,
    MODEL_CONFIG,
    MODEL_STATISTICS,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    REPOSITORY_INDEX,
    REPOSITORY_MODEL_LOAD,
    REPOSITORY_MODEL_UNLOAD,
    TRACE_SETTING,
    LOG_SETTINGS,
    *SHARED_MEMORY_STATUS,
    *SHARED_MEMORY_UNREGISTER,
    *SHARED_MEMORY_REGISTER,
)


def described(names: Iterable[str]) -> DescriptorPool:
    """What gRPC's reflection tells of the services `names`, for tools that have no messages of theirs.

    This one is told of under the protocol's own package, as it is called, so this is a pool by itself: in the
    process's own the names may be another's. Of a service that is not compiled here nothing is told.
    """
    pool, known = DescriptorPool(), set[str]()

    def add(file: Any) -> None:
        if file.name not in known:
            known.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.AddSerializedFile(file.serialized_pb)

    for name in names:
        if name != OPEN_INFERENCE.name:
            with contextlib.suppress(KeyError):
                add(Default().FindFileContainingSymbol(name))
    pool.AddSerializedFile(_protocol_file().SerializeToString())
    return pool


def _protocol_file() -> FileDescriptorProto:
    """The messages under the protocol's package, and its service."""
    package = OPEN_INFERENCE.name.rpartition(".")[0]
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    ours = f".{file.package}."
    file.name, file.package = "open_inference.proto", package

    def rename(message: Any) -> None:
        for field in message.field:
            if field.type_name.startswith(ours):
                field.type_name = f".{package}.{field.type_name.removeprefix(ours)}"
        for inner in message.nested_type:
            rename(inner)

    for message in file.message_type:
        rename(message)
    service = file.service.add(name=OPEN_INFERENCE.name.rpartition(".")[2])
    for method in METHODS:
        service.method.add(
            name=method.name,
            input_type=f".{package}.{method.request.message_name}",
            output_type=f".{package}.{method.response.message_name}",
            client_streaming=method.streams_request,
            server_streaming=method.streams_response,
        )
    return file
