"""Tensors of a module as initializers of a file, or of one beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from edge_attention.core.errors import InvalidArgument

__all__ = ["ModuleFiles", "write_file"]

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}
_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of weights in the file itself, at most: protobuf has 2 GiB, and the graph lies there, too."""
_PAGE = 4096
"""Bytes that tensors beside a file begin at multiples of, so that they can be mapped."""


@dataclass(frozen=True)
class ModuleFiles:
    """The files, and of the tensors written how many numbers and bytes they have."""

    files: tuple[Path, ...]
    numbers: int
    nbytes: int

    def remove(self) -> None:
        """Take the files away again."""
        for file in self.files:
            file.unlink(missing_ok=True)


def write_file(
    path: Path, model: Any, tensors: Mapping[str, Tensor], external: bool | None, most: int
) -> ModuleFiles:
    """Write `model`, an onnx.ModelProto, with `tensors` as its initializers.

    They lie in `<path>.data` where `external` says so, or, where it is None, if they have over `most` bytes.

    Raises:
        InvalidArgument: a file cannot be written, or a tensor's dtype is not ONNX's.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise InvalidArgument(f"{name} is {tensor.dtype}, which an ONNX file does not hold: convert it")
    size = sum(tensor.nbytes for tensor in tensors.values())
    numbers = sum(tensor.numel() for tensor in tensors.values())
    beside = path.with_name(f"{path.name}.data") if (size > most if external is None else external) else None
    if beside is None and size > _LARGEST:
        raise InvalidArgument(
            f"the weights have {size:,} bytes, and a file has {_LARGEST:,} at most: leave external out, or "
            "external=True, which puts them beside it"
        )
    files = (path,) if beside is None else (path, beside)
    written = ModuleFiles(files, numbers, size)
    temporary, ahead = (path.with_name(f".{path.name}.{kind}{os.getpid()}") for kind in ("", "data."))
    try:
        if beside is None:
            for name, tensor in tensors.items():
                proto = model.graph.initializer.add(name=name, data_type=_TYPES[tensor.dtype])
                proto.dims.extend(tensor.shape)
                proto.raw_data = _bytes(tensor)
        else:
            with ahead.open("wb") as data:
                for name, tensor in tensors.items():
                    proto = model.graph.initializer.add(name=name, data_type=_TYPES[tensor.dtype])
                    proto.dims.extend(tensor.shape)
                    data.seek(-(-data.tell() // _PAGE) * _PAGE)
                    proto.data_location = TensorProto.EXTERNAL
                    for key, value in (
                        ("location", beside.name),
                        ("offset", data.tell()),
                        ("length", tensor.nbytes),
                    ):
                        proto.external_data.add(key=key, value=str(value))
                    data.write(_bytes(tensor))
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        if beside is not None:
            ahead.replace(beside)
        temporary.replace(path)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}") from None
    finally:
        for one in (temporary, ahead):  # what was at `path` before is still there
            with suppress(OSError):
                one.unlink(missing_ok=True)
    return written


def _bytes(tensor: Tensor) -> bytes:
    """Its elements, little-endian, row after row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""
