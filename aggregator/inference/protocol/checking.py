"""A request of the protocol against the model it is for.

What is refused is refused in Triton's words, which tools look for, with what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aggregator.bounds.budget import Lease
from aggregator.inference.feeds import may_be_empty
from aggregator.inference.protocol.served import CheckedRequest
from edge_attention.core.datatypes import MAX_DIMENSIONS, array_of, elements
from edge_attention.core.errors import InvalidArgument, InvalidTensor, NotFound
from edge_attention.core.messages.open_inference import (
    Datatype,
    InferenceRequest,
    ModelConfig,
    ModelMetadata,
    NamedTensor,
    Parameter,
    TensorMetadata,
)
from edge_attention.core.tensors import Array

__all__ = ["INFER_SECONDS", "MAX_INFER_SECONDS", "checked"]

INFER_SECONDS, MAX_INFER_SECONDS = 60.0, 3600.0
"""What a request has that says nothing, and at most."""
MOST_WHOLE = 1 << 63
"""Whole numbers of parameters are less."""
_NAMES = 16
"""That an error lists."""


def checked(
    request: InferenceRequest,
    metadata: ModelMetadata,
    config: ModelConfig,
    caller: str,
    room: Lease,
    joined: Mapping[str, int],
) -> CheckedRequest:
    """The request, once it is known to fit the model.

    `joined`: by input the axis along which it may be empty.

    Raises:
        InvalidArgument, InvalidTensor: names the input or output, and what the model has.
        NotFound: an input lies in shared memory, or an output is to.
    """
    where = f"for model '{metadata.name}'"
    told = f"[request id: {request.id[:80] or '<id_unknown>'}] "
    inputs = _by_name(request, metadata, where, told)
    known = [one.name for one in metadata.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidArgument(
                f"{told}unexpected inference output '{output.name[:80]}' {where}; its outputs: "
                f"{_listed(known)}"
            )
        _require_no_region(output.parameters, told, "take the tensor from the answer")
    rows = _rows(request.inputs, config, told)
    feeds = {one.name: _feed(inputs[one.name], one, where, told, joined) for one in metadata.inputs}
    wanted = tuple(dict.fromkeys(one.name for one in request.outputs)) or tuple(known)
    return CheckedRequest(
        request.id,
        feeds,
        wanted,
        request.parameters,
        _seconds(request, told),
        _number(request, "priority", told),
        rows,
        caller,
        room,
    )


def _by_name(
    request: InferenceRequest, metadata: ModelMetadata, where: str, told: str
) -> dict[str, NamedTensor]:
    """The inputs: each of the model's once, and no other."""
    inputs: dict[str, NamedTensor] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InvalidArgument(f"{told}input '{tensor.name[:80]}' already exists in request; send it once")
        inputs[tensor.name] = tensor
        _require_no_region(tensor.parameters, told, "send the tensor's bytes")
    known = [one.name for one in metadata.inputs]
    if len(inputs) != len(known):
        missing = [name for name in known if name not in inputs]
        raise InvalidArgument(
            f"{told}expected {len(known)} inputs but got {len(inputs)} inputs {where}. Got input(s) "
            f"[{_listed(list(inputs))}], but missing required input(s) [{_listed(missing)}]. Please provide "
            "all required input(s), and no others."
        )
    for name in inputs:
        if name not in known:
            raise InvalidArgument(
                f"{told}unexpected inference input '{name[:80]}' {where}; its inputs: {_listed(known)}"
            )
    return inputs


def _require_no_region(parameters: Mapping[str, Parameter], told: str, instead: str) -> None:
    """Raises NotFound where a tensor is to lie in shared memory: who asks would read there what was there."""
    if (region := parameters.get("shared_memory_region")) is not None:
        raise NotFound(
            f"{told}Unable to find shared memory region: '{str(region)[:80]}'; there is no shared memory "
            f"with this server: {instead}"
        )


def _rows(inputs: Sequence[NamedTensor], config: ModelConfig, told: str) -> int:
    """How many rows the batch has; 1 of a model without."""
    if not config.max_batch_size:
        return 1
    rows: int | None = None
    for tensor in inputs:
        if not tensor.shape:
            raise InvalidTensor(
                f"{told}input '{tensor.name}' has no shape but model requires batch dimension for "
                f"'{config.name}'"
            )
        if tensor.shape[0] < 0 or rows not in (None, tensor.shape[0]):
            raise InvalidTensor(
                f"{told}input '{tensor.name}' batch size does not match other inputs for '{config.name}': it "
                f"is {tensor.shape[0]}; all inputs have as many rows"
            )
        rows = tensor.shape[0]
    if rows is not None and rows > config.max_batch_size:
        raise InvalidTensor(
            f"{told}inference request batch-size must be <= {config.max_batch_size} for '{config.name}'; it "
            f"is {rows}: send fewer rows at a time"
        )
    return rows or 1


def _feed(
    tensor: NamedTensor, wanted: TensorMetadata, where: str, told: str, joined: Mapping[str, int]
) -> Array:
    """The input as an array of its shape and datatype."""
    if tensor.datatype != wanted.datatype:
        raise InvalidTensor(
            f"{told}inference input '{wanted.name}' data-type is '{tensor.datatype[:80]}', but model "
            f"{where.removeprefix('for model ')} expects '{wanted.datatype}'"
        )
    what = f"input '{wanted.name}' {where}"
    fits = len(tensor.shape) == len(wanted.shape) and all(
        want in (-1, have) for want, have in zip(wanted.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise InvalidTensor(
            f"{told}unexpected shape for input '{wanted.name}' {where}. Expected {_shape(wanted.shape)}, got "
            f"{_shape(tensor.shape)}"
        )
    empty = elements(tensor.shape, told + what) == 0
    if empty and not may_be_empty(wanted.name, tensor.shape, joined):
        raise InvalidTensor(f"{told}{what} is empty: {_shape(tensor.shape)}; send at least one element")
    return array_of(tensor, Datatype(wanted.datatype), what, told)


def _seconds(request: InferenceRequest, told: str) -> float:
    """Within which the answer is wanted: by the call, and by the parameter `timeout`, in microseconds."""
    timeout = _number(request, "timeout", told)
    asked = [INFER_SECONDS if request.seconds is None else request.seconds]
    if timeout:
        asked = [timeout / 1e6] if request.seconds is None else [timeout / 1e6, *asked]
    seconds = min(*asked, MAX_INFER_SECONDS)
    return seconds if math.isfinite(seconds) else INFER_SECONDS


def _number(request: InferenceRequest, name: str, told: str) -> int:
    value = request.parameters.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_WHOLE:
        raise InvalidArgument(
            f"{told}parameter '{name}' must be a whole number from 0, of 63 bits, not {str(value)[:80]!r}"
        )
    return value


def _listed(names: Sequence[str]) -> str:
    shown = ",".join(f"'{name[:80]}'" for name in names[:_NAMES])
    return f"{shown},..." if len(names) > _NAMES else shown


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape[:MAX_DIMENSIONS]))}]"
