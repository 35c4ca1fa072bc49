"""Contexts as safetensors files: keys, values and positions, and in the metadata what the context is.

    keys       float32 [tokens, key_heads, key_dim], in order of position
    values     float32 [tokens, key_heads, value_dim]
    positions  int64 [tokens], ascending: of a context that was trimmed they have gaps

Neither way is a file held in memory: it is mapped, and written or read a piece at a time.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import DataLoss, InvalidArgument, InvalidTensor
from edge_attention.core.messages.attention import ContextPiece, ContextSpec
from edge_attention.core.tensors import Array, Float32, Int64
from edge_attention.jobs.parameters import read_safetensors, safetensors_metadata

FORMAT = "edge-attention context 1"
_REMEDY = "make one with: edge-attention contexts export NAME FILE"
_SIZES = ("query_heads", "key_heads", "key_dim", "value_dim", "replicas")


@dataclass(frozen=True, eq=False)
class ContextFile:
    """What such a file holds."""

    spec: ContextSpec
    keys: Float32
    values: Float32
    positions: Int64


class ContextWriter:
    """Writes the pieces of an export to `file`: all of them under that name, or nothing new."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._temporary = file.with_name(f".{file.name}.{os.getpid()}")
        self._arrays: dict[str, Array] = {}
        self._count = self._at = 0

    def add(self, piece: ContextPiece) -> None:
        """Write the next piece. Blocks.

        Raises:
            DataLoss: it does not fit what came before.
            InvalidArgument: the file cannot be written.
        """
        try:
            if piece.spec is not None and not self._arrays:
                self._begin(piece.spec.check(), piece.count)
            if not self._arrays or self._at + len(piece.positions) > self._count:
                raise DataLoss("the pieces of an export do not fit together; export again")
            part = slice(self._at, self._at + len(piece.positions))
            for name, array in (
                ("keys", piece.keys),
                ("values", piece.values),
                ("positions", piece.positions),
            ):
                try:
                    self._arrays[name][part] = array
                except (ValueError, TypeError):
                    raise DataLoss(f"{name} of an export have another shape than the context") from None
            self._at = part.stop
        except OSError as error:
            raise InvalidArgument(f"{self._file} cannot be written: {error.strerror}") from None

    def finish(self) -> int:
        """Have it all under its name; how many tokens it has. Blocks.

        Raises:
            DataLoss: not all of it has come.
        """
        if not self._arrays or self._at != self._count:
            raise DataLoss(f"only {self._at:,} of {self._count:,} tokens came; export again")
        try:
            positions = self._arrays["positions"]
            if (np.diff(positions) <= 0).any():
                self._sort(np.argsort(positions, kind="stable"))
            for array in self._arrays.values():
                array.flush()  # type: ignore[attr-defined]
            self._arrays = {}
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())  # what stands before the arrays is no part of their maps
            os.replace(self._temporary, self._file)
            with contextlib.suppress(PermissionError):  # of a folder that one may write into and not list
                folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)  # the name, too, outlives the power
                finally:
                    os.close(folder)
        except OSError as error:
            raise InvalidArgument(f"{self._file} cannot be written: {error.strerror}") from None
        return self._count

    def close(self) -> None:
        """Leave nothing of what was not finished."""
        self._arrays = {}
        self._temporary.unlink(missing_ok=True)

    def _begin(self, spec: ContextSpec, count: int) -> None:
        shapes: dict[str, tuple[str, np.dtype[Any], tuple[int, ...]]] = {
            "keys": ("F32", np.dtype("<f4"), (count, spec.key_heads, spec.key_dim)),
            "values": ("F32", np.dtype("<f4"), (count, spec.key_heads, spec.value_dim)),
            "positions": ("I64", np.dtype("<i8"), (count,)),
        }
        metadata = {"format": FORMAT, **{name: str(value) for name, value in asdict(spec).items()}}
        header: dict[str, Any] = {"__metadata__": metadata}
        at = 0
        for name, (code, dtype, shape) in shapes.items():
            size = dtype.itemsize * int(np.prod(shape))
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(self._temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            os.posix_fallocate(
                file.fileno(), 0, 8 + len(text) + at
            )  # a full disk is said now, not by a signal
        for name, (_, dtype, shape) in shapes.items():
            offset = 8 + len(text) + header[name]["data_offsets"][0]
            self._arrays[name] = np.memmap(self._temporary, dtype, "r+", offset, shape)
        self._count = count

    def _sort(self, order: Int64) -> None:
        """Bring the tokens into `order`: they came segment by segment, whose positions may alternate."""
        for array in self._arrays.values():
            step = max(1, (64 << 20) // max(1, array[:1].nbytes))
            sorted_file = self._temporary.with_name(f"{self._temporary.name}.sorted")
            try:
                with open(sorted_file, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, array.nbytes)
                made = np.memmap(sorted_file, array.dtype, "r+", 0, array.shape)
                for at in range(0, len(order), step):
                    made[at : at + step] = array[order[at : at + step]]
                for at in range(0, len(order), step):
                    array[at : at + step] = made[at : at + step]
            finally:
                sorted_file.unlink(missing_ok=True)


def read_context(file: Path) -> ContextFile:
    """The file, mapped as long as somebody has an array of it.

    Raises:
        InvalidArgument: it cannot be read, or is no such file.
        DataLoss: it is not whole.
    """
    try:
        with open(file, "rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:  # an empty file cannot be mapped
        raise InvalidArgument(f"{file} is empty, and no exported context; {_REMEDY}") from None
    try:
        arrays = read_safetensors(data, str(file))
    except DataLoss as error:
        raise DataLoss(f"{error.message}; {_REMEDY}") from None
    metadata = safetensors_metadata(data)
    if metadata.get("format") != FORMAT or arrays.keys() != {"keys", "values", "positions"}:
        raise InvalidArgument(
            f"{file} is no exported context: it has {', '.join(sorted(arrays)[:5]) or 'no tensors'}; "
            f"{_REMEDY}"
        )
    sizes = {name: metadata.get(name, "") for name in _SIZES}
    if not all(size.isdecimal() and len(size) < 7 for size in sizes.values()):
        raise InvalidArgument(f"{file} does not say what its context is; export it again")
    spec = ContextSpec(metadata.get("name", ""), **{name: int(size) for name, size in sizes.items()}).check()
    count = len(arrays["positions"])
    wanted = {
        "keys": (np.float32, (count, spec.key_heads, spec.key_dim)),
        "values": (np.float32, (count, spec.key_heads, spec.value_dim)),
        "positions": (np.int64, (count,)),
    }
    for name, (dtype, shape) in wanted.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            raise InvalidTensor(
                f"{file}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}; it must be "
                f"{np.dtype(dtype)} {list(shape)}"
            )
    return ContextFile(spec, arrays["keys"], arrays["values"], arrays["positions"])
