"""Memory for what a run in a cell gives back, where it is more than the window holds.

The daemon makes it, so that it is counted and bounded; the cell writes there; then the daemon seals it, and
maps it to be read: what is checked from then on can no longer change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from edge_attention.core.errors import OutOfMemory
from edge_attention.core.tensors import Array
from edge_node.cell.messages import ALIGNMENT, DESCRIPTORS, LARGE, Nonsense, Placed
from edge_node.shared_memory import allocate, map_region, seal

__all__ = ["OutputMemory"]


class OutputMemory:
    """The outputs of one run. `where` names its graph in errors, `limit` bounds all of them together."""

    def __init__(self, where: str, limit: int) -> None:
        self._where = where
        self.limit = limit
        self._size = 0
        self._descriptors: list[int] = []
        self._sizes: list[int] = []
        self._places: dict[int, tuple[int, int, bool]] = {}  # output -> descriptor, byte, has it for itself

    def make(self, types: Mapping[int, Placed]) -> tuple[dict[int, tuple[int, int]], list[int]]:
        """Memory for these outputs too: number of the output -> (number of a descriptor, byte); descriptors.

        Both count from here on: the descriptors are those to be sent now. Each large output has one for
        itself, as far as a message takes them; the others share one.

        Raises:
            OutOfMemory: there is not so much.
        """
        self._size += sum(placed.nbytes for placed in types.values())
        if self._size > self.limit:
            raise OutOfMemory(
                f"{self._where}: its outputs take {self._size:,} bytes; --memory-limit is {self.limit:,}"
            )
        first = len(self._descriptors)
        alone = [n for n, placed in types.items() if placed.nbytes >= LARGE][: DESCRIPTORS // 2 - 1]
        for n in alone:
            self._allocate(types[n].nbytes)
            self._places[n] = (len(self._descriptors) - 1, 0, True)
        end, number = 0, len(self._descriptors)
        for n in types.keys() - set(alone):
            self._places[n] = (number, end, False)
            end += -(-types[n].nbytes // ALIGNMENT) * ALIGNMENT
        if end:
            self._allocate(end)
        made = {n: (self._places[n][0] - first, self._places[n][1]) for n in types}
        return made, self._descriptors[first:]

    def __contains__(self, output: int) -> bool:
        return output in self._places

    def take(self, types: Mapping[int, Placed]) -> dict[int, Array]:
        """The outputs, which the cell has written.

        Raises:
            Nonsense: it could go on writing.
            OutOfMemory: they cannot be mapped.
        """
        regions = []
        for descriptor, size in zip(self._descriptors, self._sizes, strict=True):
            try:
                seal(descriptor)
            except OSError:
                raise Nonsense("outputs that it goes on writing") from None
            try:
                regions.append(map_region(os.dup(descriptor), size))
            except OSError as error:
                raise OutOfMemory(f"{self._where}: no room for its outputs: {error.strerror}") from None
            regions[-1].shareable = True
        found = {}
        for n, placed in types.items():
            number, offset, alone = self._places[n]
            array = regions[number].array(offset, placed.shape, placed.dtype)
            # What shares memory would keep all of it for the least of it.
            found[n] = array if alone else array.copy()
        return found

    def close(self) -> None:
        """Give back what was not taken."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._sizes = []
        self._places = {}
        self._size = 0

    def _allocate(self, size: int) -> None:
        try:
            self._descriptors.append(allocate(size))
        except OSError as error:
            raise OutOfMemory(f"{self._where}: no memory for its outputs: {error.strerror}") from None
        self._sizes.append(size)
