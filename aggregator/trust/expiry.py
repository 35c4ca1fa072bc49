"""When certificates end, as a metric: `authority`, `server`, and each peer as `node/NAME`."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509

from aggregator.observe.metrics import Metrics
from aggregator.trust.registry import Registry
from edge_attention.trust.certificates import ends

SHOWN_SECONDS = 86400.0
"""How long a certificate that has ended is still shown: long enough for an alert, not for ever."""
LIMIT = 1000


def show_expiry(
    metrics: Metrics, registry: Registry, own: Mapping[str, x509.Certificate], now: float
) -> None:
    """Set the gauge of every name, and remove those that are gone."""
    wanted = {name: ends(certificate) for name, certificate in own.items()}
    rows = [c for c in registry.certificates() if c.revoked is None and now < c.ends + SHOWN_SECONDS]
    # The soonest matter most.
    for row in sorted(rows, key=lambda row: row.ends)[:LIMIT]:
        wanted[row.subject] = row.ends
    gauge = metrics.certificate_expiry
    for (name,) in set(gauge._metrics) - {(name,) for name in wanted}:
        gauge.remove(name)
    for name, end in wanted.items():
        gauge.labels(name).set(end)
