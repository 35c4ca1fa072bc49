"""Budgets: how much of a bound each caller holds, as a pure account of leases.

A caller may have as much as is left free after it took (a dynamic threshold, Choudhury and Hahne 1998): alone
it has a half of the whole, of n greedy callers each has an n+1st part, and as much is always left for the
next who comes. So one caller can never use up what the others need.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from types import TracebackType

from aggregator.bounds.bounds import ALL, CallerBound
from edge_attention.core.errors import EdgeAttentionError, Overloaded, ResourceExhausted
from edge_attention.core.transitions import Transition, recent, told

__all__ = ["Budget", "BudgetState", "Budgets", "Lease"]

log = logging.getLogger(__name__)

TOLD_SECONDS = 60.0
"""How a budget came to refuse somebody is in the log no more often."""


class BudgetState(Enum):
    """What came of the last who asked for some of it."""

    GRANTING = "granting"
    REFUSING = "refusing"


class Lease:
    """What was taken; `give_back` it, once or more often, or use it as a context manager."""

    def __init__(self, budget: Budget, caller: str | None) -> None:
        self._budget = budget
        self._caller = caller
        self.amount = 0

    def grow(self, amount: int) -> None:
        """Take `amount` more for the same caller. Raises as `Budget.take`; the lease has then what it had."""
        self._budget._take(self._caller, amount)
        self.amount += amount

    def shrink(self, amount: int) -> None:
        """Give `amount` back; all there is, if that is less."""
        amount = min(amount, self.amount)
        self.amount -= amount
        self._budget._give(self._caller, amount)

    def give_back(self) -> None:
        """Give all of it back; nothing if that was done already."""
        amount, self.amount = self.amount, 0
        self._budget._give(self._caller, amount)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert self.amount >= 0, "a lease of less than nothing"
        assert self._caller is None or self.amount <= self._budget.of(self._caller), (
            "more than its caller has"
        )
        self._budget.check()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class Budget:
    """The account of one bound.

    Args:
        refused: called with the bound's name at each refusal.
        clock: seconds of any steady clock, for `transitions`.

    Attributes:
        used: what all have of it together.
        transitions: when it began to refuse and to grant again, and whom, for the log.
    """

    def __init__(
        self,
        bound: CallerBound,
        refused: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bound = bound
        self.used = 0
        self.state = BudgetState.GRANTING
        self.transitions: deque[Transition] = recent()
        self._clock = clock
        self._kept = 0
        self._of: Counter[str] = Counter()
        self._refused = refused

    def of(self, caller: str) -> int:
        """What `caller` has."""
        return self._of.get(caller, 0)

    @property
    def callers(self) -> int:
        """How many callers have some of it."""
        return len(self._of)

    def take(self, caller: str | None, amount: int = 1) -> Lease:
        """Take `amount` for `caller`; None: for nobody in particular, whom only the total holds.

        Whoever takes gives the lease back, whatever happens.

        Raises:
            Overloaded: not now; calls that are under way have it.
            ResourceExhausted: not until something is removed.
        """
        lease = Lease(self, caller)
        lease.grow(amount)
        return lease

    def keep(self, caller: str | None, amount: int = 1) -> Lease:
        """Count an `amount` that is there already, as after a restart: that is never refused."""
        lease = Lease(self, caller)
        lease.amount = amount
        self._add(caller, amount)
        self._kept = max(self._kept, self.used - self.bound.total)
        return lease

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert not self.transitions or self.transitions[-1][-1] is self.state, "a change that nobody noted"
        assert 0 <= self.used <= self.bound.total + self._kept
        assert sum(self._of.values()) <= self.used
        assert all(amount > 0 for amount in self._of.values())

    def _take(self, caller: str | None, amount: int) -> None:
        free = self.bound.total - self.used - amount
        own = self.of(caller) + amount if caller is not None else 0
        if amount and (free < 0 or own > max(free, 1)):
            self._turn(BudgetState.REFUSING, caller, amount)
            self._refused(self.bound.name)
            raise self._error(caller, amount)
        if self.state is BudgetState.REFUSING and amount:
            self._turn(BudgetState.GRANTING, caller, amount)
        self._add(caller, amount)

    def _turn(self, state: BudgetState, caller: str | None, amount: int) -> None:
        if state is not self.state:
            asks = f"asks for {amount:,}, {self.used:,} of {self.bound.total:,} are used"
            self.transitions.append((self._clock(), (caller or "somebody", asks), self.state, state))
            self.state = state

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
    """The accounts of all bounds of `aggregator.bounds.bounds`.

    Args:
        refused: called with a bound's name at each refusal.
        clock: seconds of any steady clock.
    """

    def __init__(
        self,
        refused: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refused = refused
        self._clock = clock
        self._told_at = dict.fromkeys((bound.name for bound in ALL), float("-inf"))
        self._budgets = {bound.name: Budget(bound, self._tell, clock) for bound in ALL}

    def __getitem__(self, bound: CallerBound) -> Budget:
        return self._budgets[bound.name]

    def take(self, bound: CallerBound, caller: str | None, amount: int = 1) -> Lease:
        """Take `amount` of `bound`, and raise, as `Budget.take` does."""
        return self._budgets[bound.name].take(caller, amount)

    def _tell(self, name: str) -> None:
        self._refused(name)
        now = self._clock()
        if now - self._told_at[name] >= TOLD_SECONDS:
            self._told_at[name] = now
            log.info("bound %s refuses somebody: %s", name, told(self._budgets[name].transitions))
