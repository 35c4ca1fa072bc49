"""When a certificate is renewed: a state machine that takes a clock reading and says what to do."""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from edge_attention.trust.certificates import ends, issued

PART = 2 / 3
"""The part of its life after which a certificate is renewed."""

BACKOFF = (1.0, 300.0)
"""Seconds between tries, first and at most; never more than a tenth of what is left of its life."""


def due(certificate: x509.Certificate) -> float:
    """When to renew it, in seconds since 1970."""
    return issued(certificate) + PART * (ends(certificate) - issued(certificate))


class Renewal:
    """One certificate's renewals. `wake` says when to ask again; `step` whether to try now."""

    def __init__(
        self, issued: float, ends: float, random: Callable[[], float], *, part: float = PART
    ) -> None:
        """`random` gives numbers in [0, 1), so that a fleet enrolled together does not renew together."""
        self._random, self._part = random, part
        self.renewed(issued, ends)

    def renewed(self, issued: float, ends: float) -> None:
        """There is a new certificate."""
        life = max(0.0, ends - issued)
        self.ends = ends
        # Up to a twentieth of its life earlier.
        self.wake = issued + life * (self._part - 0.05 * self._random())
        self._life, self._tries = life, 0

    def failed(self, now: float) -> None:
        """A try failed: the next one comes later."""
        base, cap = BACKOFF
        left = max(self.ends - now, 0.0)
        limit = min(cap, max(left / 10, base / 2)) if left else cap
        self.wake = now + min(limit, base * 2.0 ** min(self._tries, 16)) * (0.5 + self._random() / 2)
        self._tries += 1

    def step(self, now: float) -> bool:
        """Whether to renew now."""
        return now >= self.wake

    def ended(self, now: float) -> bool:
        """Whether the certificate is no longer any good."""
        return now >= self.ends
