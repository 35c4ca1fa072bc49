"""Counters of one thread: without the lock that prometheus_client's take, which is most of what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

__all__ = ["Tallies", "Tally"]


class Tally:
    """One series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Tallies(Collector):
    """A counter, with labels or none: `labels(*values).inc(amount)`, or `inc(amount)`.

    It is counted on in one thread, and may be read in any. Series stay for good.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labelnames = name, text, labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        if not labels:
            self.inc = self.labels().inc
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The series of these label values."""
        tally = self._tallies.get(values)
        if tally is None:
            assert len(values) == len(self._labelnames), f"{self._name} has labels {self._labelnames}"
            tally = self._tallies[values] = Tally()
        return tally

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(self._name, self._text, labels=self._labelnames)]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, tally.value)
        yield family
