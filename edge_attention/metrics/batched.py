"""A histogram whose observations are kept as they come and put into buckets many at a time.

prometheus_client's takes a lock and a walk over the buckets for each, which on the way of a query of a
millisecond or two can be felt. Here an observation is an append.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Batched"]

WAITING = 1024
"""Observations kept at most before they are put into buckets."""


class Batch:
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


class Batched(Collector):
    """A histogram, with one label or none: `labels(value).observe(number)`, or `observe(number)`.

    Label values are ours and few: they stay for good.
    """

    def __init__(
        self, name: str, text: str, label: str | None, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._label = label
        self._batches: dict[str, Batch] = {}
        if label is None:
            self.observe = self.labels("").observe
        registry.register(self)

    def labels(self, value: str) -> Batch:
        """The series of this label value."""
        batch = self._batches.get(value)
        if batch is None:
            batch = self._batches[value] = Batch(self._bounds)
        return batch

    def describe(self) -> list[Metric]:
        return [self._family()]

    def _family(self) -> HistogramMetricFamily:
        labels = None if self._label is None else [self._label]
        return HistogramMetricFamily(self._name, self._text, labels=labels)

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        names: list[str] = [floatToGoString(b) for b in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        for value, batch in list(self._batches.items()):
            counts, total = batch.count()
            buckets = list(zip(names, counts, strict=True))
            family.add_metric([] if self._label is None else [value], buckets, total)
        yield family
