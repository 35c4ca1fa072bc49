"""Counters of one thread: without the lock that prometheus_client's take, which is most of what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from edge_attention.metrics.families import Family, Registers, counted

__all__ = ["Tallies", "Tally"]


class Tally:
    """One series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Tallies:
    """A counter, with labels or none: `labels(*values).inc(amount)`, or `inc(amount)`.

    It is counted on in one thread, and may be read in any. Series stay for good.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: Registers) -> None:
        self._name = name
        self._text = text
        self._labelnames = labels
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

    def describe(self) -> list[Family]:
        return [counted(self._name, self._text)]

    def collect(self) -> Iterator[Family]:
        family = counted(self._name, self._text)
        for values, tally in list(self._tallies.items()):
            family.add("_total", tally.value, dict(zip(self._labelnames, values, strict=True)))
        yield family
