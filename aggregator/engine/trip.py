"""The trip: the one call that recipes make. It lends, asks, gathers, checks, and says in data how it ended.

    errands ──> lend what is large ──> one exchange ──> each message checked ──> whole answers to `take`
                     taken back, however it ends <──┘                       └──> what is missing, and why

A recipe says what each shard is asked and what is to come back; what an answer means is the recipe's.
Nobody else runs exchanges: tests/aggregator/engine/test_trip.py looks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from aggregator.engine.arriving import OnDisk, Rows
from aggregator.engine.bulk import Bulk
from aggregator.engine.dispatch import Dispatcher
from aggregator.engine.exchange import REFUSALS
from aggregator.engine.outcome import Outcome
from aggregator.engine.prepared import PreparedData, Repeated
from aggregator.engine.returned import Returned, ReturnedTensor, close
from aggregator.engine.shards import Assignment
from aggregator.engine.spool import SpooledTensor
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor, ResourceExhausted
from edge_attention.core.messages.program import (
    CALL_BYTES,
    SLOT_BYTES,
    BulkTensor,
    Frozen,
    Instruction,
    Repeat,
    Return,
)
from edge_attention.core.tensors import Array, own_memory

AT_ONCE = 256
"""Errands that are looked at in one step of the loop."""

ARRAYS_LIMIT = 512 * 1024 * 1024
"""Bytes of one shard's answer that are loaded; a recipe that takes more reads them in pieces."""

FEW, SMALL = 16, 64 * 1024
"""Of more errands each call brings less: they all wait in memory until they are sent."""

Wanted = tuple[np.dtype[Any] | None, Sequence[int | str] | None]
"""What a tensor is to be: dtype and shape, by dimension a size or, for any, a name. None: any."""

_NONE: Mapping[str, Array] = {}

Take = Callable[[Returned], None]
"""Takes what came; raises an EdgeAttentionError to refuse it, and another holder is asked."""


@dataclass(frozen=True, eq=False)
class Errand:
    """What one shard is asked.

    Attributes:
        holders: nodes that can answer, those to be asked first in front.
        coverage: what of the whole the answer stands for.
        wanted: what is to come back, by name: all of it, nothing else, and nothing more often than the
            instructions return it.
        inline: tensors that travel with its program, whatever their size, besides those of the whole trip.
        tensors: the same, but those that are large are lent for the length of the trip: of a program that
            freezes something the largest, until the others are CALL_BYTES, with those of the whole trip.
        lent: tensors that the caller lends.
        releases: texts of the releases that what comes back needs (edge_attention/core/release.py).
        frozen: stored tensors that become constants of the graphs that read them.
        prepared: the program that all this comes to, where the recipe has made it (`prepared.prepare`), once
            for all trips alike: it is called, with `inline` in its slots; `tensors` are lent.

    Instructions that are the very same as of an earlier trip, with tensors of the same shapes, are called:
    who asks the same again keeps them, or better its `Errands`.
    """

    shard: str
    holders: tuple[str, ...]
    coverage: range
    instructions: tuple[Instruction, ...]
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    inline: Mapping[str, Array] = field(default_factory=dict)
    tensors: Mapping[str, Rows] = field(default_factory=dict)
    lent: tuple[BulkTensor, ...] = ()
    releases: tuple[str, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    prepared: PreparedData | None = None


class Errands:
    """What one trip asks, kept for the next ones: alike but for the tensors that all of it shares.

    What follows from it is found once, and not on the way of each answer. Who keeps it makes another one
    where somebody else is to be asked.
    """

    def __init__(self, errands: Iterable[Errand]) -> None:
        self.all = tuple(errands)
        self.by_shard = {errand.shard: errand for errand in self.all}
        self._calls: tuple[Assignment, ...] | None = None
        self._like: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []

    def calls(self, tensors: Mapping[str, Array]) -> tuple[Assignment, ...] | None:
        """What was asked before, if all of it was called and these shared `tensors` are like those then."""
        if self._calls is None or _like(tensors) != self._like:
            return None
        return self._calls

    def keep(self, assignments: Sequence[Assignment], tensors: Mapping[str, Array]) -> None:
        """These are what is asked with tensors as these."""
        if all(one.prepared is not None and one.tensors is None for one in assignments):
            self._calls, self._like = tuple(assignments), _like(tensors)


def _like(tensors: Mapping[str, Array]) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    return [(name, array.dtype, array.shape) for name, array in tensors.items()]


class Trips:
    """Makes trips: the only caller of the dispatcher's `run`."""

    def __init__(self, dispatcher: Dispatcher, bulk: Bulk) -> None:
        self._dispatcher = dispatcher
        self._bulk = bulk
        self._repeated = Repeated()

    async def make(
        self,
        errands: Sequence[Errand] | Errands,
        seconds: float,
        take: Take = lambda answer: None,
        *,
        each: Take | None = None,
        tensors: Mapping[str, Array] = _NONE,
        version: int = 0,
        believed: tuple[type[EdgeAttentionError], ...] = REFUSALS,
        say: Callable[[str], None] | None = None,
        spooled: bool = False,
        patient: bool = True,
        lying: bool = False,
    ) -> Outcome:
        """Ask every shard, for `seconds` at most; how it ended.

        Args:
            take: gets each shard's whole answer, all it returned, once: what the outcome calls answered.
            each: gets every message of an answer before that, as it comes: it may be of an answer that
                never gets whole, and of one shard from several nodes in turn.
            tensors: travel with every errand's program, whatever their size.
            version: of the parameters that the answers are to be made with.
            believed: errors that end the trip where every holder of a shard names one.
            say: told which node is waited for while it is away and until when, and "" when it is back.
            spooled: `take` gets large tensors as `SpooledTensor`s, and closes them; otherwise as arrays.
            patient: whether a node that is away is waited for until its lease ends, where no other holder can
                be asked; else what it was asked is missing at once.
            lying: `take` and `each` get large arrays as they lie in the message: not aligned, and all of it
                stays in memory as long as one of them; otherwise in memory of their own.

        Raises:
            EdgeAttentionError: what every holder of a shard finds wrong with what it is asked. Nothing that
                was lent stays lent, and nothing that came stays on the disk, answers taken included.
        """
        asked = errands if isinstance(errands, Errands) else Errands(errands)
        gathering = _Gathering(asked.by_shard, take, each, spooled, lying)
        lent: list[BulkTensor] = []
        try:
            assignments: Sequence[Assignment] | None = asked.calls(tensors)
            if assignments is None:
                until = time.monotonic() + seconds
                assignments = await self._assigned(asked, tensors, lent)
                if lent:
                    seconds = max(until - time.monotonic(), 0.0)  # to lend takes its time, too
            return await self._dispatcher.run(
                assignments,
                seconds,
                gathering.add,
                say,
                believed=believed,
                version=version,
                tensors=tensors,
                patient=patient,
            )
        except BaseException:
            gathering.close_taken()
            raise
        finally:
            gathering.close()
            for tensor in lent:
                self._bulk.take_back(tensor.digest)

    async def _assigned(
        self, asked: Errands, shared: Mapping[str, Array], lent: list[BulkTensor]
    ) -> Sequence[Assignment]:
        """What the errands come to. `lent`: gets what is lent for that, also where it raises."""
        assignments: list[Assignment] = []
        limit = SLOT_BYTES if len(asked.all) <= FEW else SMALL
        for number, errand in enumerate(asked.all, 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            own: Mapping[str, Array] | None = None
            if errand.inline:  # that very mapping where it can be: it is encoded once for all who share it
                own = {**shared, **errand.inline} if shared else errand.inline
            bulk = errand.lent
            inline: Mapping[str, Array] = shared if own is None else own
            rows = errand.tensors
            if rows and (errand.frozen or errand.prepared is not None):
                if errand.prepared is None:
                    inline, rows = _within_a_call(inline, rows)
                _, large = await self._bulk.lend_rows(rows, limit=0)
                lent += large
                own, bulk, rows = inline, (*bulk, *large), _NONE
            prepared, called = errand.prepared, inline
            if prepared is None:
                prepared, called = self._called(errand, inline, rows, limit)
            if rows:
                if prepared is not None:
                    own = called
                else:
                    small, large = await self._bulk.lend_rows(rows)
                    lent += large
                    own, bulk = {**inline, **small} if inline else small, (*bulk, *large)
            assignments.append(
                Assignment(
                    shard=errand.shard,
                    holders=errand.holders,
                    coverage=errand.coverage,
                    instructions=errand.instructions,
                    tensors=own,
                    bulk_tensors=bulk,
                    releases=errand.releases,
                    prepared=prepared,
                )
            )
        asked.keep(assignments, shared)
        return assignments

    def _called(
        self, errand: Errand, inline: Mapping[str, Array], rows: Mapping[str, Rows], limit: int
    ) -> tuple[PreparedData | None, Mapping[str, Array]]:
        """The prepared program that the errand is a call of, if it is, and what is in its slots.

        Raises whatever `Repeated.find` raises.
        """
        tensors = {**inline, **rows} if rows else inline
        on_disk = any(isinstance(one, OnDisk) for one in rows.values())
        if (errand.lent or on_disk) and not errand.frozen:
            return None, {}
        arrays = cast(Mapping[str, Array], tensors)
        return self._repeated.find(errand.instructions, arrays, errand.releases, errand.frozen, limit), arrays

    def watch(self, hear: Callable[[str], None]) -> None:
        """Have `hear` called with the name of a node whose state changed, once trips under way have heard."""
        self._dispatcher.watch(hear)

    def post(self, node: str, instructions: tuple[Instruction, ...]) -> None:
        """Have `node` run instructions nobody waits for, if it is connected."""
        self._dispatcher.post(node, instructions)

    async def all_live(self, names: Sequence[str], patience: float, say: Callable[[str], None]) -> bool:
        """Wait until every node of `names` is live, at most `patience` seconds; whether they are.

        `say` is told who is waited for and until when, and "" at the end.
        """
        return await self._dispatcher.all_live(names, patience, say)


def _within_a_call(
    inline: Mapping[str, Array], rows: Mapping[str, Rows]
) -> tuple[dict[str, Array], dict[str, Rows]]:
    """What of `rows` a call brings beside `inline`, with that; and what does not fit, the largest."""
    brought = dict(inline)
    left = CALL_BYTES - sum([array.nbytes for array in inline.values()])
    lent: dict[str, Rows] = {}
    for name, one in sorted(rows.items(), key=lambda item: item[1].nbytes):
        left -= one.nbytes
        if left < 0 or isinstance(one, OnDisk):
            lent[name] = one
        else:
            brought[name] = one
    return brought, lent


class _Gathering:
    """Answers of one trip as they come: checked, and handed on when they are whole."""

    def __init__(
        self, errands: Mapping[str, Errand], take: Take, each: Take | None, spooled: bool, lying: bool
    ) -> None:
        self._errands = errands
        self._take = take
        self._each = each
        self._spooled = spooled
        self._lying = lying
        self._parts: dict[str, dict[str, ReturnedTensor]] = {}
        self._times: dict[str, Counter[str]] = {}
        self._taken: list[Returned] = []

    def add(self, returned: Returned) -> None:
        """Take a message of an answer.

        Raises:
            InvalidTensor: it is not what was asked for. Nothing of that answer is kept.
            Whatever the recipe raises, the same.
        """
        shard = returned.shard
        try:
            self._add(self._errands[shard], returned if self._lying else _apart(returned))
        except BaseException:
            self._drop(shard)
            raise

    def close(self) -> None:
        """Close the answers that are not whole."""
        for shard in list(self._parts):
            self._drop(shard)

    def close_taken(self) -> None:
        """Close the answers that the recipe has been given, too: the trip fails, so it gets no outcome."""
        for answer in self._taken:
            answer.close()

    def _add(self, errand: Errand, returned: Returned) -> None:
        shard = returned.shard
        if returned.number == 0 and shard in self._parts:
            self._drop(shard)  # of a node that did not come to its end
        whole = returned.final and returned.number == 0  # as most are: nothing is to be kept
        before = {} if whole else self._parts.setdefault(shard, {})
        wanted = errand.wanted
        for name, tensor in returned.tensors.items():
            if name in before:
                self._again(errand, name)
            if (tensor.dtype, tensor.shape) != wanted.get(name) and (
                wrong := misfit(name, tensor, wanted.get(name))
            ):
                raise InvalidTensor(f"it returned {wrong}")
        parts: Mapping[str, ReturnedTensor] = returned.tensors
        if not whole:
            close({name: before[name] for name in returned.tensors if name in before})
            before.update(returned.tensors)
            parts = before
        if self._each is not None:
            self._each(returned)
        if not returned.final:
            return
        if len(parts) < len(errand.wanted):
            lacking = [name for name in errand.wanted if name not in parts]
            raise InvalidTensor(f"it did not return {', '.join(lacking[:5])}")
        answer = replace(returned, tensors=parts) if returned.number else returned
        # Most are small: nothing of them is on the disk.
        on_disk = [tensor for tensor in parts.values() if isinstance(tensor, SpooledTensor)]
        if on_disk and not self._spooled:
            answer = _loaded(answer)
        self._take(answer)
        self._parts.pop(shard, None)
        self._times.pop(shard, None)
        if self._spooled:
            self._taken.append(answer)
        elif on_disk:
            close(parts)

    def _again(self, errand: Errand, name: str) -> None:
        """A tensor of that name has come before: as often as the instructions say it may."""
        times = self._times.setdefault(errand.shard, Counter())
        times[name] = max(times[name], 1) + 1
        if times[name] > _returns(errand.instructions, name):
            raise InvalidTensor(f"it returned {name} {'twice' if times[name] == 2 else 'too often'}")

    def _drop(self, shard: str) -> None:
        close(self._parts.pop(shard, {}))
        self._times.pop(shard, None)


def _apart(returned: Returned) -> Returned:
    """`returned` with arrays in memory of their own."""
    tensors: dict[str, ReturnedTensor] = {}
    for name, tensor in returned.tensors.items():
        if isinstance(tensor, np.ndarray) and (own := own_memory(tensor)) is not tensor:
            tensors[name] = own
    return replace(returned, tensors={**returned.tensors, **tensors}) if tensors else returned


def misfit(name: str, tensor: ReturnedTensor, wanted: Wanted | None) -> str:
    """What is wrong with a tensor returned, or nothing. Its numbers are not looked at."""
    if wanted is None:
        return f"{name[:80]!r}, which nobody asked for"
    dtype, shape = wanted
    have = tensor.shape
    if (dtype is None or tensor.dtype == dtype) and (
        shape is None
        or have == shape
        or (
            len(have) == len(shape)
            and all(n == size or not isinstance(size, int) for n, size in zip(have, shape, strict=True))
        )
    ):
        return ""
    must = [] if dtype is None else [str(dtype)]
    if shape is not None:
        must.append(f"[{', '.join(str(size) for size in shape)}]")
    return f"{name} as {tensor.dtype} {list(have)}; it must be {' '.join(must)}"


def _returns(instructions: Sequence[Instruction], name: str) -> int:
    """How often the instructions return a tensor as `name`."""
    found = 0
    for instruction in instructions:
        if isinstance(instruction, Return):
            found += instruction.name == name
        elif isinstance(instruction, Repeat):
            found += instruction.times * _returns(instruction.body, name)
    return found


def _loaded(answer: Returned) -> Returned:
    """`answer` with arrays alone.

    Raises:
        ResourceExhausted: they are larger than ARRAYS_LIMIT together.
    """
    spooled = {name: tensor for name, tensor in answer.tensors.items() if isinstance(tensor, SpooledTensor)}
    if not spooled:
        return answer
    if (size := sum(tensor.nbytes for tensor in spooled.values())) > ARRAYS_LIMIT:
        raise ResourceExhausted(
            f"it returned {size:,} bytes where {ARRAYS_LIMIT:,} are loaded; cut the request into several"
        )
    arrays = {name: tensor.array() for name, tensor in spooled.items()}
    return replace(answer, tensors={**answer.tensors, **arrays})
