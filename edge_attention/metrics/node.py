"""The metrics of a node, called `edge_attention_node_...`, and what of them travels up in its heartbeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from edge_attention.core.messages.program import Contribution
from edge_attention.disk_room import room
from edge_attention.metrics.batched import SECONDS, Batched
from edge_attention.metrics.families import Family, FamilyRegistry, Gauge, counted, measured
from edge_attention.metrics.process import Process
from edge_attention.metrics.tally import Tallies
from edge_attention.version import VERSION

__all__ = ["REPORT_LIMIT", "NodeMetrics"]

PREFIX = "edge_attention_node_"
REPORT_LIMIT = 64 * 1024
"""Bytes of metrics that travel with a heartbeat."""
REPORT_SECONDS = 10.0
WAITING = 64
"""Tasks noted down at most before they are counted."""
SCOPES = ("task", "job", "context")
HIDDEN = (
    b"process_",  # memory, processor time; and open files: a large tensor has one
    b"edge_attention_node_cell_seconds",
    b"edge_attention_node_cell_graph_seconds",
    b"edge_attention_node_cells_died",
)
"""What would tell how much a task on private data takes, or how a graph ended: of a node with datasets it is
shown on this machine only."""
DISK_STEPS = 20
"""Of a node with datasets what is left of the disk is told in so many steps, for the same reason."""


class StoreFigures(Protocol):
    limit: int

    def used_in(self, scope: str) -> int: ...


class SessionFigures(Protocol):
    @property
    def registered(self) -> bool: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def tasks(self) -> int: ...


class CellFigures(Protocol):
    """See `edge_node.cell.counts.Counts`."""

    @property
    def started(self) -> int: ...
    @property
    def died(self) -> Mapping[str, int]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def graph_seconds(self) -> float: ...
    @property
    def running(self) -> int: ...
    @property
    def refused(self) -> int: ...


class CountedCells(Protocol):
    def counts(self) -> CellFigures: ...


class NodeMetrics:
    """Of the node with this store and session; `quiet`: it has private data.

    `cells`: None where graphs of others run in the daemon.
    `folder`: where the store is on disk; None: it is not.
    """

    def __init__(
        self,
        store: StoreFigures,
        session: SessionFigures,
        provider: str,
        threads: int,
        cells: CountedCells | None = None,
        quiet: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._quiet = quiet
        self.registry = FamilyRegistry()
        self._session = session
        self.registry.register(Process())
        self._gauge("build_info", "1, with the version of the software.").set(1, version=VERSION)
        self._waiting: list[tuple[str, float, float]] = []
        # First: what waits is counted before the others are read.
        self.registry.register(_Now(self, store, session, cells))
        if folder is not None:
            self.registry.register(_StoreDisk(folder, DISK_STEPS if quiet else 0))
        self.tasks = self._counter(
            "tasks_total", "Tasks ended, by outcome: ok or the error's name.", "outcome"
        )
        self.tasks.labels("ok")
        self.run_seconds = self._histogram("run_seconds", "Seconds of a task in graphs.")
        self.task_seconds = self._histogram("task_seconds", "Seconds from a task's arrival to its end.")
        self.bytes = self._counter(
            "bytes_total",
            "Bytes exchanged with the aggregator, by kind: stream or bulk.",
            "direction",
            "kind",
        )
        self.sent, self.received = (self.bytes.labels(way, "stream") for way in ("sent", "received"))
        for way in ("sent", "received"):
            self.bytes.labels(way, "bulk")
        self.refused = self._counter("refused_releases_total", "Private tensors asked for and kept.")
        self._gauge("memory_limit_bytes", "Bytes the node may store.").set(store.limit)
        self._gauge("provider_info", "1, with the execution provider in use.").set(1, provider=provider)
        self._gauge("threads", "Threads a graph runs on.").set(threads)
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds",
            "When the node's certificate ends, in Unix time; 0: it has none.",
        )
        self.certificate_expiry.set(0)
        self._next = float("-inf")
        self._life = 0

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(PREFIX + name, text, self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Tallies:
        return Tallies(PREFIX + name, text, labels, self.registry)

    def _histogram(self, name: str, text: str) -> Batched:
        return Batched(PREFIX + name, text, None, SECONDS, self.registry)

    def ended(self, contribution: Contribution) -> None:
        """Note a task down by its last contribution; it is counted later, with others."""
        outcome = "ok" if contribution.error is None else contribution.error.name
        self._waiting.append((outcome, contribution.run_seconds, contribution.task_seconds))
        if len(self._waiting) >= WAITING:
            self.count()

    def count(self) -> None:
        """Count what was noted down."""
        waiting, self._waiting = self._waiting, []
        for outcome, run_seconds, task_seconds in waiting:
            self.tasks.labels(outcome).inc()
            if outcome == "PrivateTensor":
                self.refused.inc()
            self.run_seconds.observe(run_seconds)
            self.task_seconds.observe(task_seconds)

    def report(self, now: float) -> bytes:
        """All of them as Prometheus text about every 10 s, and after a reconnection; b"" in between."""
        if now < self._next and self._life == self._session.reconnects:
            return b""
        self._next = now + REPORT_SECONDS
        self._life = self._session.reconnects
        text = self.registry.text()
        if self._quiet:
            lines = text.splitlines(keepends=True)
            text = b"".join(line for line in lines if not any(name in line for name in HIDDEN))
        return text if len(text) <= REPORT_LIMIT else b""


class _StoreDisk:
    """What is left of the disk of `folder`; in so many `steps` of all of it, or 0: to the byte."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps

    def collect(self) -> Iterator[Family]:
        free, size = room(self._folder)
        if self._steps and size >= self._steps:
            step = size // self._steps
            free = free // step * step
        yield measured(
            PREFIX + "store_disk_free_bytes",
            "Bytes left on the disk of --store, fewer where it has fewer files (inodes) left; 0: it is "
            "read-only or gone. Of a node with datasets in twentieths of the disk.",
            free,
        )
        yield measured(PREFIX + "store_disk_bytes", "Bytes in all of the disk of --store.", size)


class _Now:
    """What is looked up when somebody asks."""

    def __init__(
        self, metrics: NodeMetrics, store: StoreFigures, session: SessionFigures, cells: CountedCells | None
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._session = session
        self._cells = cells

    def collect(self) -> Iterator[Family]:
        self._metrics.count()
        stored = measured(PREFIX + "store_bytes", "Bytes stored, by scope.", labels=["scope"])
        for scope in SCOPES:
            stored.add("", self._store.used_in(scope), {"scope": scope})
        yield stored
        connected = float(self._session.registered)
        yield measured(PREFIX + "connected", "1 while registered with the aggregator.", connected)
        yield counted(
            PREFIX + "reconnects_total", "Times the node registered again.", self._session.reconnects
        )
        yield measured(
            PREFIX + "tasks_running", "Tasks under way, those that wait included.", self._session.tasks
        )
        enabled = float(self._cells is not None)
        yield measured(
            PREFIX + "cells_enabled",
            "1: graphs of others run in processes of their own; 0: in the daemon (--no-cell).",
            enabled,
        )
        if self._cells is None:
            return
        counts = self._cells.counts()
        yield measured(PREFIX + "cells_running", "Processes for graphs now.", counts.running)
        yield counted(PREFIX + "cells_started_total", "Processes for graphs started.", counts.started)
        died = counted(
            PREFIX + "cells_died_total",
            "Processes that graphs, a limit or somebody ended, by signal, or exit.",
            labels=["how"],
        )
        for how, times in counts.died.items():
            died.add("_total", times, {"how": how})
        yield died
        yield counted(
            PREFIX + "cell_seconds_total",
            "Seconds that tasks spent in these processes, or waiting for them.",
            counts.seconds,
        )
        yield counted(
            PREFIX + "cell_graph_seconds_total",
            "Of these, seconds that ONNX Runtime ran there, as the processes say.",
            counts.graph_seconds,
        )
        yield measured(
            PREFIX + "refused_graphs",
            "Graphs refused for having ended their process twice.",
            counts.refused,
        )
