"""Budgets: how much of a bound each caller holds, as a pure account of leases.

A caller may have as much as is left free after it took (a dynamic threshold, Choudhury and Hahne 1998): alone
it has a half of the whole, of n greedy callers each has an n+1st part, and as much is always left for the
next who comes. So one caller can never use up what the others need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType

from aggregator.bounds.bounds import ALL, CallerBound
from edge_attention.core.errors import EdgeAttentionError, Overloaded, ResourceExhausted

__all__ = ["Budget", "Budgets", "Lease"]


class Lease:
    """What was taken; `give_back` it, once or more often, or use it as a context manager."""

    def __init__(self, budget: Budget, caller: str | None) -> None:
        self._budget = budget
        self._caller = caller
        self.amount = 0

    def grow(self, amount: int) -> None:
        """Take `amount` more. Raises as `Budget.take`, and has then what it had."""
        self._budget._take(self._caller, amount)
        self.amount += amount

    def shrink(self, amount: int) -> None:
        """Give some of it back."""
        amount = min(amount, self.amount)
        self.amount -= amount
        self._budget._give(self._caller, amount)

    def give_back(self) -> None:
        amount, self.amount = self.amount, 0
        self._budget._give(self._caller, amount)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class Budget:
    """The account of one bound. `refused` is told its name at each refusal."""

    def __init__(self, bound: CallerBound, refused: Callable[[str], None] = lambda name: None) -> None:
        self.bound = bound
        self.used = 0
        self._kept = 0
        self._of: Counter[str] = Counter()
        self._refused = refused

    def of(self, caller: str) -> int:
        """What `caller` has."""
        return self._of.get(caller, 0)

    @property
    def callers(self) -> int:
        """Those who have any."""
        return len(self._of)

    def take(self, caller: str | None, amount: int = 1) -> Lease:
        """`amount` for `caller`; None: for nobody in particular, whom only the total holds.

        Raises:
            Overloaded: not now; calls that are under way have it.
            ResourceExhausted: not until something is removed.
        """
        lease = Lease(self, caller)
        lease.grow(amount)
        return lease

    def keep(self, caller: str | None, amount: int = 1) -> Lease:
        """`amount` that is there already, as after a restart: counted, and never refused."""
        lease = Lease(self, caller)
        lease.amount = amount
        self._add(caller, amount)
        self._kept = max(self._kept, self.used - self.bound.total)
        return lease

    def check(self) -> None:
        """Raises AssertionError where the account is wrong; for tests."""
        assert 0 <= self.used <= self.bound.total + self._kept
        assert sum(self._of.values()) <= self.used
        assert all(amount > 0 for amount in self._of.values())

    def _take(self, caller: str | None, amount: int) -> None:
        free = self.bound.total - self.used - amount
        own = self.of(caller) + amount if caller is not None else 0
        if amount and (free < 0 or own > max(free, 1)):
            self._refused(self.bound.name)
            raise self._error(caller, amount)
        self._add(caller, amount)

    def _add(self, caller: str | None, amount: int) -> None:
        self.used += amount
        if caller is not None and amount:
            self._of[caller] += amount

    def _give(self, caller: str | None, amount: int) -> None:
        self.used -= amount
        if caller is not None and amount:
            self._of[caller] -= amount
            if not self._of[caller]:
                del self._of[caller]

    def _error(self, caller: str | None, amount: int) -> EdgeAttentionError:
        b = self.bound
        mine = (
            f" {self.of(caller):,} of them this caller's, who may have no more than is left free;"
            if caller
            else ""
        )
        more = f"this call needs {amount:,} more: " if amount > 1 else ""
        message = f"bound {b.name}: there are {self.used:,} of {b.total:,} {b.unit},{mine} {more}{b.remedy}"
        if b.retry is None:
            return ResourceExhausted(message)
        return Overloaded(f"{message}, and try again in {b.retry:g} s", retry_after=b.retry)


class Budgets:
    """The accounts of all bounds of `aggregator.bounds.bounds`."""

    def __init__(self, refused: Callable[[str], None] = lambda name: None) -> None:
        self._budgets = {bound.name: Budget(bound, refused) for bound in ALL}

    def __getitem__(self, bound: CallerBound) -> Budget:
        return self._budgets[bound.name]

    def take(self, bound: CallerBound, caller: str | None, amount: int = 1) -> Lease:
        """Take `amount` of `bound`. Raises as `Budget.take`."""
        return self._budgets[bound.name].take(caller, amount)
