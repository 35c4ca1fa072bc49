"""Which shapes of inputs a deployment is prepared for: the few used last, as a pure account.

Of too many the one goes that only callers of many have: who sends requests of ever other shapes has its own
go, and not that of who sends always the same.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

__all__ = ["PreparedShapes"]


CALLERS = 16
"""Of one shape that are remembered: the first that used it."""


class PreparedShapes:
    """Shapes by key, those least recently used in front. `most`: are kept; those in use besides."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, set[str]] = OrderedDict()
        """By key, who has used it."""
        self._used: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    @property
    def last_first(self) -> tuple[str, ...]:
        """All of them, the one used last first."""
        return tuple(reversed(self._kept))

    def add(self, key: str, caller: str = "") -> None:
        """It is prepared for this one now, as `caller` asks for it; "": nobody in particular."""
        self._kept.setdefault(key, set())
        self._use(key, caller)

    def use(self, key: str, caller: str = "") -> bool:
        """A request of that shape begins; False: it is not prepared for it. `done` when it has ended."""
        if key not in self._kept:
            return False
        self._use(key, caller)
        self._used[key] += 1
        return True

    def _use(self, key: str, caller: str) -> None:
        self._kept.move_to_end(key)
        if len(self._kept[key]) < CALLERS:
            self._kept[key].add(caller)

    def done(self, key: str) -> None:
        """A request of that shape has ended."""
        self._used[key] -= 1
        if not self._used[key]:
            del self._used[key]

    def surplus(self) -> tuple[str, ...]:
        """Those that go now, as there are too many: forgotten here, for the caller to release."""
        gone: list[str] = []
        while len(self._kept) > self._most:
            free = [key for key in self._kept if not self._used[key]]
            if not free:
                break
            have = Counter(caller for callers in self._kept.values() for caller in callers)
            gone.append(max(free, key=lambda key: min(have[caller] for caller in self._kept[key])))
            del self._kept[gone[-1]]  # of several the one used longest ago
        return tuple(gone)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert set(self._used) <= set(self._kept), "in use, and not prepared"
        assert all(count > 0 for count in self._used.values())
