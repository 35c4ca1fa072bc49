"""Carries out programs: instructions over the store, graphs and datasets; contributions as they are ready."""

from __future__ import annotations

import contextlib
import hmac
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    Internal,
    InvalidProgram,
)
from edge_attention.core.halves import stored_dtype
from edge_attention.core.job_release import ALIGNMENT
from edge_attention.core.messages import program as said
from edge_attention.core.messages.program import Batch, Contribution, Fault, Program, Return, Run, Stored
from edge_attention.core.printable import shown
from edge_attention.core.release import Edge, every_row
from edge_attention.core.release import column as column_source
from edge_attention.core.tensors import Array, Encoded, Encoding, require_stored
from edge_node.appending import placed, require_sequence
from edge_node.data.datasets import LocalDataset
from edge_node.direct import BoundRun
from edge_node.discretion import (
    FAILED_STEP_SECONDS,
    PLAIN,
    STEP_SECONDS,
    moment,
    private_error,
    words,
)
from edge_node.failures import Failures
from edge_node.flows import flow_of, origin_of_rows, origins_of
from edge_node.release import Releases
from edge_node.runtime import ForeignGraph, Graph, Stop
from edge_node.shared_memory import gather
from edge_node.store.origin import Origin
from edge_node.store.store import Held, Store
from edge_node.store.task_tensors import TaskTensors

if TYPE_CHECKING:
    from edge_node.data.views import View

log = logging.getLogger(__name__)

_NOTHING = contextlib.nullcontext()
_NO_ORIGINS: Mapping[str, Origin] = {}

_COALESCE = 16 * 1024 * 1024
_DRAWN = 10_000
"""Graphs with random operators that are remembered to have run on private data; then all of them count so."""


@dataclass(frozen=True)
class LocalNode:
    """What programs work on. `secret` is mixed into the key of the hashes of ids.

    `log_place`: how a person gets to this node's log.
    `sleep`: waits until a bounded task may end; a node that nothing is private to need not.
    `drawn`: graphs with random operators that have run on private data; what they draw next is private, too.
    """

    store: Store
    datasets: Mapping[str, LocalDataset]
    releases: Releases
    secret: bytes = b""
    failures: Failures = field(default_factory=Failures)
    drawn: set[str] = field(default_factory=set)
    log_place: str = "what edge-node prints"
    sleep: Callable[[float], None] = time.sleep


class _Plainly:
    """Around what depends on the program and on what all may know: an error in there is told as it is."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, cls: object, error: BaseException | None, trace: object) -> None:
        if (
            error is not None and error is not self._stop.error
        ):  # when a task is stopped tells of what came before
            self.error = error


class Execution:
    """One task. `serial` is unlike that of every other task now running: it keeps their `task/` apart.

    A task that runs an unreleased graph on private data, or works on what one made, is *bounded*: failures
    are counted, it is over at certain moments only, and nothing leaves before all that may fail is done.
    """

    def __init__(
        self,
        program: Program,
        node: LocalNode,
        graphs: Mapping[str, Graph | ForeignGraph],
        *,
        serial: int = 0,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.program = program
        self.graphs = graphs
        self._program = program
        self._node = node
        self._graphs = graphs
        self._store = node.store
        self._scope = f"task/{serial}/"
        self._stop = stop or Stop()
        self._clock = clock
        self._sleep = sleep or node.sleep
        self._wall = wall
        self._arrived = clock()
        self._tensors = TaskTensors(node.store)
        self._sequences: set[str] = set()
        """Names in the store of what is not in there but the task's own all the same."""
        self._changed: set[str] = set()
        """Names outside its own scope that it has changed: on the disk before it says that it is done."""
        self._run_seconds = 0.0
        self._number = 0
        self._pending = dict[str, Array | Encoded]()
        self._pending_bytes = 0
        self._private = False
        self._bounded = False
        self._open = False
        self._plainly = _Plainly(self._stop)
        self._at = ("", 0, "")
        self._graph = ""
        self._reserved = 0

    def contributions(self) -> Generator[Contribution, None, None]:
        """Runs the task. The last contribution is final; a task that fails ends with one that says why.

        Returns that follow each other travel together; what was returned before a graph leaves before it
        runs, unless the task is bounded. The task's own tensors are freed at the end, and nothing is raised.
        """
        instructions = self._program.instructions
        may_fail = [i for i, one in enumerate(instructions, 1) if not isinstance(one, Return | said.Drop)]
        rest = may_fail[-1] if may_fail else 0
        held: list[Contribution] = []
        try:
            self._node.releases.learn(self._program.releases)
            self._put_all([(_one(name), Held(array)) for name, array in self._program.tensors.items()])
            for message in self._block(instructions[:rest], None):
                if self._bounded:
                    self._hold(message)
                    held.append(message)
                else:
                    yield message
            self._stop.check()
            if self._bounded:
                self._commit()  # how long that takes tells how much there is
                self._wait(STEP_SECONDS)
                self._stop.check()
                while held:
                    yield held.pop(0)
            yield from self._block(instructions[rest:], None, rest)
            self._stop.check()
            self._commit()
            final = self._contribution(final=True)
            self._over(failed=False)
            yield final
        except Exception as error:
            self._number -= len(held)  # they have not left
            yield self._failed(error)
        finally:
            self.close()

    def close(self) -> None:
        """Free the task's own tensors."""
        self._over(failed=False)
        self._tensors.close()
        if self._reserved:
            self._store.release(self._reserved, apart=True)
            self._reserved = 0
        for name in self._sequences:
            self._store.drop(name)

    def carry_out(self, instructions: tuple[said.Instruction, ...]) -> None:
        """Take these instructions in place of the program's own: what it freezes is bound in them.

        To be called before the first instruction is carried out.
        """
        self._program = replace(self._program, instructions=instructions)

    def place(self, name: str, array: Array, digest: str = "") -> None:
        """Store a tensor that came in bulk, before the first instruction. `digest`: as of `Store.put`."""
        self._put(_one(name), array, digest=digest)

    def failure(self, error: Exception) -> Contribution:
        """The final contribution of this task when it ended with `error`: of private data it says nothing."""
        if self._private and error is not self._plainly.error and error is not self._stop.error:
            task, what = shown(self._program.task_id[:80]), words(error)
            within, number, kind = self._at
            place = f"instruction {within}{number}: {kind}"
            log.warning("task %s failed on private data at %s: %s", task, place, what)
            # The time of telling, which is no news to who is told.
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._wall()))
            look = f"{self._node.log_place}: task {task}, {at}"
            told = private_error(error, place, self._graph, look)
        elif isinstance(error, EdgeAttentionError):
            told = error
        else:
            log.error("task %s failed", self._program.task_id, exc_info=error)
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            told = Internal(f"the node failed at this task, which is a defect of it: {what}")
        self._pending = {}
        fault = Fault(type(told).__name__, told.message.replace(self._scope, "task/"))
        return replace(self._contribution(final=True, failed=True), error=fault)

    def _failed(self, error: Exception) -> Contribution:
        if not self._bounded:
            return self.failure(error)
        # What stopped it from outside is no choice of a graph's; that it was late may be.
        outside = error is self._stop.error and not isinstance(error, DeadlineExceeded)
        counts = not (outside or error is self._plainly.error or isinstance(error, PLAIN))
        self._over(failed=counts)
        self._wait(FAILED_STEP_SECONDS if counts else STEP_SECONDS)
        return self.failure(error)

    # What a bounded task keeps to

    def _begin(self) -> None:
        """From here on the task is bounded. Raises PrivateLimit if there were too many failures."""
        if not self._bounded:
            self._node.failures.begin(self._program.caller)
            self._bounded = True
            self._open = True

    def _over(self, failed: bool) -> None:
        if self._open:
            self._open = False
            self._node.failures.end(self._program.caller, failed)

    def _wait(self, step: float) -> None:
        taken = self._clock() - self._arrived
        self._sleep(max(0.0, moment(taken, step) - taken))

    def _hold(self, message: Contribution) -> None:
        # How many there are tells how far the task has come.
        size = sum(t.array.nbytes if isinstance(t, Encoded) else t.nbytes for t in message.tensors.values())
        self._store.reserve(size, "what is returned before the end", apart=True)
        self._reserved += size

    # Contributions

    def _contribution(self, final: bool = False, failed: bool = False) -> Contribution:
        p, number, tensors = self._program, self._number, self._pending
        self._number = number + 1
        self._pending = {}
        self._pending_bytes = 0
        run = task = 0.0
        if final:
            run, task = self._run_seconds, self._clock() - self._arrived
            if self._bounded:
                step = FAILED_STEP_SECONDS if failed else STEP_SECONDS
                run, task = moment(run, step), moment(task, step)
        return Contribution(
            p.task_id, p.shard, p.coverage, p.version, number, tensors, (), final, None, run, task
        )

    def _block(
        self, block: tuple[said.Instruction, ...], turn: int | None, before: int = 0, within: str = ""
    ) -> Iterator[Contribution]:
        for number, instruction in enumerate(block, before + 1):
            self._stop.check()
            self._at = (within, number, type(instruction).__name__)
            match instruction:
                case Run():
                    if self._pending:
                        yield self._contribution()
                    self._run(instruction)
                case Return():
                    with self._plainly:
                        held = self._held(instruction.stored)
                        if held.origin is not None:
                            self._node.releases.require(instruction.stored, held, self._program.releases)
                        full = self._pending_bytes + held.array.nbytes > _COALESCE
                        apart = bool(self._pending) and (full or instruction.name in self._pending)
                        if not apart:
                            self._return(instruction, held.array)
                    if apart:
                        yield self._contribution()
                        with self._plainly:
                            self._return(instruction, held.array)
                case said.Append():
                    self._append(instruction, turn)
                case Batch():
                    self._batch(instruction, turn)
                case said.Repeat(times, body):
                    for index in range(times):
                        self._stop.check()
                        yield from self._block(body, index, 0, f"{within}{number}.")
                case said.Drop(names, revision):
                    with self._plainly:
                        self._drop(names, revision)

    def _put(self, name: str, array: Array, origin: Origin | None = None, digest: str = "") -> None:
        if not name.startswith("task/"):
            with self._stop.writing:
                self._stop.check()
                self._changed.add(name)
                self._store.put(name, array, origin, digest)
            return
        if self._sequences and self._scoped(name) in self._sequences:
            raise InvalidProgram(f"{name} is a sequence: drop it before storing another tensor there")
        self._tensors.put(name, array, origin)

    def _put_all(self, found: Sequence[tuple[str, Held]]) -> None:
        """As `_put` of each; what is the task's own is counted together."""
        own = dict[str, Held]()
        for name, held in found:
            if self._sequences or not name.startswith("task/"):
                self._put(name, held.array, held.origin)
            else:
                own[name] = held
        self._tensors.put_all(own)

    def _drop(self, names: tuple[str, ...], revision: int | None) -> None:
        own = []
        for name in names:
            _require_known(name)
            if name.startswith("task/"):
                own.append(name)
            else:
                self._store.drop(name, revision)
                self._changed.add(name)
        self._tensors.drop(*own)
        for name in own if self._sequences else ():
            self._store.drop(self._scoped(name))
            scope = f"{self._scoped(name).rstrip('/')}/"
            self._sequences.difference_update([n for n in self._sequences if f"{n}/".startswith(scope)])

    def _commit(self) -> None:
        if self._changed:
            self._store.commit(self._changed)
            self._changed.clear()

    def _scoped(self, name: str) -> str:
        """The task's `name` in the store, where other tasks have a `task/` of their own."""
        return self._scope + name.removeprefix("task/")

    def _held(self, name: str, tiles: range | None = None) -> Held:
        """What is kept as `name`."""
        held = self._tensors.get(name)
        if held is None:
            name = _one(name)
            return self._store.get(self._scoped(name) if name.startswith("task/") else name, tiles)
        if tiles is not None:
            raise InvalidProgram(f"{name} is no sequence, it has no tiles")
        return held

    def _value(self, value: said.Value) -> Held:
        if isinstance(value, Stored):
            return self._held(value.name, value.tiles)
        return Held(value)

    def _run(self, run: Run) -> None:
        drawn = self._node.drawn
        graph = run.session if isinstance(run, BoundRun) else self._graphs[run.graph]
        with self._plainly:
            if not run.outputs:
                raise InvalidProgram(f"the run of graph {run.graph[:12]} keeps no output")
            targets = {output: _one(name) for output, name in run.outputs.items()}
            inputs = {name: self._value(value) for name, value in run.inputs.items()}
            if isinstance(run, BoundRun):
                inputs |= run.given
            feeds = {name: held.array for name, held in inputs.items()}
            if isinstance(run, BoundRun):
                inputs |= run.constants
            told = [held.origin for held in inputs.values() if held.origin is not None]
            private, chosen = bool(told), any(origin.chosen for origin in told)
            flow = flow_of(run.graph, inputs) if private else frozenset[Edge]()
            if graph.remembers and (run.graph in drawn or len(drawn) >= _DRAWN):
                private, flow = True, None  # of how often it drew, for what, nothing is known
            allowed = self._node.releases.allowed(run.graph, flow, targets) if private else frozenset()
            if private:
                # What can be said of it before anything private counts.
                unsaid = {name for name, held in inputs.items() if held.chosen} if chosen else set[str]()
                graph.check(feeds, list(targets), unsaid)
        with _NOTHING if private else self._plainly:
            if private:
                self._private = True
                self._graph = run.graph
                if chosen or len(allowed) < len(targets):
                    self._begin()
                if graph.remembers and len(allowed) < len(targets):
                    drawn.add(run.graph)
            started = self._clock()
            try:
                results = graph.run(feeds, list(targets), self._stop, private)
            finally:
                self._run_seconds += self._clock() - started
            self._stop.check()  # who stopped the task may have dropped by now what it would store
            if not private and run.graph in drawn:  # of a run beside this one
                private, flow = True, None
            origins = origins_of(run.graph, targets, flow) if private else _NO_ORIGINS
            # Of what is not private there are no origins.
            labels = [None if output in allowed else origins.get(output) for output in targets]
            named = zip(targets.values(), results, labels, strict=True)
            self._put_all([(name, Held(array, origin)) for name, array, origin in named])

    def _append(self, append: said.Append, turn: int | None) -> None:
        with self._plainly:
            name, held = _one(append.sequence), self._value(append.source)
            if name in self._tensors:
                raise InvalidProgram(f"{name} is a tensor and no sequence: drop it before appending there")
            if held.origin is not None and not append.shape:
                raise InvalidProgram(
                    f"the source of {append.sequence} is private: the program has to say its shape"
                )
        shape = append.shape or held.array.shape
        with _NOTHING if held.chosen else self._plainly:
            if held.origin is not None:
                self._private = True
                self._graph = held.origin.digest
                self._at = (*self._at[:2], f"Append of {list(shape)}")
            if held.chosen:
                self._begin()
            if held.array.shape != shape:
                have = f"{list(held.array.shape)}, and the program says {list(shape)}"
                raise InvalidProgram(f"the source of {append.sequence} is {have}")
            if held.chosen and held.array.dtype != np.float32:
                raise InvalidProgram(f"the source of {append.sequence} is {held.array.dtype}, not float32")
        with self._plainly:
            source, at = held.array, append.at
            if append.place:
                source, at = placed(append, source, self._held(append.place), turn)
            elif at is not None and turn is not None:
                at += turn * len(source)
            if name.startswith("task/"):
                name = self._scoped(name)
                self._sequences.add(name)
            else:
                self._changed.add(name)
            if append.place:
                require_sequence(self._store, name, at)
            # Of a context changes are numbered, and the disk is waited for: nobody who ends a task may.
            with self._stop.writing if name.startswith("job/") else _NOTHING:
                if name.startswith("job/"):
                    self._stop.check()
                self._store.append(name, source, at, append.tile, held.origin, append.revision)

    def _batch(self, batch: Batch, turn: int | None) -> None:
        with self._plainly:
            dataset = self._node.datasets.get(batch.dataset)
            if dataset is None:
                known = ", ".join(self._node.datasets) or "none"
                raise InvalidProgram(
                    f"this node has no dataset {batch.dataset[:80]!r}; its datasets: {known}"
                )
            asked = None if batch.rows is None else self._value(batch.rows)
            columns = {_one(name): column for column, name in batch.columns.items()}
            sources = {name: dataset.column(column) for name, column in columns.items()}
            views: dict[str, View] = {}
            if batch.tensors or batch.complete:
                if batch.complete and (asked is None or batch.identity_output):
                    what = "how many rows are complete, and which, is private"
                    raise InvalidProgram(f"{what}: name the rows, and ask for no hashes of ids")
                views = {
                    _one(tensor.stored): dataset.views.view(tensor, batch.complete, self._node.datasets)
                    for tensor in batch.tensors
                }
            hashes = _one(batch.identity_output) if batch.identity_output else ""
            key = batch.identity_key
            if hashes:
                if not key:
                    raise InvalidProgram(
                        "hashes of ids need an identity_key: without one anybody can guess ids"
                    )
                dataset.require_ids()
                if self._node.secret:
                    key = hmac.digest(self._node.secret, key, "sha256")
        # Which rows, and how many, tells of what chose them.
        origin = asked.origin if asked is not None else None
        chosen = origin is not None
        # So does whether rows are among those that are complete, or a value is one of the categories.
        unsure = [name for name, view in views.items() if view.unsure]
        telling = bool(chosen or unsure or batch.complete)
        with _NOTHING if telling else self._plainly:
            if telling:
                self._private = True
                self._begin()
            for name in unsure:
                # By name: which of several it is would tell more than that one is.
                self._at = (*self._at[:2], f"Batch of {', '.join(unsure)}")
                views[name].check()
            there = (
                dataset.views.rows(batch.complete, self._node.datasets) if batch.complete else dataset.rows
            )
            rows = None if asked is None else _rows(asked.array, turn, dataset.name, there)
            count = dataset.rows if rows is None else len(rows)
            for name, source in sources.items():
                column = column_source(dataset.name, columns[name])
                self._store.require(count * source[:1].nbytes, f"{count} rows of {columns[name]!r}", chosen)
                array = np.ascontiguousarray(source) if rows is None else gather(source, rows)
                self._put(name, array, origin_of_rows(column, chosen))
                self._private = True
            for name, view in views.items():
                self._store.require(count * view.row_bytes, f"{count} rows of {name}", chosen)
                whose = every_row(view.source) if rows is None else view.source
                self._put(name, view.read(rows), origin_of_rows(whose, chosen))
                self._private = True
            if hashes:
                self._store.require(16 * count, "hashes of ids", chosen)
                # Rows chosen by what is in them would tell it with their ids.
                from_rows = None if origin is None else replace(origin, chosen=True)
                label = from_rows if self._node.releases.alignment else Origin("", ALIGNMENT, chosen)
                self._put(hashes, dataset.hashes(rows, key), label)

    def _return(self, instruction: Return, array: Array) -> None:
        if not 0 < len(instruction.name) <= 256:
            raise InvalidProgram(f"{instruction.stored} is returned under a name of none or over 256 letters")
        name = instruction.stored
        if name not in self._tensors:
            name = self._scoped(name) if name.startswith("task/") else name
            array = array.copy() if self._store.is_sequence(name) else array  # the next append writes there
        encoding = instruction.encoding
        stored_dtype(encoding, array.dtype, instruction.stored)  # refuses what cannot travel so
        self._pending[instruction.name] = array if encoding is Encoding.RAW else Encoded(array, encoding)
        self._pending_bytes += array.nbytes


@lru_cache(1024)
def _one(name: str) -> str:
    """`name`, if a program may call a tensor so: `task/x` is this task's own."""
    _require_known(name)
    if name.endswith("/"):
        raise InvalidProgram(f"{name!r} stands for many tensors; one is needed here")
    return name


@lru_cache(1024)
def _require_known(name: str) -> None:
    """Refuse what is no name of a tensor that a program may use; of those that are, it has seen most."""
    require_stored(name)
    if name.startswith("dataset/"):
        raise InvalidProgram(f"{name!r}: datasets are read with Batch, and never written")


def _rows(rows: Array, turn: int | None, dataset: str, there: int) -> Array:
    if rows.ndim == 2 and turn is not None:
        if turn >= len(rows):
            raise InvalidProgram(f"turn {turn} of a Repeat has no rows: {len(rows)} turns have")
        rows = rows[turn]
    if rows.ndim != 1 or rows.dtype != np.int64:
        what = f"{rows.dtype} {list(rows.shape)}"
        raise InvalidProgram(f"rows are int64 [rows], or [times, rows] inside a Repeat; these are {what}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < there):
        raise InvalidProgram(f"dataset {dataset!r} has {there} rows; others were asked for")
    return rows
