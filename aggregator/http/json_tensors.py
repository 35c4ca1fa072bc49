"""Tensors as JSON has them in the Open Inference Protocol: read strictly, written piece by piece. Pure.

A tensor's `data` is a list of its elements in row-major order, or lists in lists as its shape says. What is
taken is what JSON means (RFC 8259): no NaN, no infinity, no number that its datatype cannot hold, no fraction
for an integer, no 1 for true. FP16 and BF16 have no form in JSON: they travel as bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from edge_attention.core.datatypes import NUMPY
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages.open_inference import Datatype
from edge_attention.core.tensors import Array

__all__ = ["ELEMENTS_A_PIECE", "array_of_json", "json_pieces", "require_json", "strict_json"]

BINARY_ONLY = ("FP16", "BF16")
INTEGERS = {one.value: dtype for one, dtype in NUMPY.items() if "INT" in one.value}
FLOATS = {one.value: NUMPY[one] for one in (Datatype.FP32, Datatype.FP64)}
ELEMENTS_A_PIECE = 4096
"""Written at a time: a millisecond or two."""


def strict_json(text: bytes | bytearray | memoryview, what: str) -> Any:
    """What JSON text says. `what` it is begins each message.

    Raises:
        InvalidArgument: it is none, names something twice, has NaN or is nested too deeply.
    """
    if not text:
        raise InvalidArgument(f"{what}: it is empty")
    try:
        # Of a byte order mark RFC 8259 says that it may be passed over: editors and PowerShell write one.
        return json.loads(str(text, "utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidArgument(f"{what}: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{what}: it is no UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{what}: {error.msg} at {error.pos}") from None
    except _NotJson as error:
        raise InvalidArgument(f"{what}: {error}") from None
    except ValueError:  # Python takes whole numbers of so many digits only
        raise InvalidArgument(f"{what}: a number has more digits than any datatype holds") from None


def array_of_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """The tensor that JSON says. BYTES: an array of `bytes` objects.

    Raises:
        InvalidTensor: names the input and what is wrong with it.
    """
    flat = _flat(name, shape, data)
    if datatype in INTEGERS:
        dtype = INTEGERS[datatype]
        _require_types(name, datatype, flat, {int}, "whole numbers")
        limits = np.iinfo(dtype)
        if flat and not (limits.min <= min(flat) and max(flat) <= limits.max):
            worst = min(flat) if min(flat) < limits.min else max(flat)
            raise InvalidTensor(f"input {name!r}: {_number(worst)} does not fit in {datatype}")
        found = np.array(flat, dtype)
    elif datatype in FLOATS:
        found = _floats(name, datatype, flat)
    elif datatype == "BOOL":
        _require_types(name, datatype, flat, {bool}, "true or false")
        found = np.array(flat, np.bool_)
    elif datatype == "BYTES":
        found = _strings(name, flat)
    elif datatype in BINARY_ONLY:
        raise InvalidTensor(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for input "
            f"{name!r}"
        )
    else:
        raise InvalidTensor(
            f"input {name!r} has the datatype {datatype[:40]!r}, which is none of the protocol"
        )
    return found.reshape(tuple(shape))


def require_json(name: str, datatype: str, array: Array) -> None:
    """Refuse an output that JSON cannot say.

    Raises:
        InvalidArgument: says how to ask for it instead.
    """
    if datatype in BINARY_ONLY:
        raise InvalidArgument(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for "
            f"output {name!r}"
        )
    if datatype in FLOATS and not np.isfinite(array).all():
        raise InvalidArgument(
            f"output {name!r} has NaN or infinity in it, which JSON cannot say: ask for it with the "
            "parameter binary_data"
        )
    if datatype == "BYTES":
        try:
            for one in array.reshape(-1):
                str(one, "utf-8")
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"output {name!r} has bytes that are no UTF-8, which JSON cannot say: ask for it with the "
                "parameter binary_data"
            ) from None


def json_pieces(datatype: str, array: Array) -> Iterator[bytes]:
    """The elements of an output as a JSON list, row-major, a piece after the other. See `require_json`."""
    flat = array.reshape(-1)
    yield b"["
    for at in range(0, flat.size, ELEMENTS_A_PIECE):
        some = flat[at : at + ELEMENTS_A_PIECE]
        values = [str(one, "utf-8") for one in some] if datatype == "BYTES" else some.tolist()
        yield (b"," if at else b"") + json.dumps(values, separators=(",", ":"))[1:-1].encode()
    yield b"]"


class _NotJson(ValueError):
    """What JSON text may not say."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _NotJson(f"{name[:80]!r} is there twice")
            seen.add(name)
    return found


def _no_constant(word: str) -> NoReturn:
    raise _NotJson(f"{word} is no number of JSON; send such values as binary data")


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidTensor(f"Unable to parse 'data': input {name!r} has {_kind(data)}, and needs a list")
    count = math.prod(shape)
    flat = data
    if len(shape) > 1 and data and isinstance(data[0], list):
        for axis, size in enumerate(shape):
            if axis:
                if any(type(row) is not list or len(row) != size for row in flat):
                    raise _shape(name, shape)
                flat = list(chain.from_iterable(flat))
            elif len(flat) != size:
                raise _shape(name, shape)
    if len(flat) != count:
        raise _shape(name, shape)
    return flat


def _shape(name: str, shape: Sequence[int]) -> InvalidTensor:
    return InvalidTensor(
        "Unable to parse 'data': Shape does not match true shape of 'data' field: input "
        f"{name!r} is {list(shape)}, so it has {math.prod(shape):,} elements, in one list or in lists of "
        "lists of these sizes"
    )


def _require_types(name: str, datatype: str, flat: list[Any], types: set[type], words: str) -> None:
    others = set(map(type, flat)) - types
    if others:
        odd = next(one for one in flat if type(one) in others)
        raise InvalidTensor(
            f"Unable to parse 'data': input {name!r} of {datatype} has {_kind(odd)}; it takes {words}"
        )


def _floats(name: str, datatype: str, flat: list[Any]) -> Array:
    _require_types(name, datatype, flat, {int, float}, "numbers")
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        wide = np.array([np.inf])
    with np.errstate(over="ignore"):
        found = wide.astype(FLOATS[datatype], copy=False)
    if not np.isfinite(found).all():
        raise InvalidTensor(f"input {name!r} has a number that does not fit in {datatype}")
    return found


def _strings(name: str, flat: list[Any]) -> Array:
    _require_types(name, "BYTES", flat, {str}, "strings")
    found = np.empty(len(flat), np.object_)
    try:
        found[:] = [one.encode() for one in flat]
    except UnicodeEncodeError:
        raise InvalidTensor(f"input {name!r} has a lone surrogate in a string, which is no text") from None
    return found


def _number(value: int) -> str:
    text = str(value)
    return text if len(text) < 30 else f"a number of {len(text)} digits"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value)) or str(value)[:30]
