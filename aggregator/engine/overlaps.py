"""Which tasks a node had while it had no other of this aggregator: what they took says how quick it is."""

from __future__ import annotations

__all__ = ["Overlaps"]


class Overlaps:
    """Tasks under way by node, and whether each has met another there."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[str]] = {}
        self._met: set[str] = set()

    def begin(self, node: str, task: str) -> None:
        """The node is sent the task."""
        tasks = self._tasks.setdefault(node, set())
        tasks.add(task)
        if len(tasks) > 1:
            self._met |= tasks if len(tasks) == 2 else {task}

    def alone(self, task: str) -> bool:
        """Whether it has met none so far. Ask before its `end`."""
        return task not in self._met

    def end(self, node: str, task: str) -> None:
        """The node has ended the task, or nobody waits for it. Once more is nothing."""
        self._met.discard(task)
        tasks = self._tasks.get(node)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._tasks[node]
