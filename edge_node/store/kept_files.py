"""Tensors on disk: what a node is to have still after a restart, one file each.

    job/<run>/kept/residual/7/0   ->   <folder>/<hash of the name>.tensor

A file is a line of JSON, then the bytes. It is written beside, synced and renamed, so it is there whole or
not at all, also after a power cut; its checksum says so. Who was to say that a tensor is not needed any more
may never have come: old files are removed at start.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from edge_attention.core.errors import OutOfMemory
from edge_attention.core.tensors import Array, DataType, require_stored
from edge_node.store.disk import Disk, remedy
from edge_node.store.origin import Origin, restored

log = logging.getLogger(__name__)

KEPT = "/kept/"
"""What the name of such a tensor has in it."""
MAX_AGE = 30 * 86_400.0
"""Seconds after which a file that nobody wrote anew is removed."""


class KeptFiles:
    """The tensors kept in `folder`."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()
        self._disk.make_folder(folder)

    def load(self) -> Iterator[tuple[str, Array, Origin | None]]:
        """Name, array and origin of what an earlier process left; what is damaged or old is removed."""
        for path in sorted(self._folder.iterdir()):
            try:
                if path.suffix != ".tensor" or time.time() - path.stat().st_mtime > MAX_AGE:
                    raise ValueError("it is old, or was never finished")
                name, array, origin = _read(path)
                if path != self._path(name):  # the sum is of the bytes alone
                    raise ValueError("it is another's")
                yield name, array, origin
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.info("removed the kept tensor %s: %s", path.name, error)
                path.unlink(missing_ok=True)

    def save(self, name: str, array: Array, origin: Origin | None) -> None:
        """Keep `array` as `name`: it is on the disk when this returns.

        Raises:
            OutOfMemory: the disk is full.
        """
        data = np.ascontiguousarray(array).tobytes()
        head: dict[str, object] = {"name": name, "dtype": array.dtype.name, "shape": array.shape}
        head["origin"] = None if origin is None else origin.saved()
        line = json.dumps({**head, "sum": zlib.crc32(data)}).encode() + b"\n"
        try:
            self._disk.replace(self._path(name), line + data)
        except OSError as error:
            raise OutOfMemory(
                f"{name} cannot be kept in {self._folder}: {error.strerror}; {remedy(error)}"
            ) from None

    def delete(self, name: str) -> None:
        self._disk.remove(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / (sha256(name.encode()).hexdigest()[:32] + ".tensor")


def _read(path: Path) -> tuple[str, Array, Origin | None]:
    line, _, data = path.read_bytes().partition(b"\n")
    head = json.loads(line)
    name, shape = require_stored(head["name"]), tuple(head["shape"])
    dtype = np.dtype(DataType(head["dtype"]).value)
    if KEPT not in name or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("it is damaged")
    if zlib.crc32(data) != head.get("sum", zlib.crc32(data)):  # one of before there were sums has none
        raise ValueError("its bytes are not those that were written")
    return name, np.frombuffer(data, dtype).reshape(shape), restored(head["origin"], chosen=True)
