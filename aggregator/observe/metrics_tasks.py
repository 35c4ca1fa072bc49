"""What is counted of the tasks that nodes run and of what they return, whatever recipe they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.registry import Collector

from aggregator.observe.maker import Maker

OUTCOMES = ("folded", "duplicate", "late", "stale", "refused", "damaged")


class TaskMetrics(Collector):
    """Hears of each contribution, and of what tasks took in graphs (engine/dispatch.DispatchObserver).

    On the way of an answer that is only noted down; it is counted when somebody asks, and at each `count`.
    """

    def __init__(self, make: Maker) -> None:
        # Before the histogram: what waits is counted before it is read.
        make.registry.register(self)
        self.contributions = make.counter(
            "contributions_total",
            "Contributions by outcome: folded, duplicate, late, stale, refused, damaged.",
            "outcome",
        )
        self._outcomes = {outcome: self.contributions.labels(outcome) for outcome in OUTCOMES}
        self.nonfinite = make.counter(
            "nonfinite_total",
            "What nodes returned and was refused for NaN or infinity in it: a contribution, or an update of "
            "a federated round.",
            "what",
        )
        self._nonfinite = self.nonfinite.labels("contribution")
        self._seconds = make.histogram(
            "node_run_seconds", "Seconds of a task in its graphs, as nodes report it."
        )
        self._ran: list[Mapping[str, float]] = []

    def contribution(self, outcome: str) -> None:
        """What has become of a contribution: `outcome` is one of OUTCOMES."""
        self._outcomes[outcome].inc()

    def not_finite(self) -> None:
        """A contribution was refused for NaN or infinity in it."""
        self._nonfinite.inc()

    def ran(self, seconds: Mapping[str, float]) -> None:
        """Note down what an exchange's tasks took in graphs, by shard."""
        self._ran.append(seconds)

    def count(self) -> None:
        """Count what `contribution` and `ran` have noted down."""
        ran, self._ran = self._ran, []
        for by_shard in ran:
            for seconds in by_shard.values():
                self._seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        self.count()
        yield from ()
