"""Tensors on disk: what a node is to have still after a restart, one file each.

    job/<run>/kept/residual/7/0   ->   <folder>/<hash of the name>.tensor

A file is a line of JSON, then the bytes. It is written beside, synced and renamed, so it is there whole or
not at all, also after a power cut.

What is private, or small, is read as it was, if its checksum says so; who was to say that it is not needed
any more may never have come: old files are removed at start. A large tensor that is not private is mapped,
and takes no memory: its line is as long as whole pages, and has the SHA-256 of the bytes, which are compared
when it is first asked for. It goes when the disk is needed (store.py), or once nobody has asked for it for
half a year.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import OutOfMemory
from edge_attention.core.tensors import Array, DataType, require_stored
from edge_node import shared_memory
from edge_node.store.disk import Disk, remedy
from edge_node.store.origin import Origin, restored

log = logging.getLogger(__name__)

KEPT = "/kept/"
"""What the name of such a tensor has in it."""
MAX_AGE = 30 * 86_400.0
"""Seconds after which a file that nobody wrote anew is removed, unless it is mapped."""
MAPPED_AGE = 180 * 86_400.0
"""The same of one that is mapped, and that nobody has asked for: being asked for makes it new."""
MAPPED = shared_memory.LEAST
"""Bytes from which a tensor that is not private is mapped."""
SPARE = 256 * 1024 * 1024
"""Bytes of the disk that such tensors leave free."""
_PAGE = 4096
_LINE = 1 << 20
_PIECE = 1 << 20


class MappedFile:
    """The file of a tensor that is mapped, `digest` the SHA-256 of its bytes.

    `checked`: whether they are known to be these.
    """

    def __init__(self, path: Path, offset: int, digest: str, checked: bool = False) -> None:
        """Raises OSError: it cannot be opened or mapped."""
        self.digest = digest
        self.checked = checked
        self._path = path
        self._offset = offset
        self._region = shared_memory.map_file(path)
        self._lock = threading.Lock()

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The tensor. Raises ValueError: the file is of another size."""
        if self._region.size != self._offset + math.prod(shape) * dtype.itemsize:
            raise ValueError("it has another size than was written")
        return self._region.array(self._offset, shape, dtype)

    def intact(self) -> bool:
        """Whether the bytes are those that were written. The first call reads them all, not by the mapping:
        where the disk cannot read, that would end the process."""
        with self._lock:
            if not self.checked:
                found = sha256()
                try:
                    with open(self._path, "rb", buffering=0) as file:
                        file.seek(self._offset)
                        while piece := file.read(_PIECE):
                            found.update(piece)
                except OSError as error:
                    log.warning("%s cannot be read: %s", self._path, error.strerror)
                self.checked = found.hexdigest() == self.digest
                with contextlib.suppress(OSError):
                    os.utime(self._path)
            return self.checked


KeptTensor = tuple[str, Array, Origin | None, MappedFile | None]
"""Name, array and origin of a tensor; and its file, if it is mapped."""


class KeptFiles:
    """The tensors kept in `folder`."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()
        self._disk.make_folder(folder)

    def load(self) -> Iterator[KeptTensor]:
        """What an earlier process left, the oldest first; what is damaged or old is removed."""
        for path in sorted(self._folder.iterdir(), key=lambda path: (path.stat().st_mtime, path)):
            try:
                if path.suffix != ".tensor":
                    raise ValueError("it was never finished")
                found = _read(path, time.time() - path.stat().st_mtime)
                if path != self._path(found[0]):  # the sum is of the bytes alone
                    raise ValueError("it is another's")
                yield found
            except OSError as error:  # which says nothing of the file: it may be there at the next start
                log.warning("skipped the kept tensor %s: %s", path.name, error)
            except (ValueError, KeyError, TypeError) as error:
                log.info("removed the kept tensor %s: %s", path.name, error)
                path.unlink(missing_ok=True)

    def save(self, name: str, array: Array, origin: Origin | None, digest: str = "") -> KeptTensor:
        """Keep `array` as `name`, of which the `digest` may be known: it is on the disk when this returns.

        Returns what is there then.

        Raises:
            OutOfMemory: the disk is full.
        """
        path, data = self._path(name), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        head: dict[str, object] = {"name": name, "dtype": array.dtype.name, "shape": array.shape}
        head["origin"] = None if origin is None else origin.saved()
        mapped = origin is None and array.nbytes >= MAPPED
        if mapped:
            self._require_space(name, len(data))
            head["digest"] = digest = digest or sha256(data).hexdigest()
        else:
            head["sum"] = zlib.crc32(data)
        line = json.dumps(head).encode()
        size = -(len(line) + 1) % _PAGE if mapped else 0
        line += b" " * size + b"\n"
        try:
            self._disk.replace(path, line, data)
            if mapped:
                file = MappedFile(path, len(line), digest, checked=True)
                return name, file.array(array.dtype, array.shape), None, file
        except OSError as error:
            raise OutOfMemory(
                f"{name} cannot be kept in {self._folder}: {error.strerror}; {remedy(error)}"
            ) from None
        return name, array, origin, None

    def delete(self, name: str) -> None:
        self._disk.remove(self._path(name))

    def _require_space(self, name: str, size: int) -> None:
        status = os.statvfs(self._folder)
        if (free := status.f_bavail * status.f_frsize) < size + SPARE:
            raise OutOfMemory(
                f"{name} cannot be kept in {self._folder}: {free:,} bytes of the disk are free, and "
                f"{SPARE:,} of them stay so; free some disk"
            )

    def _path(self, name: str) -> Path:
        return self._folder / (sha256(name.encode()).hexdigest()[:32] + ".tensor")


def _read(path: Path, age: float) -> KeptTensor:
    with open(path, "rb") as file:
        line = file.readline(_LINE)
        head = json.loads(line)
        name, shape = require_stored(head["name"]), tuple(head["shape"])
        dtype = np.dtype(DataType(head["dtype"]).value)
        if KEPT not in name or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it is damaged")
        if age > (MAPPED_AGE if "digest" in head else MAX_AGE):
            raise ValueError("it is old")
        if "digest" in head:
            mapped = MappedFile(path, len(line), str(head["digest"]))
            return name, mapped.array(dtype, shape), None, mapped
        data = file.read()
    if zlib.crc32(data) != head.get("sum", zlib.crc32(data)):  # one of before there were sums has none
        raise ValueError("its bytes are not those that were written")
    return name, np.frombuffer(data, dtype).reshape(shape), restored(head["origin"], chosen=True), None
