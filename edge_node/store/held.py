"""A tensor of the store, as it is held: in memory, or on the disk and mapped."""

from __future__ import annotations

from dataclasses import dataclass

from edge_attention.core.tensors import Array
from edge_node.store.kept_files import MappedFile
from edge_node.store.origin import Origin

__all__ = ["Held", "restored_tensor"]

_FREE_FLOW = 4096
"""Bytes about how a tensor was computed that do not count, as its name does not."""


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor of the store.

    Attributes:
        origin: set if and only if it is private.
        digest: SHA-256 of its bytes, where that is known; empty otherwise.
        disk: bytes that it takes on the disk, where it is kept there and mapped.
        file: that, once it is there: then it takes no memory.
    """

    array: Array
    origin: Origin | None = None
    digest: str = ""
    disk: int = 0
    file: MappedFile | None = None

    @property
    def chosen(self) -> bool:
        """Whether its shape may tell of private data."""
        return self.origin is not None and self.origin.chosen

    @property
    def nbytes(self) -> int:
        """Bytes of memory that count: the array's, and those of a long memory of how it was computed."""
        if self.file is not None:
            return 0
        return self.array.nbytes + (max(self.origin.size - _FREE_FLOW, 0) if self.origin is not None else 0)


def restored_tensor(array: Array, origin: Origin | None, file: MappedFile | None) -> Held:
    """A tensor as `KeptFiles` has it."""
    return Held(array, origin) if file is None else Held(array, None, file.digest, array.nbytes, file)
