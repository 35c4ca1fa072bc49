"""Requests to models and their answers as the Open Inference Protocol's HTTP has them: pure.

A body is JSON; with the header `Inference-Header-Content-Length` its first so many bytes are, and behind
them, one after the other, the bytes of inputs whose parameters say `binary_data_size`. Answers likewise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from aggregator.http.json_tensors import array_of_json, json_pieces, require_json
from edge_attention.core.datatypes import MAX_DIMENSIONS, raw_bytes
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.open_inference import (
    InferenceRequest,
    InferenceResponse,
    NamedTensor,
    Parameter,
    RequestedOutput,
)
from edge_attention.core.tensors import Array

__all__ = [
    "HEADER_LENGTH",
    "InferAnswer",
    "InferWishes",
    "answer_of",
    "objects",
    "request_of",
    "require_64_bits",
    "split",
    "tensor_head",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
TENSORS = 1024
"""Inputs of one request, and outputs it names."""
PARAMETERS = 64
CHARACTERS = 4096
"""Of a parameter that is a string."""
LEAST_WHOLE, MOST_WHOLE = -(1 << 63), 1 << 64
"""Whole numbers of parameters are from the one to below the other, as gRPC's are, of 64 bits with a sign or
without: a sequence's id has them all."""
JOINED_ELEMENTS = 32 * 1024
"""Of outputs as JSON, up to which an answer is written before it is sent; behind, as it is sent."""
NAME_LENGTH = 256
OURS = frozenset({"binary_data", "binary_data_size", "binary_data_output"})
"""Parameters that say how tensors travel: nobody but this file is told of them."""
REGION = "shared_memory_region"
"""A parameter of a tensor that lies elsewhere: the data plane says that there is no such region."""


@dataclass(frozen=True)
class InferWishes:
    """Which outputs are to come as bytes: those of `binary`; of those it does not name, `otherwise`."""

    binary: Mapping[str, bool]
    otherwise: bool


@dataclass(frozen=True)
class InferAnswer:
    """An answer to send. `size`: of the body, where it is known before it is written. `header`: of its JSON,
    where bytes follow."""

    pieces: Iterator[bytes | memoryview]
    size: int | None
    header: int | None


def split(body: bytearray, header: str | None) -> tuple[memoryview, memoryview]:
    """A body's JSON, and the bytes behind it. `header`: what HEADER_LENGTH says.

    Raises:
        InvalidArgument: it says what cannot be.
    """
    view = memoryview(body)
    if header is None:
        return view, view[:0]
    if not (header.isascii() and header.isdigit() and len(header) < 20) or int(header) > len(view):
        raise InvalidArgument(
            f"{HEADER_LENGTH} is {header[:40]!r}, and the body has {len(view):,} bytes; it is the length of "
            "the JSON at its beginning"
        )
    return view[: int(header)], view[int(header) :]


def request_of(
    model: str,
    version: str,
    said: Any,
    binary: memoryview,
    arrays: Mapping[int, Array | bytes] = MappingProxyType({}),
) -> tuple[InferenceRequest, InferWishes]:
    """The request that a body makes.

    Args:
        said: what its JSON says.
        binary: the bytes behind.
        arrays: the `data` of inputs that was read elsewhere, by their places.

    Raises:
        InvalidArgument, InvalidTensor: names the field or the input.
    """
    if not isinstance(said, dict):
        raise InvalidArgument("the request is no JSON object; it has `inputs`, and may have `outputs`, `id`")
    parameters = _parameters(said.get("parameters", {}), "the request")
    if "inputs" not in said:
        raise InvalidArgument(
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"
        )
    inputs, at = [], 0
    for number, one in enumerate(objects(said["inputs"], "inputs")):
        tensor, used = _input(number, one, binary[at:], arrays)
        inputs.append(tensor)
        at += used
    if at != len(binary):
        raise InvalidArgument(
            f"unexpected additional input data for model '{model[:80]}': {len(binary) - at:,} bytes behind "
            "those of the inputs"
        )
    outputs, wanted = [], {}
    for number, one in enumerate(objects(said.get("outputs", []), "outputs")):
        name = _text(one, "name", f"output {number}")
        own = _parameters(one.get("parameters", {}), f"output {name!r}")
        if "binary_data" in own:
            wanted[name] = _true(own["binary_data"], f"binary_data of output {name!r}")
        outputs.append(RequestedOutput(name, _without_ours(own)))
    otherwise = _true(parameters.get("binary_data_output", False), "binary_data_output")
    request = InferenceRequest(
        model,
        version,
        _text(said, "id", "the request", ""),
        _without_ours(parameters),
        tuple(inputs),
        tuple(outputs),
    )
    return request, InferWishes(wanted, otherwise)


def answer_of(response: InferenceResponse, wishes: InferWishes) -> InferAnswer:
    """What is sent for it. Takes a while where outputs are large, and may be called in a thread.

    Raises:
        InvalidArgument: an output is to come as JSON, and JSON cannot say it.
    """
    binary: list[bytes | memoryview] = []
    told: list[tuple[dict[str, Any], NamedTensor, bool]] = []
    for output in response.outputs:
        as_bytes = wishes.binary.get(output.name, wishes.otherwise)
        line: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": [int(n) for n in output.shape],
        }
        parameters = dict(output.parameters)
        if as_bytes:
            data = memoryview(raw_bytes(output))
            parameters["binary_data_size"] = data.nbytes
            binary.append(data.cast("B") if data.nbytes else b"")
        else:
            require_json(output.name, output.datatype, _array(output))
        if parameters:
            line["parameters"] = parameters
        told.append((line, output, as_bytes))
    lines = _json(response, told)
    elements = sum(_array(output).size for _, output, as_bytes in told if not as_bytes)
    if not binary and elements > JOINED_ELEMENTS:
        return InferAnswer(_gathered(lines), None, None)
    head = b"".join(lines)
    return InferAnswer(
        iter([head, *binary]), len(head) + sum(map(len, binary)), len(head) if binary else None
    )


def _json(
    response: InferenceResponse, told: list[tuple[dict[str, Any], NamedTensor, bool]]
) -> Iterator[bytes]:
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = dict(response.parameters)
    yield _dumped(head)[:-1] + b',"outputs":['
    for number, (line, output, as_bytes) in enumerate(told):
        yield (b"," if number else b"") + _dumped(line)[:-1]
        if not as_bytes:
            yield b',"data":'
            yield from json_pieces(output.datatype, _array(output))
        yield b"}"
    yield b"]}"


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same in fewer pieces."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= 32 * 1024:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join(gathered)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _array(output: NamedTensor) -> Array:
    assert isinstance(output.data, np.ndarray), "an answer's tensors are arrays"
    return output.data


def _input(
    number: int, one: Mapping[str, Any], binary: memoryview, arrays: Mapping[int, Array | bytes]
) -> tuple[NamedTensor, int]:
    """An input, and how many of the bytes are its."""
    name, datatype, shape = tensor_head(number, one)
    parameters = _parameters(one.get("parameters", {}), f"input {name!r}")
    size = parameters.get("binary_data_size")
    kept = _without_ours(parameters)
    if size is None:
        if REGION in parameters:
            return NamedTensor(name, datatype, shape, None, kept), 0
        if "data" not in one:
            raise InvalidArgument(
                "Unable to parse 'data': attempt to access non-existing object member 'data' of input "
                f"{name!r}"
            )
        data = arrays[number] if number in arrays else array_of_json(name, datatype, shape, one["data"])
        return NamedTensor(name, datatype, shape, data, kept), 0
    if type(size) is not int or size < 0:
        raise InvalidArgument(f"binary_data_size of input {name!r} is {size!r}; it is a number of bytes")
    if "data" in one:
        raise InvalidArgument(f"input {name!r} has `data` and binary_data_size; send one of both")
    if size > len(binary):
        raise InvalidArgument(
            f"unexpected size for input '{name}', expecting {size:,} bytes behind the JSON, and "
            f"{len(binary):,} are left"
        )
    return NamedTensor(name, datatype, shape, binary[:size], kept), size


def tensor_head(number: int, one: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Name, datatype and shape of an input. `number`: its place.

    Raises:
        InvalidArgument: names what it has not, or what is wrong.
    """
    name = _text(one, "name", f"input {number}")
    return name, _text(one, "datatype", f"input {name!r}"), _dimensions(name, one.get("shape"))


def objects(value: Any, what: str) -> list[dict[str, Any]]:
    """The inputs, or `what` else is a list of a request.

    Raises:
        InvalidArgument: it is no list of objects, or of too many.
    """
    if not isinstance(value, list) or any(not isinstance(one, dict) for one in value):
        raise InvalidArgument(f"Unable to parse '{what}': it is a list of objects")
    if len(value) > TENSORS:
        raise InvalidArgument(
            f"bound tensors: {what} names {len(value):,}; one request has at most {TENSORS:,}"
        )
    return value


def _text(one: Mapping[str, Any], field: str, what: str, default: str | None = None) -> str:
    value = one.get(field, default)
    if not isinstance(value, str) or len(value) > NAME_LENGTH:
        raise InvalidArgument(
            f"Unable to parse '{field}' of {what}: it is a string of at most {NAME_LENGTH} characters"
        )
    return value


def _dimensions(name: str, value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) <= MAX_DIMENSIONS and all(type(n) is int for n in value)
    if not good or any(not 0 <= n < 1 << 62 for n in value):
        raise InvalidArgument(
            f"Unable to parse 'shape' of input {name!r}: it is a list of at most {MAX_DIMENSIONS} sizes, "
            "none negative"
        )
    return tuple(value)


def _parameters(value: Any, what: str) -> Mapping[str, Parameter]:
    if not isinstance(value, dict) or len(value) > PARAMETERS:
        raise InvalidArgument(
            f"Unable to parse 'parameters' of {what}: it is an object of at most {PARAMETERS} members"
        )
    for name, one in value.items():
        if type(one) not in (bool, int, float, str) or (isinstance(one, str) and len(one) > CHARACTERS):
            raise InvalidArgument(
                f"parameter {name[:80]!r} of {what}: a parameter is a string of at most {CHARACTERS:,} "
                "characters, a number, or true or false"
            )
        require_64_bits(name, one, what)
    return value


def require_64_bits(name: str, value: Any, what: str) -> None:
    """Refuse a parameter that is a whole number of more bits.

    Raises:
        InvalidArgument: names the parameter.
    """
    if type(value) is int and not LEAST_WHOLE <= value < MOST_WHOLE:
        raise InvalidArgument(
            f"parameter {name[:80]!r} of {what} has {value.bit_length()} bits; a whole number has 64, one of "
            "them its sign where it is negative"
        )


def _true(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"{what} is {str(value)[:40]!r}; it is true or false")
    return value


def _without_ours(parameters: Mapping[str, Parameter]) -> Mapping[str, Parameter]:
    return {name: one for name, one in parameters.items() if name not in OURS}
