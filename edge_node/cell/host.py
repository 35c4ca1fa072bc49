"""The daemon's side of a cell: gives graphs to it, has answers of it, and performs what is decided."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.tensors import Array
from edge_attention.core.transitions import told
from edge_node.cell.calls import Gone, GraphFile, KnownGraph, Stoppable, load, run
from edge_node.cell.confinement import OPEN
from edge_node.cell.counts import Counts
from edge_node.cell.messages import Channel, Nonsense
from edge_node.cell.process import POOL_STACK, CellProcess, CellSettings, signal_name
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.cell.state import (
    Action,
    Blame,
    CellPhase,
    CellState,
    EndCell,
    Fail,
    Grant,
    Notice,
    StartCell,
    StopJob,
    Usage,
)
from edge_node.steps import ANYTHING, Steps, at_once

log = logging.getLogger(__name__)

GRAPHS = 1024
"""Graphs a cell has loaded at a time; those least recently used go first."""
STACKS = 256 << 20
"""Bytes of the stacks of all their threads, which count against the cell's limit: of each graph there is one
thread less than graphs run on."""


class Cell:
    """One of a node's cells. `run` may be called by any number of threads."""

    def __init__(
        self,
        name: str,
        settings: CellSettings,
        graphs: RefusedGraphs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._settings = settings
        self._graphs = graphs
        self._clock = clock
        self._state = CellState(settings.lanes, graphs.refusal)
        self._most = STACKS // (POOL_STACK * max(settings.threads - 1, 1))
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._numbers = itertools.count(1)
        self._process: CellProcess | None = None
        self._grants: dict[int, tuple[CellProcess, int]] = {}
        self._failures: dict[int, EdgeAttentionError] = {}
        self._unkept = False  # a graph is blamed, and the disk does not know yet
        self._thread: threading.Thread | None = None
        self._starting = False
        self._asleep_until = float("-inf")  # what the thread below waits for on the clock
        self.counts = Counts()
        self.report = ""

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None else None

    def run(
        self, graph: GraphFile, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stoppable
    ) -> list[Array]:
        """What the graph computes; see `edge_node.runtime.Graph.run`. Blocks."""
        return at_once(self.steps(graph, feeds, outputs, stop))

    def steps(
        self, graph: GraphFile, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stoppable
    ) -> Steps[list[Array]]:
        """As `run`, in steps. Where they are given up amid a run the process is ended.

        Raises InvalidGraph (it cannot be loaded), GraphDied, InvalidProgram, OutOfMemory, Unavailable (where
        no cell starts), or what the task was stopped with.
        """
        number = next(self._numbers)
        began = self._clock()

        def stopped() -> None:
            self._tell(self._state.stop, number, self._clock())

        self._tell(self._state.ask, number, graph.sent, began)
        try:
            stop.watch(stopped)
            while True:
                granted = self._grants.pop(number, None)  # at once, as a rule
                if granted is None:
                    yield ANYTHING
                    granted = self._granted(number, stop)
                try:
                    return (yield from self._use(*granted, number, graph, feeds, outputs, stop))
                except Gone:
                    yield ANYTHING
        finally:
            stop.unwatch(stopped)
            with self._lock:
                self._grants.pop(number, None)
                self._failures.pop(number, None)
                self.counts.seconds += self._clock() - began
                self._tell(self._state.done, number, self._clock())

    def close(self) -> None:
        """End the cell: the node leaves."""
        self._tell(self._state.leave, self._clock())

    # A job

    def _granted(self, number: int, stop: Stoppable) -> tuple[CellProcess, int]:
        with self._changed:
            while number not in self._grants:
                if number in self._failures and not self._unkept:
                    stop.check()
                    raise self._failures[number]
                self._changed.wait()
            return self._grants.pop(number)

    def _use(
        self,
        process: CellProcess,
        lane: int,
        number: int,
        graph: GraphFile,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        stop: Stoppable,
    ) -> Steps[list[Array]]:
        channel, digest = process.lanes[lane], graph.digest
        began, told = self._clock(), channel.numbers
        try:
            while (held := self._take_hold(process, number, graph)) is None:
                yield ANYTHING
                self._await_load(process, digest)
            known, forgotten = held
            try:
                if known is None:
                    yield ANYTHING
                    known = self._load(process, channel, number, graph, forgotten, stop)
                return (
                    yield from run(channel, number, graph, known, feeds, outputs, stop, self._settings.limit)
                )
            finally:
                with self._lock:
                    # A cell may say what it likes, but not that it took longer than it did.
                    said = (channel.numbers - told) / 1e9
                    self.counts.graph_seconds += min(said, self._clock() - began)
                    process.used[digest] -= 1
                    if not process.used[digest]:
                        del process.used[digest]
        except Nonsense as error:
            self._tell_of(process, self._state.nonsense, number, str(error), self._clock())
            raise Gone from None
        except (Gone, OSError):
            # Nothing more can be said on this lane: either it is about to end, or it has to.
            try:
                yield ANYTHING
            finally:
                process.end_if_it_lives()
                self._tell_of(process, self._state.given_up, number, self._clock())
            raise Gone from None
        except EdgeAttentionError:
            raise  # the cell has said so, or was not asked
        except BaseException:
            # Steps that are closed, or no memory for what was answered: the lane may have more to say.
            self._tell_of(process, self._state.given_up, number, self._clock())
            raise

    def _take_hold(
        self, process: CellProcess, number: int, graph: GraphFile
    ) -> tuple[KnownGraph | None, list[str]] | None:
        """The graph, which the cell is not to forget while it is used: end that with `process.used`.

        None in its place: the caller loads it now; those named besides are forgotten for it. None alone:
        somebody else loads it.
        """
        digest = graph.digest
        with self._lock:
            if self._process is not process:
                raise Gone
            if digest in process.loading:
                return None
            known = process.loaded.pop(digest, None)
            process.used[digest] += 1
            if known is not None:
                process.loaded[digest] = known
                return known, []
            process.loading.add(digest)
            self._state.loading(number, True)
            return None, self._forget(process, graph.weight)

    def _await_load(self, process: CellProcess, digest: str) -> None:
        with self._changed:
            while digest in process.loading and self._process is process:
                self._changed.wait()

    def _load(
        self,
        process: CellProcess,
        channel: Channel,
        number: int,
        graph: GraphFile,
        forgotten: list[str],
        stop: Stoppable,
    ) -> KnownGraph:
        known = None
        try:
            known = load(channel, number, graph, forgotten, stop)
            return known
        finally:
            with self._changed:
                self._state.loading(number, False)
                process.loading.discard(graph.digest)
                if known is not None:
                    process.loaded[graph.digest] = known
                self._changed.notify_all()

    def _forget(self, process: CellProcess, more: int) -> list[str]:
        loaded, forgotten = process.loaded, list[str]()
        size = sum(known.size for known in loaded.values()) + more
        idle = [digest for digest in loaded if digest not in process.used]
        # Those first that nobody can ask for any more.
        for digest in sorted(idle, key=lambda digest: loaded[digest].wanted):
            fits = len(loaded) < min(GRAPHS, self._most) and size <= self._settings.limit
            if fits and loaded[digest].wanted:
                break
            size -= loaded.pop(digest).size
            forgotten.append(digest)
        return forgotten

    # What is decided

    def _tell(self, event: Callable[..., list[Action]], *args: Any) -> None:
        with self._lock:
            for action in event(*args):
                self._perform(action)
            if self._thread is None and self._starting:
                self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._watch, name=f"{self._name} cell", daemon=True)
                self._thread.start()
            elif (wake := self._state.wake) is not None and wake < self._asleep_until:
                self._ring()  # to look at the clock earlier; later needs no waking

    def _tell_of(self, process: CellProcess, event: Callable[..., list[Action]], *args: Any) -> None:
        """Tell what has come of a job in `process`; nobody where that is gone, and the job another one's."""
        with self._lock:
            if self._process is process:
                self._tell(event, *args)

    def _ring(self) -> None:
        self._asleep_until = float("-inf")
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._bell, 1)

    def _perform(self, action: Action) -> None:
        process = self._process
        match action:
            case StartCell():
                self._starting = True
                if self._thread is not None:
                    self._ring()
            case Grant(job, lane):
                assert process is not None
                self._grants[job] = (process, lane)
                self._changed.notify_all()
            case Fail(job, error):
                self._failures[job] = error
                self._changed.notify_all()
            case StopJob(job, lane) if process is not None:
                process.stop(lane, job)
            case EndCell(kill) if process is not None:
                process.end(kill)
            case Blame(digest):
                log.info("the %s cell came to this so: %s", self._name, told(self._state.transitions))
                self._graphs.blame(digest)
                self._unkept = True
            case Notice(text):
                log.warning("%s", text)

    def _watch(self) -> None:
        """On a thread of its own: start processes, hear them, see them end, and look at the clock."""
        while True:
            with self._changed:
                process, start = self._process, self._starting
                self._starting = False
            if start:
                self._begin()
                continue
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            if process is not None:
                poll.register(process.control, select.POLLIN)
                poll.register(process.words, select.POLLIN)
            with self._changed:
                wake = self._state.wake
                self._asleep_until = float("inf") if wake is None else wake
            timeout = None if wake is None else max(0.0, wake - self._clock()) * 1000 + 1
            ready = {descriptor for descriptor, _ in poll.poll(timeout)}
            if self._bell in ready:
                os.eventfd_read(self._bell)
            if process is not None:
                self._attend(process, ready)
            now = self._clock()
            used = process.usage() if process is not None and wake is not None and now >= wake else Usage()
            self._tell(self._state.tick, now, used)

    def _begin(self) -> None:
        try:
            process = CellProcess(self._settings, self._name)
        except (OSError, ValueError) as error:
            log.error("the %s cell cannot be started: %s", self._name, error)
            self._tell(self._state.died, f"{type(error).__name__}: {error}", self._clock())
            return
        self.counts.started += 1
        with self._changed:
            self._process = process

    def _attend(self, process: CellProcess, ready: set[int]) -> None:
        if process.words in ready:
            process.listen()
        if process.control.fileno() not in ready:
            return
        try:
            report = process.heard()
        except Nonsense:
            report = None
        if report is None:
            how, number = process.ended()
            if number is not None or self._state.jobs:
                self.counts.died[signal_name(number) if number is not None else "exit"] += 1
            with self._changed:  # at once: in between a lane of it would be granted
                self._process = None
                self._changed.notify_all()
                self._tell(self._state.died, how, self._clock())
            self._keep_blamed()
        elif report and self._state.phase is CellPhase.STARTING:
            self.report = report
            # The devices of an accelerator are files, too: a cell that uses one is never quite shut.
            level = logging.WARNING if report.startswith(OPEN) else logging.INFO
            log.log(level, "the %s cell is process %d, shut in by: %s", self._name, process.pid, report)
            self._tell(self._state.ready, self._clock())

    def _keep_blamed(self) -> None:
        """Have the disk know of graphs that have ended the process, before whoever ran them is told.

        Not under the lock: the event loop takes it, too, and a disk may take seconds.
        """
        if self._unkept:
            self._graphs.keep()
            with self._changed:
                self._unkept = False
                self._changed.notify_all()
