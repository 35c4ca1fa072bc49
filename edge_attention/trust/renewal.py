"""When a certificate is renewed: a state machine that takes a clock reading and says what to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from cryptography import x509

from edge_attention.core.transitions import Transition, recent
from edge_attention.trust.certificates import ends, issued

PART = 2 / 3
"""The part of its life after which a certificate is renewed."""

BACKOFF = (1.0, 300.0)
"""Seconds between tries, first and at most; never more than a tenth of what is left of its life."""


def due(certificate: x509.Certificate) -> float:
    """When to renew it, in seconds since 1970."""
    return issued(certificate) + PART * (ends(certificate) - issued(certificate))


class RenewalState(Enum):
    WAITING = "waiting"
    """Until the certificate is due."""
    RETRYING = "retrying"
    """A try has failed."""


class Renewal:
    """One certificate's renewals. `wait` says when to ask again; `step` whether to try now.

    `now` is this machine's clock, in seconds since 1970, which may be wrong and be set; `steady` only
    goes on. A certificate is due when the clock says so, or when so much time has gone by, whatever the clock
    says since: one that was set back does not put it off. Tries after a failure are by steady time alone.

    Attributes:
        wake, ends: when it is due and when it ends, in seconds since 1970.
        transitions: the last changes of its state, by steady time, for the log.
    """

    def __init__(
        self, issued: float, ends: float, random: Callable[[], float], now: float, steady: float, *,
        part: float = PART,
    ) -> None:  # fmt: skip
        """`random` gives numbers in [0, 1), so that a fleet enrolled together does not renew together."""
        self.state = RenewalState.WAITING
        self.transitions: deque[Transition] = recent()
        self._random = random
        self._part = part
        self.renewed(issued, ends, now, steady)

    def renewed(self, issued: float, ends: float, now: float, steady: float) -> None:
        """There is a new certificate."""
        life = max(0.0, ends - issued)
        self.ends = ends
        # Up to a twentieth of its life earlier.
        self.wake = issued + life * (self._part - 0.05 * self._random())
        # A clock that is behind its beginning is wrong, and that much of the wait is not to be waited.
        self._due = steady + max(self.wake - max(now, issued), 0.0)
        self._retry_at = 0.0
        self._tries = 0
        self._turn(RenewalState.WAITING, steady, "renewed")

    def failed(self, now: float, steady: float) -> None:
        """A try failed: the next one comes later."""
        base, cap = BACKOFF
        left = max(self.ends - now, 0.0)
        limit = min(cap, max(left / 10, base / 2)) if left else cap
        self._retry_at = steady + min(limit, base * 2.0 ** min(self._tries, 16)) * (0.5 + self._random() / 2)
        self._tries += 1
        self._turn(RenewalState.RETRYING, steady, f"try {self._tries} failed")

    def wait(self, now: float, steady: float) -> float:
        """Seconds until a try, as far as is known now; 0: it is time."""
        if self.state is RenewalState.RETRYING:
            return max(self._retry_at - steady, 0.0)
        return max(min(self.wake - now, self._due - steady), 0.0)

    def step(self, now: float, steady: float) -> bool:
        """Whether to renew now."""
        return self.wait(now, steady) <= 0

    def ended(self, now: float) -> bool:
        """Whether the certificate is no longer any good."""
        return now >= self.ends

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert (self.state is RenewalState.RETRYING) == (self._tries > 0), "it retries what has not failed"

    def _turn(self, state: RenewalState, steady: float, why: str) -> None:
        self.transitions.append((steady, (why,), self.state, state))
        self.state = state
