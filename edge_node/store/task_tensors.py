"""Tensors of one task, by the names its program has for them: counted in the store, seen by nobody else."""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.core.tensors import Array
from edge_node.store.origin import Origin
from edge_node.store.store import Held, Store

__all__ = ["TaskTensors"]


class TaskTensors:
    """What a task keeps between its instructions. `close` it at the task's end; until then its bytes count.

    Used by one thread at a time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Held] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, name: str) -> Held | None:
        """The tensor `name`, if there is one."""
        return self._held.get(name)

    def put(self, name: str, array: Array, origin: Origin | None = None) -> None:
        """Keep `array` (not copied: it must not change) as `name`, in place of a tensor of that name.

        Raises InvalidTensor (of no use here), InvalidProgram (one too many), OutOfMemory.
        """
        held = Held(array, origin)
        self._store.count(name, held, self._held.get(name))
        self._held[name] = held

    def put_all(self, tensors: Mapping[str, Held]) -> None:
        """Keep all of these, by name, as `put` does one after the other. Raises as it does."""
        before = [self._held[name] for name in tensors if name in self._held]
        if self._store.count_all(tensors.values(), before):
            self._held.update(tensors)
            return
        for name, held in tensors.items():  # which says what is wrong with the first that cannot be
            self.put(name, held.array, held.origin)

    def drop(self, name: str) -> None:
        """Forget `name`; one that ends in `/` stands for all that begin with it. Unknown names are fine."""
        names = [n for n in self._held if n.startswith(name)] if name.endswith("/") else [name]
        self._store.uncount([self._held.pop(found) for found in names if found in self._held])

    def close(self) -> None:
        """Forget them all."""
        if self._held:
            self._store.uncount(self._held.values())
            self._held = {}
