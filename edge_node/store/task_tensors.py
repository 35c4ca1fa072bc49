"""Tensors of one task, by the names its program has for them: counted in the store, seen by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        self.get: Callable[[str], Held | None] = self._held.get
        """The tensor of a name, if there is one."""

    def __contains__(self, name: str) -> bool:
        return name in self._held

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

    def drop(self, *names: str) -> None:
        """Forget them; one that ends in `/` stands for all that begin with it. Unknown names are fine."""
        many = tuple([name for name in names if name.endswith("/")])
        found = [name for name in self._held if name.startswith(many)] if many else []
        found += [name for name in names if name in self._held]
        self._store.uncount([self._held.pop(name) for name in dict.fromkeys(found)])

    def close(self) -> None:
        """Forget them all."""
        if self._held:
            self._store.uncount(self._held.values())
            self._held.clear()
