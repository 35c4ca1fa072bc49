"""Parameters of a run: named arrays of one version, and the safetensors files they come in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from mmap import mmap
from typing import Any

import numpy as np

from edge_attention.core.errors import DataLoss, InvalidTensor
from edge_attention.core.tensors import MAX_RANK, Array

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_CODES = {np.dtype(dtype).newbyteorder("="): code for code, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # safetensors' own


class Parameters(Mapping[str, Array]):
    """Name -> read-only array, of version `version` of run `run`."""

    def __init__(self, arrays: Mapping[str, Array], version: int, run: str = "") -> None:
        self._arrays = dict(arrays)
        self.version = version
        self.run = run

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<Parameters of run {self.run!r}, version {self.version}: {len(self)} arrays>"


def read_safetensors(data: bytes | mmap, what: str = "the file") -> dict[str, Array]:
    """The arrays of a safetensors file, read-only views of `data`.

    The format (https://github.com/huggingface/safetensors): 8 bytes of header length, little-endian; a
    JSON header, name -> dtype, shape, data_offsets; the elements, little-endian, row-major, without gaps.

    Raises:
        DataLoss: `data` is not such a file, or not a whole one.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(_HEADER_LIMIT, len(data) - 8):
        raise DataLoss(f"{what} is no safetensors file, or is cut short: it has {len(data):,} bytes")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"))
        header.pop("__metadata__", None)
        entries = [(name, *_entry(entry)) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataLoss(f"{what} has a header that is not safetensors'") from None
    body = memoryview(data)[8 + size :]
    end = 0
    arrays: dict[str, Array] = {}
    for name, dtype, shape, begin, stop in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        # Gaps and overlaps are forbidden by the format: they are where a forged file hides things.
        if begin != end or stop - begin != dtype.itemsize * math.prod(shape) or stop > len(body):
            raise DataLoss(f"{what}: tensor {name[:80]!r} does not fit its place in the file")
        try:
            arrays[name] = np.frombuffer(body[begin:stop], dtype).reshape(shape)
        except ValueError:
            raise DataLoss(f"{what}: tensor {name[:80]!r} has a shape no array can have") from None
        end = stop
    if end != len(body):
        raise DataLoss(f"{what} has {len(body) - end:,} bytes that belong to no tensor")
    return {name: arrays[name] for name in header}


def safetensors_metadata(data: bytes | mmap) -> dict[str, str]:
    """What a safetensors file, which `read_safetensors` has read, says of itself: its `__metadata__`."""
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size].decode("utf-8")).get("__metadata__", {})
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def write_safetensors(arrays: Mapping[str, Array]) -> bytes:
    """A safetensors file of the arrays; `read_safetensors` reads it.

    Raises:
        InvalidTensor: a dtype that is not the format's.
    """
    header, at = dict[str, Any](), 0
    for name, array in arrays.items():
        code = _CODES.get(array.dtype.newbyteorder("="))
        if code is None:
            raise InvalidTensor(
                f"{name[:80]!r} is {array.dtype}, which such a file does not hold: convert it"
            )
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the elements are aligned
    data = (np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays.values())
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def _entry(entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """dtype, shape, begin and stop of a header's entry; any of four exceptions if it is not one."""
    shape, (begin, stop) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, begin, stop)
    if len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError
    return np.dtype(_DTYPES[entry["dtype"]]), shape, begin, stop
