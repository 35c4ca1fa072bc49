"""Calls of prepared programs that run graphs, and return, store or append what these make, step by step.

Most calls are such ones, and each is a moment of Python after milliseconds of something else, when the
processor's caches have forgotten the code: less code is what is fast then. So what a call does is found
once, when its program is prepared, and what is left is to run and to hand back. All else is the executor's:
programs that drop or read data, and a call that meets a private tensor, before anything of it ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from edge_attention.core.errors import InvalidArgument, InvalidProgram, InvalidTensor
from edge_attention.core.halves import stored_dtype
from edge_attention.core.messages.program import (
    Append,
    Call,
    Contribution,
    Instruction,
    Return,
    Run,
    Slot,
    Stored,
)
from edge_attention.core.tensors import (
    MAX_RANK,
    TRAVELS,
    Array,
    DataType,
    Encoded,
    Encoding,
    own_memory,
    require_stored,
)
from edge_node.appending import placed, require_sequence
from edge_node.runtime import ForeignGraph, Graph, Stop
from edge_node.steps import ANYTHING, Steps
from edge_node.store.held import Held
from edge_node.store.kept_files import KEPT
from edge_node.store.store import Store

__all__ = ["BoundRun", "DirectCall", "DirectProgram"]

MAX_STEPS = 64
"""Instructions, and slots, of a program that is carried out so: a longer one gains little."""


AHEAD = 64 * 1024
"""Bytes of results that are counted before they are there, as of the last call: what is more, as it comes."""


@dataclass(frozen=True)
class BoundRun(Run):
    """A Run some of whose inputs are frozen. `inputs` are the others.

    Attributes:
        session: the graph with what is public of them as constants.
        constants: these, by input.
        given: what is private of them, by input: bound at each run.
    """

    session: Graph | ForeignGraph
    constants: Mapping[str, Held] = field(default_factory=dict)
    given: Mapping[str, Held] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """A graph, and what is returned once it has run.

    Attributes:
        graph: its digest, and `session` the graph where it has constants of its own.
        fixed: inputs that are in the program.
        own: input -> the task's tensor of that name.
        stored: input -> what is stored, and `grown` what the program itself has appended to before.
        appends: what is appended before it runs.
        outputs: the graph's outputs that are kept, and `names`: what the task calls them, or the store.
    """

    graph: str
    session: Graph | ForeignGraph | None
    fixed: Mapping[str, Array]
    own: tuple[tuple[str, str], ...]
    stored: tuple[tuple[str, Stored], ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    returns: tuple[Return, ...]
    grown: tuple[tuple[str, Stored], ...] = ()
    appends: tuple[Append, ...] = ()


class DirectProgram:
    """What every call of one program does."""

    def __init__(self, steps: tuple[_Step, ...]) -> None:
        self.steps = steps
        self.made = 0
        """Bytes that the graphs of the last call made, up to AHEAD: the next counts them before it runs."""
        self._stored = [stored.name for step in steps for _, stored in (*step.stored, *step.grown)]
        self._layouts = -1
        self._extents: list[tuple[int, ...] | None] | None = None
        self._kind: Hashable | None = None

    @classmethod
    def of(cls, instructions: tuple[Instruction, ...], slots: tuple[Slot, ...]) -> DirectProgram | None:
        """The program, or None: the executor carries it out, or says what is wrong with it."""
        own, kept = {slot.name for slot in slots}, set[str]()
        if len(instructions) + len(own) > MAX_STEPS or not all(name.startswith("task/") for name in own):
            return None
        steps: list[_Step] = []
        appends: list[Append] = []
        grown = set[str]()
        for instruction in instructions:
            if isinstance(instruction, Append):
                if not _plain(instruction, own):
                    return None
                appends.append(instruction)
                grown.add(instruction.sequence)
            elif isinstance(instruction, Run):
                step = _step(instruction, own)
                if step is not None and (appends or grown):
                    own_grown = tuple(item for item in step.stored if item[1].name in grown)
                    rest = tuple(item for item in step.stored if item[1].name not in grown)
                    step = replace(step, stored=rest, grown=own_grown, appends=tuple(appends))
                    appends = []
                if step is None or any(stored.name in kept for _, stored in step.stored):
                    return None  # what is stored is looked up before the first step
                own.update(name for name in step.names if name.startswith("task/"))
                kept.update(name for name in step.names if not name.startswith("task/"))
                steps.append(step)
            elif isinstance(instruction, Return) and steps:
                last = steps[-1]
                if instruction.stored not in own | kept or not 0 < len(instruction.name) <= 256:
                    return None
                if any(other.name == instruction.name for other in last.returns):
                    return None
                steps[-1] = replace(last, returns=(*last.returns, instruction))
            else:
                return None
        return cls(tuple(steps)) if steps and not appends else None

    def kind(
        self,
        layouts: int,
        extent: Callable[[str], tuple[int, ...] | None],
        find: Callable[[], Hashable | None],
    ) -> Hashable | None:
        """What `short.kind_of` says of a call, which `find` asks: once while what is stored is alike.

        `extent`: of what is stored, as `kind_of` takes it as `whole`. `layouts`: as of the store.
        """
        if layouts == self._layouts:
            return self._kind
        self._layouts = layouts
        extents = [extent(name) for name in self._stored]
        if extents != self._extents:
            self._kind = find()
            self._extents = extents
        return self._kind


def _step(run: Run, own: set[str]) -> _Step | None:
    session = None
    if isinstance(run, BoundRun):
        if run.given:
            return None
        session = run.session
    fixed: dict[str, Array] = {}
    tensors: list[tuple[str, str]] = []
    stored: list[tuple[str, Stored]] = []
    for name, value in run.inputs.items():
        if not isinstance(value, Stored):
            fixed[name] = value
        elif value.name in own and value.tiles is None:
            tensors.append((name, value.name))
        elif value.name.startswith(("context/", "job/")) and _is_name(value.name):
            stored.append((name, value))
        else:
            return None
    names = tuple(run.outputs.values())
    if not names or not all(name.startswith(("task/", "job/")) and _is_name(name) for name in names):
        return None
    if any(KEPT in name for name in names):
        return None  # it is to be on the disk before the task is done
    outputs = tuple(run.outputs)
    return _Step(run.graph, session, fixed, tuple(tensors), tuple(stored), outputs, names, ())


def _plain(append: Append, own: set[str]) -> bool:
    """Whether it appends what the task has made, where the call says, to a sequence that lies in memory."""
    source = append.source
    return (
        isinstance(source, Stored)
        and source.name in own
        and source.tiles is None
        and append.place in own
        and append.at is None
        and not (append.revision or append.shape)
        and append.sequence.startswith("job/")
        and KEPT not in append.sequence
        and _is_name(append.sequence)
    )


def _is_name(name: str) -> bool:
    try:
        require_stored(name)
    except InvalidArgument:
        return False
    return not name.endswith("/")


class Carried(Protocol):
    """What the executor makes of the same call."""

    def contributions(self) -> Generator[Contribution, None, None]: ...

    def failure(self, error: Exception) -> Contribution: ...


class DirectCall:
    """One task, a call of `program`.

    Args:
        tensors: what is in its slots, by their names.
        graphs: those that the program runs, by digest.
        otherwise: makes the executor's task of the same call.
    """

    def __init__(
        self,
        call: Call,
        program: DirectProgram,
        tensors: dict[str, Array],
        graphs: Mapping[str, Graph | ForeignGraph],
        store: Store,
        stop: Stop,
        otherwise: Callable[[], Carried],
    ) -> None:
        self._call = call
        self._program = program
        self._tensors = tensors
        self._graphs = graphs
        self._store = store
        self._stop = stop
        self._otherwise = otherwise
        self._arrived = time.monotonic()
        self._number = 0
        self._counted = 0
        self._made = 0
        self._left = 0
        """Bytes that are counted, and not made yet."""
        self._run_seconds = 0.0

    def contributions(self) -> Generator[Contribution, None, None]:
        """As the executor's: the last one is final, and says why where the task has failed.

        What a step returns leaves before the next one runs. Nothing is raised.
        """
        for one in self.steps():
            if isinstance(one, Contribution):
                yield one

    def steps(self) -> Generator[Contribution | int, None, None]:
        """The contributions, and before each wait what is waited for: see `edge_node.steps`."""
        try:
            bound = self._bound()
            if bound is None:
                yield ANYTHING
                yield from self._otherwise().contributions()
                return
            steps, own = self._program.steps, self._tensors.values()
            self._count(sum([array.nbytes for array in own]) + self._program.made)
            self._left = self._program.made
            for step, (graph, feeds) in zip(steps, bound, strict=True):
                pending = yield from self._run(step, graph, feeds)
                if step is not steps[-1]:
                    if pending:
                        yield self._contribution(pending, False)
                    self._stop.check()
            self._program.made = min(self._made, AHEAD)
            yield self._contribution(pending, True)
        except Exception as error:
            yield self.failure(error)
        finally:
            self.close()

    def failure(self, error: Exception) -> Contribution:
        """The final contribution of this task when it ended with `error`."""
        failed, took = self._otherwise().failure(error), time.monotonic() - self._arrived
        return replace(failed, number=self._number, run_seconds=self._run_seconds, task_seconds=took)

    def close(self) -> None:
        """Free the task's tensors."""
        self._tensors = {}
        counted, self._counted = self._counted, 0
        if counted:
            self._store.release(counted)

    def _bound(self) -> list[tuple[Graph | ForeignGraph, dict[str, Array]]] | None:
        """The graph of each step, and its inputs that are there before; None: it is not for here."""
        self._stop.check()
        bound: list[tuple[Graph | ForeignGraph, dict[str, Array]]] = []
        for step in self._program.steps:
            graph = step.session or self._graphs[step.graph]
            if graph.remembers:
                return None
            feeds = dict(step.fixed)
            for name, stored in step.stored:
                held = self._store.get(stored.name, stored.tiles)
                if held.origin is not None:
                    return None
                feeds[name] = held.array
            bound.append((graph, feeds))
        return bound

    def _run(
        self, step: _Step, graph: Graph | ForeignGraph, feeds: dict[str, Array]
    ) -> Steps[dict[str, Array | Encoded]]:
        """Run the step's graph; what it returns."""
        tensors = self._tensors
        for append in step.appends:
            self._append(append)
        for name, stored in step.grown:
            held = self._store.get(stored.name, stored.tiles)
            if held.origin is not None:
                raise InvalidProgram(f"{stored.name} is private: it is for tasks that take it from the first")
            feeds[name] = held.array
        for name, own in step.own:
            # A cell is given a copy in any case.
            feeds[name] = tensors[own] if isinstance(graph, ForeignGraph) else own_memory(tensors[own])
        started = time.monotonic()
        try:
            if isinstance(graph, ForeignGraph):
                results = yield from graph.steps(feeds, step.outputs, self._stop)
            else:
                results = graph.run(feeds, step.outputs, self._stop)
        finally:
            self._run_seconds += time.monotonic() - started
        self._stop.check()
        made = 0
        for name, array in zip(step.names, results, strict=True):
            if array.dtype not in TRAVELS:
                DataType.of(array.dtype, name)  # refuses it
            if array.ndim > MAX_RANK:
                raise InvalidTensor(f"{name} has {array.ndim} dimensions; the limit is {MAX_RANK}")
            tensors[name] = array
            if name.startswith("job/"):
                with self._stop.writing:
                    self._stop.check()
                    self._store.put(name, array)
            else:
                made += array.nbytes
        self._made += made
        self._left -= made
        if self._left < 0:
            self._count(-self._left)
            self._left = 0
        pending: dict[str, Array | Encoded] = {}
        for returned in step.returns:
            array, encoding = tensors[returned.stored], returned.encoding
            if encoding is Encoding.RAW:
                pending[returned.name] = array
            else:
                stored_dtype(encoding, array.dtype, returned.stored)  # refuses what cannot travel so
                pending[returned.name] = Encoded(array, encoding)
        return pending

    def _append(self, append: Append) -> None:
        source = append.source
        assert isinstance(source, Stored)
        rows, at = placed(append, self._tensors[source.name], Held(self._tensors[append.place]))
        require_sequence(self._store, append.sequence, at)
        with self._stop.writing:
            self._stop.check()
            self._store.append(append.sequence, rows, at, append.tile)

    def _count(self, size: int) -> None:
        """Raises OutOfMemory if the store has no room for so many bytes beside what it holds."""
        if size:
            self._store.reserve(size, "what a task keeps")
            self._counted += size

    def _contribution(self, tensors: Mapping[str, Array | Encoded], final: bool) -> Contribution:
        call, number = self._call, self._number
        self._number = number + 1
        run = task = 0.0
        if final:
            run, task = self._run_seconds, time.monotonic() - self._arrived
        return Contribution(
            call.task_id, call.shard, call.coverage, call.version, number, tensors, (), final, None, run, task
        )
