"""The append recipe: place tokens on nodes, all of them or none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from aggregator.attention.contexts import ANSWERS, Contexts, StoredContext, StoredSegment
from aggregator.attention.datasets import view_of
from aggregator.attention.growing import SEGMENT_LIMIT, open_segment, require_few
from aggregator.bounds.bounds import CONTEXT_SEGMENTS
from aggregator.bounds.turns import Turns
from aggregator.engine.arriving import Rows, require_tokens
from aggregator.engine.bulk import Bulk
from aggregator.engine.endings import to_the_end
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips, Wanted
from aggregator.fleet.columns import TableView
from aggregator.fleet.membership import Member, Membership
from edge_attention.core.bounds import Summary
from edge_attention.core.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    Unavailable,
)
from edge_attention.core.messages.attention import AppendDatasetRequest, AppendResponse
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.program import (
    Append,
    Batch,
    Drop,
    Instruction,
    Repeat,
    Return,
    Run,
    Stored,
)
from edge_attention.core.placement.tokens import Candidate, OpenSegment, place
from edge_attention.core.positions import Positions
from edge_attention.core.tensors import Float32, require, require_name
from edge_attention.graphs.attention import library
from edge_attention.graphs.reading import Declared, check_graph

log = logging.getLogger(__name__)

APPEND_SECONDS = 120.0

DATASET_ROWS = 4096
"""Rows a node encodes at a time when it appends from its own dataset."""

CHECKED_LIMIT = 256
"""Graphs that are known to be ones a node reads."""

_SUMMARY = library.digest("segment_summary")


@dataclass
class _Target:
    """Tokens of one append, and the segment they go to: behind `at` tokens that it has."""

    holders: tuple[str, ...]
    segment: str
    at: int
    tokens: range
    before: StoredSegment | None
    summaries: dict[str, Summary] = field(default_factory=dict)


class _Refused(EdgeAttentionError):
    """These nodes did not take their tokens: for want of room, or for a reason that is theirs alone."""

    def __init__(self, error: EdgeAttentionError, nodes: frozenset[str]) -> None:
        super().__init__(error.message)
        self.error = error
        self.nodes = nodes


class Appender:
    """Appends tokens to contexts, over the nodes that are there."""

    def __init__(
        self,
        contexts: Contexts,
        membership: Membership,
        trips: Trips,
        bulk: Bulk,
        turns: Turns | None = None,
    ) -> None:
        self._contexts = contexts
        self._membership = membership
        self._trips = trips
        self._bulk = bulk
        self._turns = turns or Turns()
        self._checked: dict[str, Declared] = {}

    async def append(
        self,
        name: str,
        node: str,
        keys: Rows,
        values: Rows,
        request_id: str = "",
        caller: str = "",
        seconds: float = APPEND_SECONDS,
    ) -> AppendResponse:
        """Append tokens, placed over the live nodes or on `node` alone, begun within `seconds`.

        What is given as arrays is checked; what lies on the disk was when it came there.

        With a `request_id` it happens once: called again it gives the same answer.

        Raises:
            InvalidTensor: shapes that do not fit the context, NaN or Inf, no tokens at all.
            Unavailable, OutOfMemory, DeadlineExceeded: nothing was appended.
            AlreadyExists: who asked was told that the append of this id was not made.
            Overloaded: the same; too many others append.
        """
        _require_id(request_id)
        context = self._contexts.get(name)
        if isinstance(keys, np.ndarray) and isinstance(values, np.ndarray):
            require_tokens(context.spec, keys, values)
        if not len(keys):
            raise InvalidTensor("keys holds no tokens; append at least one")
        async with context.lock:
            if (answer := await self._already(context, request_id)) is not None:
                return answer
            first = context.tokens

            def program(target: _Target, revision: int) -> tuple[tuple[Instruction, ...], Mapping[str, Rows]]:
                part = slice(target.tokens.start - first, target.tokens.stop - first)
                tensors = {"task/keys": keys[part], "task/values": values[part]}
                sources = Stored("task/keys"), Stored("task/values")
                tokens = len(target.tokens)
                return self._store(context, target, *sources, target.at, tokens, revision), tensors

            without: set[str] = set()
            await self._returned(node, seconds)
            while True:
                targets = self._place(context, len(keys), node, without)
                try:
                    async with self._turns.appends.turn(caller, 0, seconds):
                        return await self._run(context, targets, program, request_id)
                except _Refused as refused:
                    # What a node holds is known by its last heartbeat only, and what it says of tokens that
                    # were checked here is its word. The others may take them.
                    if node or not self._others(without | refused.nodes):
                        raise refused.error from None
                    log.info("append to context %s is placed anew: %s", name, refused.message)
                    without |= refused.nodes

    async def _returned(self, node: str, seconds: float) -> None:
        """Wait for a named node whose connection has just broken: for its lease, as exchanges do."""
        if node and self._membership.state(node) is NodeState.SUSPECT:
            await self._trips.all_live([node], min(self._membership.lease, seconds), lambda _: None)

    async def append_dataset(
        self, request: AppendDatasetRequest, caller: str = "", seconds: float = APPEND_SECONDS
    ) -> AppendResponse:
        """Append what `request.node` computes from its own dataset: a token a row.

        Raises:
            NotFound: no such context, node, dataset, column or graph.
            InvalidGraph: every node would refuse the graph.
            PrivateTensor: the node does not let the summary of its tokens leave.
            AlreadyExists: as in `append`.
        """
        _require_id(request.request_id)
        context = self._contexts.get(request.context)
        await self._returned(request.node, seconds)
        member = self._membership.require_live(request.node)
        dataset = next((d for d in member.register.datasets if d.name == request.dataset), None)
        if dataset is None:
            have = ", ".join(d.name for d in member.register.datasets) or "none"
            raise NotFound(f"node {request.node!r} has no dataset {request.dataset[:80]!r}; it has: {have}")
        view = view_of(request, await self._check(request.graph), member.register.datasets)
        rows = range(dataset.rows) if request.rows is None else request.rows
        if rows.stop <= rows.start or rows.stop > dataset.rows:
            raise InvalidArgument(f"rows [{rows.start}, {rows.stop}) of a dataset of {dataset.rows} rows")
        # Before they are placed: how many there are the node only says.
        if (count := rows.stop - rows.start) > (most := CONTEXT_SEGMENTS * SEGMENT_LIMIT):
            raise InvalidArgument(
                f"bound context-segments: {count:,} rows are more segments than a context has; one append "
                f"takes {most:,} rows at most, and fewer where there are others"
            )
        async with context.lock:
            if (answer := await self._already(context, request.request_id)) is not None:
                return answer
            targets = self._place(context, len(rows), request.node, set(), extend=False)
            first = context.tokens

            def program(target: _Target, revision: int) -> tuple[tuple[Instruction, ...], Mapping[str, Rows]]:
                part = range(target.tokens.start - first, target.tokens.stop - first)
                return self._encode(context, target, request, view, rows[part.start : part.stop], revision)

            try:
                async with self._turns.encodes(request.node).turn(caller, 0, seconds):
                    return await self._run(context, targets, program, request.request_id)
            except _Refused as refused:
                raise refused.error from None

    async def _check(self, digest: str) -> Declared:
        """What a graph's inputs are declared to be. A good one is not read again.

        Raises:
            NotFound, InvalidGraph: it is not here, or no node would read it.
        """
        found = self._checked.get(digest)
        if found is None or not self._bulk.has(digest):
            found = await asyncio.to_thread(
                lambda: check_graph(self._bulk.find(digest), f"graph {digest[:12]}")
            )
            self._checked[digest] = found
            while len(self._checked) > CHECKED_LIMIT:
                del self._checked[next(iter(self._checked))]
        return found

    async def outcome(self, name: str, request_id: str) -> AppendResponse:
        """What became of the append of that id: its answer, if it was made. Waits for one under way.

        Raises:
            NotFound: it was not made, and will not be: should it come yet, it is refused.
        """
        context = self._contexts.get(name)
        _require_id(request_id)
        async with context.lock:
            self._contexts.require_current(context)
            with contextlib.suppress(AlreadyExists):
                if (answer := await self._contexts.answered(context, request_id)) is not None:
                    return answer
                # To the end, so that no append of this id comes in between.
                await to_the_end(asyncio.to_thread(self._contexts.give_up, context, request_id))
        raise NotFound(
            f"append {request_id!r} to context {name!r} was not made, and will not be under this id; the "
            f"last {ANSWERS} of a context are remembered"
        )

    async def _already(self, context: StoredContext, request_id: str) -> AppendResponse | None:
        """The answer, where the append of that id was made before; its context is there still."""
        self._contexts.require_current(context)
        return await self._contexts.answered(context, request_id)

    def _others(self, without: set[str]) -> bool:
        """Whether a node is ready that is not among `without`."""
        return any(m.state is NodeState.READY and m.name not in without for m in self._membership.members())

    def _place(
        self, context: StoredContext, tokens: int, node: str, without: set[str], *, extend: bool = True
    ) -> list[_Target]:
        """Cut `tokens` into targets, in order of position; `extend`: the last segment may grow."""
        spec = context.spec
        members: Sequence[Member] = (
            [self._membership.require_live(node)] if node else self._membership.members()
        )
        candidates = [
            Candidate(
                m.name,
                self._contexts.held(context, m.name),
                # Twice: tokens that arrive count until they are stored. A tile is the grain of memory:
                # what does not fill one takes a whole one.
                max((m.register.memory_limit - m.memory) // (2 * spec.token_bytes * library.TILE), 0)
                * library.TILE,
            )
            for m in members
            if m.state is NodeState.READY and m.name not in without
        ]
        if not candidates:
            raise Unavailable("no node is ready; start one with `edge-node --aggregator ... --name ...`")
        serving = partial(self._contexts.serving, context)
        growing = None
        last = open_segment(context, frozenset((node,)) if node else None, serving) if extend else None
        if last is not None:
            growing = OpenSegment(last.holders, last.positions.count)
        pieces = place(
            tokens,
            candidates,
            growing,
            replicas=1 if node else spec.replicas,
            tile=library.TILE,
            segment_limit=SEGMENT_LIMIT,
        )
        targets, position = [], context.tokens
        grown: set[str] = set()
        for piece in pieces:
            before = last if piece.extends else None
            if before is None and extend:
                before = open_segment(context, frozenset(piece.holders), serving)
                if before is not None and before.id in grown:
                    before = None
            at, holders, segment = 0, piece.holders, secrets.token_hex(4)
            if before is not None:
                at, holders, segment = before.positions.count, before.holders, before.id
                grown.add(segment)
            targets.append(_Target(holders, segment, at, range(position, position + piece.tokens), before))
            position += piece.tokens
        require_few(
            context,
            sum(target.before is None for target in targets),
            sum(t.before is None or t.before.positions.stop != t.tokens.start for t in targets),
        )
        return targets

    def _store(
        self,
        context: StoredContext,
        target: _Target,
        keys: Stored,
        values: Stored,
        at: int,
        tokens: int,
        revision: int,
    ) -> tuple[Instruction, ...]:
        """Instructions that append `tokens` `keys` and `values` at `at` and return their summary."""
        spec, tile = context.spec, library.TILE
        shapes = ((tokens, spec.key_heads, spec.key_dim), (tokens, spec.key_heads, spec.value_dim))
        outputs = ("key_norm", "value_min", "value_max")
        return (
            Run(_SUMMARY, {"keys": keys, "values": values}, {name: f"task/{name}" for name in outputs}),
            # Asked before anything is stored: a node that may not return it must not hold the tokens.
            *(Return(f"task/{name}", name) for name in outputs),
            Append(context.keys(target.segment), keys, at, tile, shapes[0], revision),
            Append(context.values(target.segment), values, at, tile, shapes[1], revision),
        )

    def _encode(
        self,
        context: StoredContext,
        target: _Target,
        request: AppendDatasetRequest,
        view: TableView,
        rows: range,
        revision: int,
    ) -> tuple[tuple[Instruction, ...], Mapping[str, Rows]]:
        """Instructions that encode `rows` of the dataset in turns and append them."""
        turns = len(rows) // DATASET_ROWS
        whole = np.arange(rows.start, rows.start + turns * DATASET_ROWS, dtype=np.int64)
        rest = np.arange(rows.start + turns * DATASET_ROWS, rows.stop, dtype=np.int64)
        tensors: dict[str, Rows] = {}
        reads, names = view.stored("task/column")

        def body(rows_name: str, at: int, tokens: int) -> tuple[Instruction, ...]:
            keys, values = Stored("task/keys"), Stored("task/values")
            return (
                Batch(request.dataset, {}, Stored(rows_name), tensors=reads),
                Run(
                    request.graph,
                    {name: Stored(stored) for name, stored in names.items()},
                    {"keys": keys.name, "values": values.name},
                ),
                *self._store(context, target, keys, values, at, tokens, revision),
            )

        # Each turn has its place, so a program that is run again writes the same there.
        instructions: list[Instruction] = []
        if turns:
            tensors["task/rows"] = whole.reshape(turns, DATASET_ROWS)
            instructions.append(Repeat(turns, body("task/rows", 0, DATASET_ROWS)))
        if len(rest):
            tensors["task/rest"] = rest
            instructions += body("task/rest", turns * DATASET_ROWS, len(rest))
        return tuple(instructions), tensors

    async def _run(
        self,
        context: StoredContext,
        targets: list[_Target],
        program: Callable[[_Target, int], tuple[tuple[Instruction, ...], Mapping[str, Rows]]],
        request_id: str,
    ) -> AppendResponse:
        """Run each target's program on each of its holders; commit if every one has stored its tokens."""
        revision = await self._contexts.revisions.take()
        wanted = self._wanted(context)
        errands: list[Errand] = []
        by_shard: dict[str, _Target] = {}
        committed = False
        try:
            for target in targets:
                instructions, tensors = program(target, revision)
                for holder in target.holders:
                    shard = f"{target.segment}@{holder}"
                    by_shard[shard] = target
                    errands.append(
                        Errand(
                            shard=shard,
                            holders=(holder,),
                            coverage=target.tokens,
                            instructions=instructions,
                            wanted=wanted,
                            tensors=tensors,
                        )
                    )

            def each(returned: Returned) -> None:
                if returned.tensors:
                    target, node = by_shard[returned.shard], returned.node
                    summary = self._summary(returned)
                    known = target.summaries.get(node)
                    target.summaries[node] = summary if known is None else known.joined(summary)

            sessions: dict[str, str] = {}

            def stored(answer: Returned) -> None:
                if (member := self._membership.get(answer.node)) is not None:
                    sessions[answer.node] = member.session

            context.appending.update(target.segment for target in targets)
            # A shard has one holder, whose word is not enough to end an append that others may take.
            outcome = await self._trips.make(errands, APPEND_SECONDS, stored, each=each, believed=())
            if outcome.missing:
                cause = outcome.cause
                message = f"nothing was appended to context {context.spec.name!r}: {outcome.why}"
                if not issubclass(cause, DeadlineExceeded | Cancelled | Unavailable):
                    refused = frozenset(m.node for m in outcome.missing.values() if m.said)
                    raise _Refused(cause(message), refused)
                raise cause(message)
            segments = [self._grown(target) for target in targets]
            tokens = range(targets[0].tokens.start, targets[-1].tokens.stop)

            async def commit() -> None:
                nonlocal committed
                await self._contexts.commit(context, segments, request_id, tokens, sessions)
                committed = True

            await to_the_end(commit(), counts=True)
            for target in targets:
                for holder in target.holders:
                    if (member := self._membership.get(holder)) is not None:
                        # Until its next heartbeat says so.
                        member.memory += len(target.tokens) * context.spec.token_bytes
        except BaseException:
            if not committed:
                self._undo(context, targets, revision + 1)
            raise
        finally:
            context.appending.clear()
        return AppendResponse(tokens, tuple(self._contexts.segment(context, s) for s in segments))

    def _wanted(self, context: StoredContext) -> Mapping[str, Wanted]:
        """The tensors that storing tokens of `context` returns: the segment's summary."""
        spec, float32 = context.spec, np.dtype(np.float32)
        return {
            "key_norm": (float32, (spec.key_heads,)),
            "value_min": (float32, (spec.key_heads, spec.value_dim)),
            "value_max": (float32, (spec.key_heads, spec.value_dim)),
        }

    def _summary(self, returned: Returned) -> Summary:
        arrays: list[Float32] = []
        for name in ("key_norm", "value_min", "value_max"):
            if name not in returned.tensors:
                raise InvalidTensor(f"the summary of a segment lacks {name}")
            array = returned.array(name)
            require(array, f"summary {name}", shape=array.shape)  # finite
            arrays.append(array)
        return Summary(*arrays)

    def _grown(self, target: _Target) -> StoredSegment:
        summaries = list(target.summaries.values())
        if not summaries:
            raise FailedPrecondition(f"no node returned a summary of segment {target.segment}")
        summary = summaries[0]
        for other in summaries[1:]:
            summary = summary.joined(other)
        if target.before is None:
            return StoredSegment(target.segment, Positions.of(target.tokens), target.holders, summary)
        return StoredSegment(
            target.segment,
            target.before.positions.and_(target.tokens),
            target.holders,
            target.before.summary.joined(summary),
        )

    def _undo(self, context: StoredContext, targets: list[_Target], revision: int) -> None:
        """Free what new segments have stored; beyond the end of a grown one, the next append overwrites."""
        for target in targets:
            if target.before is None:
                names = (f"context/{context.id}/{target.segment}/",)
                for holder in target.holders:
                    self._trips.post(holder, (Drop(names, revision),))


def _require_id(request_id: str) -> None:
    if request_id:
        require_name(request_id, "append")
