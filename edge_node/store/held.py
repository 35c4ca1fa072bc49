"""A tensor of the store, as it is held: in memory, or on the disk and mapped."""

from __future__ import annotations

from edge_attention.core.tensors import Array
from edge_node.store.kept_files import MappedFile
from edge_node.store.origin import Origin

__all__ = ["Held", "restored_tensor"]

_FREE_FLOW = 4096
"""Bytes about how a tensor was computed that do not count, as its name does not."""


class Held:
    """A tensor of the store, which nobody changes. A task makes dozens of them, so it is no dataclass.

    Attributes:
        origin: set if and only if it is private.
        digest: SHA-256 of its bytes, where that is known; empty otherwise.
        disk: bytes that it takes on the disk, where it is kept there and mapped.
        file: that, once it is there: then it takes no memory.
        chosen: whether its shape may tell of private data.
        nbytes: bytes of memory that count: the array's, and those of a long memory of how it was computed.
    """

    __slots__ = ("__weakref__", "array", "chosen", "digest", "disk", "file", "nbytes", "origin")

    def __init__(
        self,
        array: Array,
        origin: Origin | None = None,
        digest: str = "",
        disk: int = 0,
        file: MappedFile | None = None,
    ) -> None:
        self.array = array
        self.origin = origin
        self.digest = digest
        self.disk = disk
        self.file = file
        self.chosen: bool = origin is not None and origin.chosen
        self.nbytes: int = 0 if file is not None else array.nbytes
        if origin is not None and file is None:
            self.nbytes += max(origin.size - _FREE_FLOW, 0)


def restored_tensor(array: Array, origin: Origin | None, file: MappedFile | None) -> Held:
    """A tensor as `KeptFiles` has it."""
    return Held(array, origin) if file is None else Held(array, None, file.digest, array.nbytes, file)
