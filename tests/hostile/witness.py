"""What must not happen, and how it would be seen: a file that is opened, a private number on its way."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from tests.fuzz.corpus import is_repeated, nested

ROWS = 40
WIDTHS = (1, 2, 3, 4, 8)


def column(width: int, seed: int) -> Any:
    """float32 [ROWS, width], or [ROWS] for 0: numbers that nothing else has, none of them whole."""
    random = np.random.default_rng(1_000 * seed + width)
    shape = (ROWS, width) if width else (ROWS,)
    return (random.integers(50_000, 120_000, shape) + random.choice((0.125, 0.375, 0.625), shape)).astype(
        np.float32
    )


def whole(seed: int) -> Any:
    """int64 [ROWS]: the same for whole numbers."""
    return np.random.default_rng(seed).integers(400_000_000, 999_999_999, ROWS)


def write(file: Path, seed: int) -> Path:
    """A dataset of such columns: `flat`, `w1` to `w8`, `whole`."""
    columns = {f"w{width}": column(width, seed) for width in WIDTHS}
    np.savez(file, id=np.arange(ROWS), flat=column(0, seed), whole=whole(seed), **columns)
    return file


class Private:
    """The numbers of one dataset, and how one would be seen in a message: as a number, or in a text."""

    def __init__(self, seed: int) -> None:
        floats = np.concatenate([column(width, seed).ravel() for width in (0, *WIDTHS)])
        self._numbers = np.unique(np.concatenate([floats.astype(np.float64), whole(seed).astype(np.float64)]))
        texts = {f"{number:.6g}" for number in floats}
        texts |= {form for number in whole(seed) for form in (f"{number}", f"{number:,}", f"{number:x}")}
        forms = "|".join(re.escape(one) for one in sorted(texts))
        # Whole words: a task id of random digits begins with six of such a number once in a few thousand.
        self._texts = re.compile(f"(?<![0-9a-z])(?:{forms})(?![0-9a-z])")

    def leak(self, message: Any) -> str:
        """What of it is in a message, or nothing."""
        for part in nested(message):
            if part.DESCRIPTOR.name == "Tensor" and (found := self._in_tensor(part)):
                return found
            for f, value in part.ListFields():
                if f.name == "data" or (f.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(f)):
                    continue
                items = [x for item in value.items() for x in item] if _is_map(f) else value
                for item in items if is_repeated(f) else [value]:
                    if found := self._in_scalar(item):
                        return f"{f.name}: {found}"
        return ""

    def _in_scalar(self, item: Any) -> str:
        if isinstance(item, bool):
            return ""
        if isinstance(item, int | float):
            return f"{item}" if item in self._numbers else ""
        if isinstance(item, bytes):
            item = item.decode("latin-1")
        if isinstance(item, str) and (found := self._texts.search(item)):
            return f"{found[0]} in {item[:200]!r}"
        return ""

    def _in_tensor(self, part: Any) -> str:
        dtype = DTYPES.get(part.data_type)
        if dtype is None or part.encoding > 1 or len(part.data) % dtype.itemsize:
            return ""
        hit = np.isin(np.frombuffer(part.data, dtype).astype(np.float64), self._numbers)
        return f"{int(hit.sum())} numbers in tensor {part.name!r}" if hit.any() else ""


DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 5: np.dtype("<i4"), 6: np.dtype("<i8")}
"""Of the types of tensors on the wire those in which the numbers fit."""


def _is_map(f: Any) -> bool:
    return f.type == FieldDescriptor.TYPE_MESSAGE and bool(f.message_type.GetOptions().map_entry)


class Canary:
    """Files that nobody has a reason to open, and an ear for whoever does."""

    OPEN, ACCESS = 0x20, 0x1
    NAMES = ("secret.bin", "patients.csv", "key.pem")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = b"CANARY-" + os.urandom(16).hex().encode()
        self.files = [folder / name for name in self.NAMES]
        for file in self.files:
            file.write_bytes(self.mark * 64)
        libc = ctypes.CDLL(None, use_errno=True)
        self._ear = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for file in self.files:
            if libc.inotify_add_watch(self._ear, os.fsencode(file), self.OPEN | self.ACCESS) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")
        part = np.frombuffer(self.mark[:12], np.uint8)
        # As it is, and a byte a number, as a graph would cast it.
        self.needles = [self.mark[:12], part.astype(np.float32).tobytes(), part.astype(np.int64).tobytes()]

    def opened(self) -> bool:
        """Whether anybody has, since the last time it was asked."""
        try:
            return bool(os.read(self._ear, 1 << 16))
        except BlockingIOError:
            return False

    def paths(self) -> tuple[str, ...]:
        """What a graph may call them, whose process has their folder as its own."""
        names = [file.name for file in self.files]
        return (*names, *(f"../{self.folder.name}/{name}" for name in names), *map(str, self.files), "")

    def close(self) -> None:
        os.close(self._ear)
