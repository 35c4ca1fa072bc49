"""The daemon's half of what is said on a lane: a graph goes to a cell, tensors go there and come back.

What the cell answers is foreign. Raised from here: Nonsense (it said what cannot be), Gone or OSError (it has
ended), and the errors of the catalogue that a graph may fail with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram, OutOfMemory
from edge_attention.core.printable import shown
from edge_attention.core.tensors import Array, DataType
from edge_attention.shared_memory import LEAST, Region, allocate, find, map_region, seal
from edge_node.cell_messages import (
    ALIGNMENT,
    DESCRIPTORS,
    HEAD,
    LARGE,
    WINDOW,
    Channel,
    Kind,
    Message,
    Nonsense,
    Placed,
    dims_of,
    names_of,
    text_of,
    types_of,
)
from edge_node.sessions import Inputs

_FAILURES: dict[str, type[EdgeAttentionError]] = {
    "InvalidGraph": InvalidGraph,
    "InvalidProgram": InvalidProgram,
    "OutOfMemory": OutOfMemory,
}


class Gone(Exception):
    """The cell ended under the job."""


class Stoppable(Protocol):
    """A task that may be told to end. `check` raises if it was; `watch` calls back when it is, or was."""

    def check(self) -> None: ...

    def watch(self, callback: Callable[[], None]) -> None: ...

    def unwatch(self, callback: Callable[[], None]) -> None: ...


class GraphFile:
    """A graph's bytes where every cell can read them; `digest` is of the file that was sent."""

    def __init__(self, digest: str, data: bytes) -> None:
        """Raises OutOfMemory."""
        self.digest, self.size = digest, len(data)
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

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True)
class Known:
    """A graph that is loaded in the cell, as the cell says."""

    inputs: Inputs
    outputs: frozenset[str]
    size: int


def _heard(channel: Channel, stop: Stoppable, *expected: Kind) -> Message:
    """The cell's answer. A cell sends no descriptors."""
    message = channel.receive()
    if message is None:
        raise Gone
    if message.descriptors:
        for descriptor in message.descriptors:
            os.close(descriptor)
        raise Nonsense("descriptors that nobody asked for")
    if message.kind is Kind.FAILED:
        name, text = message.head.get("error"), shown(text_of(message.head.get("text")))
        if name == "Stopped":
            stop.check()
        if name not in _FAILURES:
            raise Nonsense("an error that is none")
        raise _FAILURES[name](text)
    if message.kind not in expected:
        raise Nonsense(f"{message.kind.name} out of turn")
    return message


def load(channel: Channel, number: int, graph: GraphFile, forgotten: list[str], stop: Stoppable) -> Known:
    head = {"graph": graph.digest, "job": number, "size": graph.size, "forget": forgotten}
    channel.send(Kind.LOAD, head, [graph.descriptor])
    head = _heard(channel, stop, Kind.LOADED).head
    inputs = {}
    found = head.get("in")
    if not isinstance(found, list) or not all(isinstance(item, list) and len(item) == 3 for item in found):
        raise Nonsense("inputs that are none")
    for name, kind, dims in found:
        names_of([name])
        try:
            inputs[name] = (np.dtype(DataType(kind).value), dims_of(dims))
        except ValueError:
            raise Nonsense("an element type that does not travel") from None
    return Known(inputs, frozenset(names_of(head.get("out"))), graph.size)


def run(
    channel: Channel,
    number: int,
    digest: str,
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    stop: Stoppable,
    limit: int,
) -> list[Array]:
    places, descriptors, packed = _place(channel, feeds, digest)
    try:
        head = {"graph": digest, "job": number, "names": list(feeds), "in": places, "out": list(outputs)}
        channel.send(Kind.RUN, head, descriptors)
    except ValueError as error:
        raise InvalidProgram(f"graph {digest[:12]}: {error}") from None
    finally:
        if packed is not None:
            os.close(packed)
    message = _heard(channel, stop, Kind.DONE, Kind.NEED)
    if message.kind is Kind.DONE:
        found_types = types_of(message.head.get("out"), places=True)
        if len(found_types) != len(outputs):
            raise Nonsense("another number of outputs")
        return [_copy_out(channel, placed) for placed in found_types]
    return _large(channel, digest, types_of(message.head.get("out"), places=False), outputs, stop, limit)


def _large(
    channel: Channel, digest: str, types: list[Placed], outputs: Sequence[str], stop: Stoppable, limit: int
) -> list[Array]:
    """Outputs that the window does not hold: each large one gets memory of its own, the others share some."""
    if len(types) != len(outputs):
        raise Nonsense("another number of outputs")
    total = sum(placed.nbytes for placed in types)
    sizes: list[int] = []
    plan: list[tuple[int, int]] = []
    shared, end = [n for n, placed in enumerate(types) if placed.nbytes < LARGE], 0
    own = [n for n, placed in enumerate(types) if placed.nbytes >= LARGE]
    own, more = own[: DESCRIPTORS - 1], own[DESCRIPTORS - 1 :]
    where = {n: (number, 0) for number, n in enumerate(own)}
    sizes = [types[n].nbytes for n in own]
    for n in [*shared, *more]:
        where[n] = (len(own), end)
        end += -(-types[n].nbytes // ALIGNMENT) * ALIGNMENT
    sizes += [end] if end else []
    plan = [where[n] for n in range(len(types))]
    error: EdgeAttentionError | None = None
    descriptors: list[int] = []
    try:
        if total > limit:
            text = f"graph {digest[:12]}: its outputs take {total:,} bytes; --memory-limit is {limit:,}"
            error = OutOfMemory(text)
        else:
            try:
                descriptors.extend(map(allocate, sizes))
            except OSError as reason:
                error = OutOfMemory(f"graph {digest[:12]}: no memory for its outputs: {reason.strerror}")
        if error is not None:
            channel.send(Kind.ROOM, {"out": None})
            with contextlib.suppress(EdgeAttentionError):
                _heard(channel, stop, Kind.DONE)
            raise error
        channel.begin()
        channel.send(Kind.ROOM, {"out": [list(place) for place in plan]}, descriptors)
        _heard(channel, stop, Kind.DONE)
        regions: list[Region] = []
        for descriptor, size in zip(list(descriptors), sizes, strict=True):
            try:
                seal(descriptor)
            except OSError:
                raise Nonsense("outputs that it goes on writing") from None
            try:
                region = map_region(os.dup(descriptor), size)
            except OSError as reason:
                raise OutOfMemory(
                    f"graph {digest[:12]}: no room for its outputs: {reason.strerror}"
                ) from None
            region.shareable = True
            regions.append(region)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    results = []
    for placed, (number, offset) in zip(types, plan, strict=True):
        array = regions[number].array(offset, placed.shape, placed.dtype)
        # What shares memory would keep all of it for the least of it.
        results.append(array if number < len(own) else array.copy())
    return results


def _copy_out(channel: Channel, placed: Placed) -> Array:
    end = placed.offset + placed.nbytes
    if placed.where != -1 or placed.offset < HEAD or end > WINDOW or placed.offset % ALIGNMENT:
        raise Nonsense("an output outside its window")
    return channel.reads[placed.offset : end].view(placed.dtype).reshape(placed.shape).copy()


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
        found = find(array) if array.nbytes >= LEAST else None
        where, start = -1, None
        if found is not None and (found[0].descriptor in numbers or len(numbers) < DESCRIPTORS - 1):
            where = numbers.setdefault(found[0].descriptor, len(numbers))
            start = found[1] if found[1] % array.itemsize == 0 else None
        if start is None:
            where, start = -1, channel.place(array)
        places.append([array.dtype.name, list(array.shape), where, start])
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
