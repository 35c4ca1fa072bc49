"""What is counted of training runs. The series of a run are removed some time after it has ended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container

from aggregator.observe.counts import RecipeCounts
from aggregator.observe.metrics import Metrics
from edge_attention.core.messages.training import COUNTED, Evaluation, TrainingRound

RUNS = 200
"""Runs that have series at most, those that have ended included."""
KEPT_SECONDS = 300.0
"""How long a run's series stay after its end, so that a scrape or two see how it ended."""
KINDS = 1_000
"""Metrics, or kinds of consensus loss, of one run that have series."""


class RunMetrics(RecipeCounts):
    """Rounds and versions, losses, waits. Times are seconds of any steady clock, but for `commit`'s."""

    def __init__(self, metrics: Metrics) -> None:
        make = metrics.make
        metrics.add(self)
        self.nonfinite_updates = metrics.tasks.nonfinite.labels("update")
        self.rounds = make.counter("rounds_total", "Training rounds committed.")
        self.round_seconds = make.histogram("round_seconds", "Seconds of a training round by stage.", "stage")
        self.runs = make.gauge("runs", "Training runs going on.")
        self.round = make.gauge("run_round", "Round last committed of a run.", "run")
        self.version = make.gauge("run_version", "Version last committed of a run.", "run")
        self.waiting = make.gauge("run_waiting", "1 while a run waits for a node.", "run")
        self.missing = make.gauge(
            "run_missing_nodes", "Nodes that a run lacks for its quorum; 0 if it has it.", "run"
        )
        self.other_data = make.gauge(
            "run_other_data_nodes",
            "Nodes that a run leaves out, as their data is other than it began with.",
            "run",
        )
        self.loss = make.gauge("run_loss", "Training loss of a run's last round.", "run")
        self.metric = make.gauge(
            "run_metric", "Share a metric has in the run's last evaluation, as that of what is correct.",
            "run", "metric",
        )  # fmt: skip
        self.consensus = make.gauge(
            "run_consensus_loss", "Consensus losses of a run's last round.", "run", "kind"
        )
        self.last_commit = make.gauge(
            "run_last_commit_timestamp_seconds",
            "When a run last committed a version, or began, in Unix time.", "run",
        )  # fmt: skip
        self.updates = make.counter(
            "updates_total",
            "Updates of federated rounds by outcome: folded, left_out, refused, stale.",
            "outcome",
        )
        self.staleness = make.histogram(
            "update_staleness_versions",
            "Versions between the parameters an update was computed on and the current.",
            buckets=(0, 1, 2, 4, 8, 16, 32),
        )
        for outcome in ("folded", "left_out", "refused", "stale"):
            self.updates.labels(outcome)
        self._ended: dict[str, float | None] = {}
        """Run that has series -> when it ended."""

    def begun(self, run: str, time: float) -> None:
        """The run goes on from now on."""
        self.runs.inc()
        if run not in self._ended and len(self._ended) >= RUNS:
            over = [(end, id) for id, end in self._ended.items() if end is not None]
            if not over:
                return
            self._remove(min(over)[1])
        self._ended[run] = None
        self.without(run, 0)
        self.waits(run, False, 0)
        self.last_commit.labels(run).set(time)

    def at(self, run: str, round: int, version: int) -> None:
        """The run has committed so far."""
        if run in self._ended:
            self.round.labels(run).set(round)
            self.version.labels(run).set(version)

    def committed(self, run: str, record: TrainingRound, time: float) -> None:
        self.rounds.inc()
        self.at(run, record.number, record.version)
        if run not in self._ended:
            return
        self.last_commit.labels(run).set(time)
        if math.isfinite(record.loss):
            self.loss.labels(run).set(record.loss)
        for kind, value in list(record.consensus.items())[:KINDS]:
            self.consensus.labels(run, kind[:80]).set(value)

    def evaluated(self, run: str, evaluation: Evaluation) -> None:
        if run not in self._ended or not evaluation.samples:
            return
        for name in [name for name in evaluation.metrics if name not in COUNTED][:KINDS]:
            self.metric.labels(run, name[:80]).set(evaluation.share(name))

    def waits(self, run: str, waiting: bool, missing: int) -> None:
        """`missing`: nodes that lack for a quorum."""
        if run in self._ended:
            self.waiting.labels(run).set(waiting)
            self.missing.labels(run).set(missing if waiting else 0)

    def without(self, run: str, nodes: int) -> None:
        """It leaves out so many nodes whose data is other than it began with."""
        if run in self._ended:
            self.other_data.labels(run).set(nodes)

    def ended(self, run: str, now: float) -> None:
        """Its series stay for a while."""
        self.runs.dec()
        self.waits(run, False, 0)
        self.without(run, 0)
        if run in self._ended:
            self._ended[run] = now

    def tick(self, nodes: Container[str], now: float) -> None:
        """Remove the series of runs that ended some time ago."""
        for run, end in list(self._ended.items()):
            if end is not None and now - end > KEPT_SECONDS:
                self._remove(run)

    def _remove(self, run: str) -> None:
        del self._ended[run]
        gauges = (
            self.round,
            self.version,
            self.waiting,
            self.missing,
            self.other_data,
            self.loss,
            self.last_commit,
        )
        for gauge in gauges:
            with contextlib.suppress(KeyError):  # it may never have been set
                gauge.remove(run)
        for gauge in (self.metric, self.consensus):
            gauge.remove_by_labels({"run": run})
