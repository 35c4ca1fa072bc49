"""Carries out programs: instructions over the store, graphs and datasets; contributions as they are ready."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge_attention.core import program as said
from edge_attention.core.errors import EdgeAttentionError, Internal, InvalidProgram
from edge_attention.core.halves import stored_dtype
from edge_attention.core.program import Batch, Contribution, Fault, Program, Return, Run, Stored
from edge_attention.core.tensors import Array, Encoded, Encoding, require_stored
from edge_attention.shared_memory import gather
from edge_node.datasets import Dataset
from edge_node.release import ALIGNMENT, Releases
from edge_node.runtime import ForeignGraph, Graph, Stop
from edge_node.store import Held, Origin, Store

log = logging.getLogger(__name__)

_COALESCE = 16 * 1024 * 1024


@dataclass(frozen=True)
class Node:
    """What programs work on. `secret` is mixed into the key of the hashes of ids."""

    store: Store
    datasets: Mapping[str, Dataset]
    releases: Releases
    secret: bytes = b""


class Execution:
    """One task. `serial` is unlike that of every other task now running: it keeps their `task/` apart."""

    def __init__(
        self,
        program: Program,
        node: Node,
        graphs: Mapping[str, Graph | ForeignGraph],
        *,
        serial: int = 0,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._program, self._node, self._graphs = program, node, graphs
        self._store = node.store
        self._scope = f"task/{serial}/"
        self._stop = stop or Stop()
        self._clock = clock
        self._arrived = clock()
        self._own: set[str] = set()
        self._changed: set[str] = set()
        """Names outside its own scope that it has changed: on the disk before it says that it is done."""
        self._run_seconds, self._number = 0.0, 0
        self._pending, self._pending_bytes = dict[str, Array | Encoded](), 0

    def contributions(self) -> Generator[Contribution, None, None]:
        """Runs the task. The last contribution is final; a task that fails ends with one that says why.

        Returns that follow each other travel together; what was returned before a graph leaves before it
        runs. The task's own tensors are freed at the end, and nothing is raised.
        """
        try:
            for name, array in self._program.tensors.items():
                self._put(self._name(name), array)
            yield from self._block(self._program.instructions, None)
            self._stop.check()
            if self._changed:
                self._store.commit(self._changed)
            yield self._contribution(final=True)
        except Exception as error:
            yield self.failure(error)
        finally:
            self.close()

    def close(self) -> None:
        """Free the task's own tensors."""
        for name in self._own:
            self._store.drop(name)

    def place(self, name: str, array: Array) -> None:
        """Store a tensor that came in bulk, before the first instruction."""
        self._put(self._name(name), array)

    def failure(self, error: Exception) -> Contribution:
        """The final contribution of this task when it ended with `error`."""
        if not isinstance(error, EdgeAttentionError):
            log.error("task %s failed", self._program.task_id, exc_info=error)
            error = Internal(f"the node failed at this task: {type(error).__name__}; its log says more")
        self._pending = {}
        fault = Fault(type(error).__name__, error.message.replace(self._scope, "task/"))
        return replace(self._contribution(final=True), error=fault)

    def _contribution(self, final: bool = False) -> Contribution:
        p, number, tensors = self._program, self._number, self._pending
        self._number, self._pending, self._pending_bytes = number + 1, {}, 0
        message = Contribution(p.task_id, p.shard, p.coverage, p.version, number, tensors, final=final)
        if not final:
            return message
        seconds = self._clock() - self._arrived
        return replace(message, run_seconds=self._run_seconds, task_seconds=seconds)

    def _block(self, block: tuple[said.Instruction, ...], turn: int | None) -> Iterator[Contribution]:
        for instruction in block:
            self._stop.check()
            match instruction:
                case Run():
                    if self._pending:
                        yield self._contribution()
                    self._run(instruction)
                case said.Append():
                    self._append(instruction, turn)
                case Batch():
                    self._batch(instruction, turn)
                case said.Repeat(times, body):
                    for index in range(times):
                        self._stop.check()
                        yield from self._block(body, index)
                case Return():
                    held = self._value(Stored(instruction.stored))
                    self._node.releases.require(instruction.stored, held)
                    full = self._pending_bytes + held.array.nbytes > _COALESCE
                    if self._pending and (full or instruction.name in self._pending):
                        yield self._contribution()
                    self._return(instruction, held.array)
                case said.Drop(names, revision):
                    for name in (self._name(name, prefix=True) for name in names):
                        self._store.drop(name, revision)
                        self._changed.add(name)

    def _append(self, append: said.Append, turn: int | None) -> None:
        held, at = self._value(append.source), append.at
        if at is not None and turn is not None:
            at += turn * len(held.array)
        name = self._name(append.sequence)
        self._changed.add(name)
        self._store.append(name, held.array, at, append.tile, held.origin, append.revision)

    def _put(self, name: str, array: Array, origin: Origin | None = None) -> None:
        if not name.startswith(self._scope):
            self._changed.add(name)
        self._store.put(name, array, origin)

    def _name(self, name: str, prefix: bool = False) -> str:
        """The name in the store: `task/x` is this task's own."""
        require_stored(name)
        if name.endswith("/") and not prefix:
            raise InvalidProgram(f"{name!r} stands for many tensors; one is needed here")
        if name.startswith("dataset/"):
            raise InvalidProgram(f"{name!r}: datasets are read with Batch, and never written")
        if not name.startswith("task/"):
            return name
        name = self._scope + name.removeprefix("task/")
        self._own.add(name)
        return name

    def _value(self, value: said.Value) -> Held:
        if isinstance(value, Stored):
            return self._store.get(self._name(value.name), value.tiles)
        return Held(value)

    def _run(self, run: Run) -> None:
        if not run.outputs:
            raise InvalidProgram(f"the run of graph {run.graph[:12]} keeps no output")
        targets = {output: self._name(name) for output, name in run.outputs.items()}
        inputs = {name: self._value(value) for name, value in run.inputs.items()}
        private = any(held.origin is not None for held in inputs.values())
        feeds = {name: held.array for name, held in inputs.items()}
        started = self._clock()
        try:
            results = self._graphs[run.graph].run(feeds, list(targets), self._stop, private)
        finally:
            self._run_seconds += self._clock() - started
        self._stop.check()  # who stopped the task may have dropped by now what it would store
        for (output, name), array in zip(targets.items(), results, strict=True):
            released = not private or self._node.releases.allow(run.graph, output)
            self._put(name, array, None if released else Origin(run.graph, output))

    def _batch(self, batch: Batch, turn: int | None) -> None:
        dataset = self._node.datasets.get(batch.dataset)
        if dataset is None:
            known = ", ".join(self._node.datasets) or "none"
            raise InvalidProgram(f"this node has no dataset {batch.dataset[:80]!r}; its datasets: {known}")
        asked = None if batch.rows is None else self._value(batch.rows)
        rows = None if asked is None else _rows(asked.array, turn, dataset)
        count = dataset.rows if rows is None else len(rows)
        for column, name in batch.columns.items():
            target, source = self._name(name), dataset.column(column)
            self._store.require(count * source[:1].nbytes, f"{count} rows of {column!r}")
            array = np.ascontiguousarray(source) if rows is None else gather(source, rows)
            self._put(target, array, Origin("", f"column {column!r} of dataset {dataset.name!r}"))
        if batch.identity_output:
            key = batch.identity_key
            if not key:
                raise InvalidProgram("hashes of ids need an identity_key: without one anybody can guess ids")
            if self._node.secret:
                key = hmac.digest(self._node.secret, key, "sha256")
            self._store.require(16 * count, "hashes of ids")
            # Rows chosen by what is in them would tell it with their ids.
            chosen = asked.origin if asked is not None else None
            origin = chosen if self._node.releases.alignment else Origin("", ALIGNMENT)
            self._put(self._name(batch.identity_output), dataset.hashes(rows, key), origin)

    def _return(self, instruction: Return, array: Array) -> None:
        if not 0 < len(instruction.name) <= 256:
            raise InvalidProgram(f"{instruction.stored} is returned under a name of none or over 256 letters")
        if self._store.is_sequence(self._name(instruction.stored)):
            array = array.copy()  # the next append writes there
        encoding = instruction.encoding
        stored_dtype(encoding, array.dtype, instruction.stored)  # refuses what cannot travel so
        self._pending[instruction.name] = array if encoding is Encoding.RAW else Encoded(array, encoding)
        self._pending_bytes += array.nbytes


def _rows(rows: Array, turn: int | None, dataset: Dataset) -> Array:
    if rows.ndim == 2 and turn is not None:
        if turn >= len(rows):
            raise InvalidProgram(f"turn {turn} of a Repeat has no rows: {len(rows)} turns have")
        rows = rows[turn]
    if rows.ndim != 1 or rows.dtype != np.int64:
        what = f"{rows.dtype} {list(rows.shape)}"
        raise InvalidProgram(f"rows are int64 [rows], or [times, rows] inside a Repeat; these are {what}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < dataset.rows):
        raise InvalidProgram(f"dataset {dataset.name!r} has {dataset.rows} rows; others were asked for")
    return rows
