"""Which shapes of inputs a deployment is prepared for: the few used last, as a pure account."""

from __future__ import annotations

from collections import Counter, OrderedDict

__all__ = ["PreparedShapes"]


class PreparedShapes:
    """Shapes by key, those least recently used in front. `most`: are kept; those in use besides."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._used: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    @property
    def last_first(self) -> tuple[str, ...]:
        """All of them, the one used last first."""
        return tuple(reversed(self._kept))

    def add(self, key: str) -> None:
        """It is prepared for this one now."""
        self._kept[key] = None
        self._kept.move_to_end(key)

    def use(self, key: str) -> bool:
        """A request of that shape begins; False: it is not prepared for it. `done` when it has ended."""
        if key not in self._kept:
            return False
        self._kept.move_to_end(key)
        self._used[key] += 1
        return True

    def done(self, key: str) -> None:
        """A request of that shape has ended."""
        self._used[key] -= 1
        if not self._used[key]:
            del self._used[key]

    def surplus(self) -> tuple[str, ...]:
        """Those that go now, as there are too many: forgotten here, for the caller to release."""
        over = len(self._kept) - self._most
        gone = [key for key in self._kept if not self._used[key]][: max(over, 0)]
        for key in gone:
            del self._kept[key]
        return tuple(gone)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert set(self._used) <= set(self._kept), "in use, and not prepared"
        assert all(count > 0 for count in self._used.values())
