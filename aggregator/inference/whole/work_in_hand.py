"""Who of several nodes is through with a request first: by what they have in hand, and how quick they are."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = ["WorkInHand"]

NEW = 0.1
"""How much the latest request weighs in what an element takes on a node."""
ALIKE = 1.25
"""Nodes are as quick as each other unless one takes so many times as long as the quickest."""
FRESH = 10.0
"""Seconds for which a node is slower than others that was: then it is tried again."""
UNKNOWN = 1e-6
"""Seconds that an element takes where nobody knows."""


class WorkInHand:
    """Of all nodes. A request is so many elements of inputs: of one model they are what its time grows with.

    `clock`: seconds of any steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._under_way: Counter[str] = Counter()
        self._pace: dict[str, dict[str, tuple[float, float]]] = {}
        """Model -> node -> seconds an element took, a mean that forgets, and when that was."""
        self._turns: dict[str, int] = {}
        """Node -> when it was asked last, counted: of those that are as soon not the same again."""
        self._count = itertools.count()

    def begin(self, model: str, node: str, elements: int) -> float:
        """A node is asked a request. What it is taken to last: give it to `end` when it is over."""
        seconds = self._paces(model, (node,))[node] * (elements + 1)
        self._seconds[node] = self._seconds.get(node, 0.0) + seconds
        self._under_way[node] += 1
        self._turns[node] = next(self._count)
        return seconds

    def end(self, node: str, seconds: float) -> None:
        """A request is over, however it ended."""
        self._seconds[node] -= seconds
        self._under_way[node] -= 1
        if not self._under_way[node]:
            del self._under_way[node], self._seconds[node]

    def took(self, model: str, node: str, elements: int, seconds: float) -> None:
        """It computed a request of so many elements. 0 seconds say nothing, as those of a node that does not
        say."""
        if not seconds > 0:
            return
        paces, pace = self._pace.setdefault(model, {}), seconds / (elements + 1)
        before = paces.get(node)
        mean = pace if before is None else before[0] + NEW * (pace - before[0])
        paces[node] = mean, self._clock()

    def soonest(self, model: str, nodes: Sequence[str], elements: int) -> str:
        """Of `nodes`, which are some, the one that is through with such a request first."""
        paces = self._paces(model, nodes)

        def due(node: str) -> tuple[float, int, int]:
            seconds = self._seconds.get(node, 0.0) + paces[node] * (elements + 1)
            return round(seconds, 9), self._under_way[node], self._turns.get(node, -1)

        return min(nodes, key=due)

    def forget(self, model: str) -> None:
        """It is served no more."""
        self._pace.pop(model, None)

    def keep(self, nodes: Sequence[str]) -> None:
        """These are all there are; of others nothing is kept."""
        there = frozenset(nodes)
        self._turns = {node: turn for node, turn in self._turns.items() if node in there}
        for model, paces in self._pace.items():
            self._pace[model] = {node: pace for node, pace in paces.items() if node in there}

    def _paces(self, model: str, nodes: Sequence[str]) -> dict[str, float]:
        """Seconds that an element takes on each of `nodes`; those that are alike take the same."""
        known = self._pace.get(model, {})
        quickest = min((pace for pace, _ in known.values()), default=UNKNOWN)
        now = self._clock()
        found = {}
        for node in nodes:
            pace, at = known.get(node, (quickest, now))
            found[node] = pace if pace >= ALIKE * quickest and now - at < FRESH else quickest
        return found
