"""A histogram whose observations are kept as they come and put into buckets many at a time.

prometheus_client's takes a lock and a walk over the buckets for each, which on the way of a query of a
millisecond or two can be felt. Here an observation is an append.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from edge_attention.metrics.families import Family, Registers, number

__all__ = ["SECONDS", "Batched"]

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Bounds of the buckets of a time, if nothing else is said."""
WAITING = 1024
"""Observations kept at most before they are put into buckets."""


class MetricsBatch:
    """One series: `observe` a number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._values: list[float] = []
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        values = self._values
        values.append(value)
        if len(values) >= WAITING:
            self.count()

    def count(self) -> tuple[list[int], float]:
        """How many are at most each bound, then how many in all, and their sum."""
        with self._lock:
            values, self._values = self._values, []
            if values:
                array = np.array(values)
                places = np.searchsorted(self._bounds, array, side="left")
                self._counts += np.bincount(places, minlength=len(self._counts))
                self._sum += float(array.sum())
            return np.cumsum(self._counts).tolist(), self._sum


class Batched:
    """A histogram, with one label or none: `labels(value).observe(number)`, or `observe(number)`.

    Label values are ours and few: they stay for good.
    """

    def __init__(
        self, name: str, text: str, label: str | None, bounds: Sequence[float], registry: Registers
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._label = label
        self._batches: dict[str, MetricsBatch] = {}
        if label is None:
            self.observe = self.labels("").observe
        registry.register(self)

    def labels(self, value: str) -> MetricsBatch:
        """The series of this label value."""
        batch = self._batches.get(value)
        if batch is None:
            batch = self._batches[value] = MetricsBatch(self._bounds)
        return batch

    def describe(self) -> list[Family]:
        return [Family(self._name, self._text, "histogram")]

    def collect(self) -> Iterator[Family]:
        family = Family(self._name, self._text, "histogram")
        names = [number(bound) for bound in (*self._bounds, float("inf"))]
        for value, batch in list(self._batches.items()):
            counts, total = batch.count()
            labels = {} if self._label is None else {self._label: value}
            for name, count in zip(names, counts, strict=True):
                family.add("_bucket", count, labels | {"le": name})
            family.add("_count", counts[-1], labels)
            family.add("_sum", total, labels)
        yield family
