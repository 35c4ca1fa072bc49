"""The daemon's half of what is said on a lane: a graph goes to a cell, tensors go there and come back.

What the cell answers is foreign. Raised from here: Nonsense (it said what cannot be), Gone or OSError (it has
ended), and the errors of the catalogue that a graph may fail with.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram, OutOfMemory
from edge_attention.core.printable import shown
from edge_attention.core.tensors import MAX_RANK, Array, DataType
from edge_node.cell.messages import (
    ALIGNMENT,
    DESCRIPTORS,
    DTYPES,
    HEAD,
    KEPT_BYTES,
    LARGE,
    WINDOW,
    CellKind,
    Channel,
    Frame,
    Message,
    Nonsense,
    Placed,
    dims_of,
    encoded,
    keep,
    names_of,
    text_of,
    types_of,
)
from edge_node.cell.outputs import OutputMemory
from edge_node.sessions import Inputs, require_feeds
from edge_node.shared_memory import allocate, find, seal, shared
from edge_node.steps import ANYTHING, Steps

MAPPED = 512 * 1024
"""Bytes from which an input is mapped by the cell, where it can be; of less, a copy is quicker."""

_FAILURES: dict[str, type[EdgeAttentionError]] = {
    "InvalidGraph": InvalidGraph,
    "InvalidProgram": InvalidProgram,
    "OutOfMemory": OutOfMemory,
}


_NOTHING: Mapping[str, Array] = {}


class Gone(Exception):
    """The cell ended under the job."""


class Stoppable(Protocol):
    """A task that may be told to end. `check` raises if it was; `watch` calls back when it is, or was."""

    def check(self) -> None: ...

    def watch(self, callback: Callable[[], None]) -> None: ...

    def unwatch(self, callback: Callable[[], None]) -> None: ...


def within_reach(constants: Mapping[str, Array]) -> dict[str, Array]:
    """Those that a cell can map, copied to where it can if need be; as many as one message has room for."""
    found: dict[str, Array] = {}
    for name, array in constants.items():
        array = shared(array)
        if find(array) is not None and len(found) < DESCRIPTORS - 1:
            found[name] = array
    return found


class GraphFile:
    """A graph's bytes where every cell can read them; `digest` is of the file that was sent.

    `constants`: what is not in the file, as `within_reach` has found it; `weight`: bytes of all of it.
    `any_rank`: inputs that may have any number of dimensions: ONNX Runtime says [] of them, as of a scalar.
    `sent`: the digest of the graph that somebody sent, where this is that one with constants: what it does to
    its process is counted against that one, whatever the constants.
    """

    def __init__(
        self,
        digest: str,
        data: bytes,
        constants: Mapping[str, Array] = _NOTHING,
        any_rank: frozenset[str] = frozenset(),
        sent: str = "",
    ) -> None:
        """Raises OutOfMemory."""
        self.digest = digest
        self.sent = sent or digest
        self.any_rank = any_rank
        self.size = len(data)
        self.constants = constants
        self.weight = len(data) + sum([array.nbytes for array in constants.values()])
        self.descriptor = -1
        try:
            self.descriptor = allocate(self.size)
            view, done = memoryview(data), 0
            while done < self.size:
                done += os.pwrite(self.descriptor, view[done:], done)
            seal(self.descriptor)
        except OSError as error:
            text = f"graph {digest[:12]}: no memory for its {self.size:,} bytes: {error.strerror}"
            raise OutOfMemory(text) from None

    def read(self) -> bytes:
        """The bytes, copied."""
        return os.pread(self.descriptor, self.size, 0)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The shapes of all inputs of a run, by name."""
RunForm = tuple[tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...], tuple[str, ...]]
"""What runs of a graph are alike in: names, types and shapes of the inputs, in order, and the outputs."""
Said = tuple[bytes, list[Placed]]
"""The head of an answer, and what was found to be said there."""
_LEARNED = 16
"""Runs with other shapes whose outputs are remembered."""


@dataclass(eq=False)
class RepeatedRun:
    """A run whose inputs all lie in the window, for those that are like it.

    `text`: its head; `starts`: where each input is; `said`: the head of the last answer, and what was found
    to be said there. By lane: where its inputs are written, and the outputs of which answer are read where.
    Lanes are at it at the same time.
    """

    text: bytes
    starts: list[int]
    said: Said = (b"", [])
    _inputs: dict[int, list[Array]] = field(default_factory=dict)
    _outputs: dict[int, tuple[Said, list[Array]]] = field(default_factory=dict)

    def put(self, channel: Channel, feeds: Mapping[str, Array]) -> None:
        """Write the inputs of a run like this one."""
        views = self._inputs.get(channel.descriptor)
        if views is None:
            views = [channel.view(data, at) for data, at in zip(feeds.values(), self.starts, strict=True)]
            self._inputs[channel.descriptor] = views
        for view, data in zip(views, feeds.values(), strict=True):
            view[...] = data

    def results(self, channel: Channel, said: Said) -> list[Array]:
        """The outputs of an answer that says `said`."""
        before, views = self._outputs.get(channel.descriptor, (None, []))
        if before is not said:
            views = [np.ndarray(of.shape, of.dtype, channel.reads, of.offset) for of in said[1]]
            self._outputs[channel.descriptor] = said, views
        return [view.copy() for view in views]


@dataclass(eq=False)
class KnownGraph:
    """A graph that is loaded in the cell, as the cell says: what it takes and what it gives."""

    inputs: Inputs
    outputs: Inputs
    size: int
    file: weakref.ref[GraphFile]
    missed: bool = False
    """An output had another shape than was expected: none is expected any more."""
    runs: dict[RunForm, RepeatedRun] = field(default_factory=dict)
    _learned: dict[tuple[Shapes, str], Placed] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether somebody may ask for it again."""
        return self.file() is not None

    def expected(self, shapes: Shapes, outputs: Sequence[str], limit: int) -> dict[int, Placed]:
        """Outputs, by number, whose type is known beforehand and which are worth making room for."""
        found: dict[int, Placed] = {}
        for n, name in enumerate(outputs if not self.missed else ()):
            placed = self._learned.get((shapes, name))
            if placed is None:
                dtype, dims = self.outputs[name]
                sizes = tuple(size for size in dims if type(size) is int and size >= 0)
                if len(sizes) < len(dims) or len(sizes) > MAX_RANK:
                    continue
                placed = Placed(dtype, sizes, -1, 0)
            if LARGE <= placed.nbytes <= limit and len(found) < DESCRIPTORS // 2 - 1:
                found[n] = placed
        return found if sum(placed.nbytes for placed in found.values()) <= limit else {}

    def learn(self, shapes: Shapes, outputs: Sequence[str], types: Sequence[Placed]) -> None:
        """A run has ended with outputs of these types."""
        if self.missed:
            return
        for name, placed in zip(outputs, types, strict=True):
            if placed.nbytes < LARGE:
                continue
            keep(self._learned, (shapes, name), placed, _LEARNED * len(self.outputs))


def _heard(channel: Channel, stop: Stoppable, *expected: CellKind) -> Message:
    """The cell's answer."""
    return _read(channel, channel.take(), stop, expected)


def _answered(channel: Channel, stop: Stoppable) -> Steps[Message]:
    """The cell's answer to a run."""
    yield channel.descriptor
    frame = channel.take()
    if frame is not None and frame[1] > KEPT_BYTES:
        yield ANYTHING  # one of 1 MiB would hold an event loop for too long
    return _read(channel, frame, stop, (CellKind.DONE, CellKind.NEED))


def _read(channel: Channel, frame: Frame | None, stop: Stoppable, expected: tuple[CellKind, ...]) -> Message:
    if frame is None:
        raise Gone
    message = channel.read(frame)
    if message.kind is CellKind.FAILED:
        name, text = message.head.get("error"), shown(text_of(message.head.get("text")))
        if name == "Stopped":
            stop.check()
        if name not in _FAILURES:
            raise Nonsense("an error that is none")
        raise _FAILURES[name](text)
    if message.kind not in expected:
        raise Nonsense(f"{message.kind.name} out of turn")
    return message


def load(
    channel: Channel, number: int, graph: GraphFile, forgotten: list[str], stop: Stoppable
) -> KnownGraph:
    places: list[list[Any]] = []
    descriptors = [graph.descriptor]
    for name, array in graph.constants.items():
        where = find(array)
        assert where is not None  # as it was when the graph was made
        region, start = where
        places.append([name, DTYPES[array.dtype], array.shape, len(descriptors), start])
        descriptors.append(region.descriptor)
    head = {"graph": graph.digest, "size": graph.size, "forget": forgotten, "constants": places}
    channel.send(CellKind.LOAD, head, descriptors, number)
    head = _heard(channel, stop, CellKind.LOADED).head
    found = _declared(head.get("in")), _declared(head.get("out"))
    return KnownGraph(*found, graph.weight, weakref.ref(graph))


def _declared(value: Any) -> Inputs:
    """Names, element types and dimensions. Raises Nonsense."""
    found: Inputs = {}
    if not isinstance(value, list) or not all(isinstance(item, list) and len(item) == 3 for item in value):
        raise Nonsense("inputs or outputs that are none")
    names_of([item[0] for item in value])
    for name, kind, dims in value:
        try:
            found[name] = (np.dtype(DataType(kind).value), dims_of(dims))
        except ValueError:
            raise Nonsense("an element type that does not travel") from None
    return found


def run(
    channel: Channel,
    number: int,
    graph: GraphFile,
    known: KnownGraph,
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    stop: Stoppable,
    limit: int,
) -> Steps[list[Array]]:
    """The outputs; see Cell.run. Those of a known size are computed where they will stay."""
    digest = graph.digest
    form = (tuple([(name, array.dtype, array.shape) for name, array in feeds.items()]), tuple(outputs))
    message, expected = None, dict[int, Placed]()
    again = known.runs.get(form)
    if again is not None:
        again.put(channel, feeds)
        channel.send(CellKind.RUN, again.text, (), number)
        message = yield from _answered(channel, stop)
        said = again.said  # of a run in another lane it may be another one at any moment
        if message.text == said[0] and message.kind is CellKind.DONE:
            return again.results(channel, said)
    else:  # one like it was found to fit
        require_feeds(digest, known.inputs, known.outputs, feeds, outputs, graph.any_rank)
    memory = OutputMemory(f"graph {digest[:12]}", limit)
    try:
        if message is None:
            expected = _first(channel, number, digest, known, form, feeds, memory)
            message = yield from _answered(channel, stop)
        if message.kind is CellKind.NEED:
            yield ANYTHING  # it gets memory, and copies what is large: that is for no event loop
        return _results(channel, known, form, message, expected, stop, memory)
    finally:
        memory.close()


def _first(
    channel: Channel,
    number: int,
    digest: str,
    known: KnownGraph,
    form: RunForm,
    feeds: Mapping[str, Array],
    memory: OutputMemory,
) -> dict[int, Placed]:
    """Ask for a run that is like none before; the outputs that `memory` was made for."""
    outputs = form[1]
    expected = known.expected(_shapes(form), outputs, memory.limit)
    try:
        made, rooms = memory.make(expected) if expected else ({}, [])
    except OutOfMemory:
        memory.close()
        expected, made, rooms = {}, {}, []
    places, descriptors, packed = _place(channel, feeds, digest)
    try:
        head = {"graph": digest, "names": list(feeds), "in": places, "out": list(outputs)}
        if made:
            head["made"] = [
                [n, expected[n].dtype.name, list(expected[n].shape), len(descriptors) + room, offset]
                for n, (room, offset) in made.items()
            ]
        text = encoded(head)
        channel.send(CellKind.RUN, text, [*descriptors, *rooms], number)
    except ValueError as error:
        raise InvalidProgram(f"graph {digest[:12]}: {error}") from None
    finally:
        if packed is not None:
            os.close(packed)
    small = all(array.nbytes < MAPPED for array in feeds.values())  # else it may be mapped next time
    if small and not descriptors and not made and len(text) <= KEPT_BYTES:
        keep(known.runs, form, RepeatedRun(text, [place[3] for place in places]))
    return expected


def _results(
    channel: Channel,
    known: KnownGraph,
    form: RunForm,
    message: Message,
    expected: dict[int, Placed],
    stop: Stoppable,
    memory: OutputMemory,
) -> list[Array]:
    """The outputs of which the cell has answered `message`."""
    outputs = form[1]
    types = types_of(message.head.get("out"), places=message.kind is CellKind.DONE)
    if len(types) != len(outputs):
        raise Nonsense("another number of outputs")
    if expected and message.head.get("made") is not True:
        memory.close()
        known.missed = True
        expected = {}
    if any(types[n][:2] != placed[:2] for n, placed in expected.items()):
        raise Nonsense("outputs of other sizes than it was given memory for")
    if message.kind is CellKind.NEED:
        known.runs.pop(form, None)  # next time there may be memory from the start
        _give_room(channel, memory, {n: t for n, t in enumerate(types) if n not in memory}, stop)
    elif sum(t.nbytes for n, t in enumerate(types) if n not in memory) > WINDOW:
        raise Nonsense("outputs on top of each other")  # a copy of each could be all memory
    taken = memory.take({n: placed for n, placed in enumerate(types) if n in memory})
    known.learn(_shapes(form), outputs, types)
    found = [taken[n] if n in taken else _copy_out(channel, placed) for n, placed in enumerate(types)]
    again = known.runs.get(form)
    if again is not None and message.kind is CellKind.DONE and not taken and len(message.text) <= KEPT_BYTES:
        again.said = message.text, types
    return found


def _shapes(form: RunForm) -> Shapes:
    return tuple(sorted((name, shape) for name, _, shape in form[0]))


def _give_room(channel: Channel, memory: OutputMemory, types: dict[int, Placed], stop: Stoppable) -> None:
    """The cell gets memory for the outputs it has, and writes them there; or is told that there is none."""
    try:
        made, rooms = memory.make(types)
    except OutOfMemory:
        channel.send(CellKind.ROOM, {"out": None})
        _heard(channel, stop, CellKind.DONE)
        raise
    channel.send(CellKind.ROOM, {"out": [[n, room, offset] for n, (room, offset) in made.items()]}, rooms)
    _heard(channel, stop, CellKind.DONE)


def _copy_out(channel: Channel, placed: Placed) -> Array:
    end = placed.offset + placed.nbytes
    if placed.where != -1 or placed.offset < HEAD or end > WINDOW or placed.offset % ALIGNMENT:
        raise Nonsense("an output outside its window")
    return np.ndarray(placed.shape, placed.dtype, channel.reads, placed.offset).copy()


def _place(
    channel: Channel, feeds: Mapping[str, Array], digest: str
) -> tuple[list[list[Any]], list[int], int | None]:
    """Where each input lies, and the descriptors to send; the last of these, if given again, is to be closed.

    What has a region of its own is not copied; small ones go to the window, the rest to one descriptor.
    """
    channel.begin()
    places: list[list[Any]] = []
    numbers: dict[int, int] = {}  # a region's descriptor -> its number in the message
    left: list[tuple[list[Any], Array]] = []
    end = 0
    for array in feeds.values():
        found = find(array) if array.nbytes >= MAPPED else None
        where, start = -1, None
        if found is not None and (found[0].descriptor in numbers or len(numbers) < DESCRIPTORS // 2 - 1):
            where = numbers.setdefault(found[0].descriptor, len(numbers))
            start = found[1] if found[1] % array.itemsize == 0 else None
        if start is None:
            where, start = -1, channel.place(array)
        places.append([DTYPES[array.dtype], array.shape, where, start])
        if start is None:
            places[-1][3] = end
            left.append((places[-1], array))
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    if not left:
        return places, list(numbers), None
    packed = -1
    try:
        packed = allocate(end)
        for place, array in left:
            place[2] = len(numbers)
            view, done = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, 0
            while done < array.nbytes:
                done += os.pwrite(packed, view[done:], place[3] + done)
        seal(packed)
    except OSError as error:
        if packed >= 0:
            os.close(packed)
        raise OutOfMemory(f"graph {digest[:12]}: no memory for its inputs: {error.strerror}") from None
    return places, [*numbers, packed], packed
