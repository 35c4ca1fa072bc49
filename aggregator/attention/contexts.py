"""Contexts as the aggregator knows them: where each segment lives, durable in the state."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from aggregator.attention.metrics import AttendMetrics
from aggregator.attention.revisions import Revisions
from aggregator.bounds.bounds import CONTEXT_BYTES, CONTEXTS
from aggregator.bounds.budget import Budgets, Lease
from aggregator.fleet.membership import Member, Membership
from aggregator.store.state import State
from edge_attention.core.bounds import Summary
from edge_attention.core.errors import AlreadyExists, NotFound
from edge_attention.core.messages import attention
from edge_attention.core.messages.attention import AppendResponse, ContextSpec
from edge_attention.core.positions import Positions

log = logging.getLogger(__name__)

ANSWERS = 256
"""Appends with an id whose answers a context remembers."""

SEGMENT_BYTES = 1024
"""What is known of a segment but for its summary."""


@dataclass(frozen=True, eq=False)
class StoredSegment:
    """Tokens in order of position, the nodes they were given to, and the summary made when they were stored.

    Where appends go to nodes in turn their positions are not one range: `positions` has them.
    """

    id: str
    positions: Positions
    holders: tuple[str, ...]
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        # Not lists of numbers: of a wide context they would be megabytes of text, written in the event loop.
        summary = {
            name: {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}
            for name, array in vars(self.summary).items()
        }
        return {**self.positions.to_json(), "holders": list(self.holders), **summary}

    @classmethod
    def from_json(cls, id: str, spec: dict[str, Any]) -> StoredSegment:
        arrays = [_array(spec[name]) for name in ("key_norm", "value_min", "value_max")]
        return cls(id, Positions.from_json(spec), tuple(spec["holders"]), Summary(*arrays))

    @property
    def nbytes(self) -> int:
        """About what it takes of this process's memory."""
        s = self.summary
        return (
            SEGMENT_BYTES
            + s.key_norm.nbytes
            + s.value_min.nbytes
            + s.value_max.nbytes
            + self.positions.nbytes
        )


def _array(stored: Any) -> Any:
    """A summary's array as it is stored; releases before wrote lists of numbers."""
    if isinstance(stored, dict):
        data = np.frombuffer(base64.b64decode(stored["float32"]), np.float32)
        return data.reshape(stored["shape"])
    return np.asarray(stored, np.float32)


@dataclass
class StoredContext:
    """One context; `lock` makes appends take turns. Segments are in order of their first position."""

    id: str
    spec: ContextSpec
    segments: list[StoredSegment] = field(default_factory=list)
    revision: int = 0
    """Changes with the segments: what was planned for another revision no longer holds."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    appending: set[str] = field(default_factory=set)
    """New segments under way: nodes may hold their tokens before they are committed here."""
    owner: str = ""
    """Who made it, and is counted for it: a subject, or "" without TLS."""
    leases: tuple[Lease, ...] = ()

    @property
    def tokens(self) -> int:
        return max((segment.positions.stop for segment in self.segments), default=0)

    @property
    def stretches(self) -> int:
        """How many ranges of positions all segments have together."""
        return sum(segment.positions.number for segment in self.segments)

    def keys(self, segment: str) -> str:
        """What the segment's keys are called in a node's store."""
        return f"context/{self.id}/{segment}/keys"

    def values(self, segment: str) -> str:
        return f"context/{self.id}/{segment}/values"


class Contexts:
    """All contexts, by name."""

    def __init__(
        self, state: State, membership: Membership, metrics: AttendMetrics, budgets: Budgets | None = None
    ) -> None:
        self._budgets = budgets or Budgets()
        self._state = state
        self._membership = membership
        self._metrics = metrics
        self.revisions = Revisions(state)
        self._contexts: dict[str, StoredContext] = {}
        self._creating: set[str] = set()
        """Names of contexts that are being written down."""
        for row in state.list_contexts():
            segments = [StoredSegment.from_json(s.id, s.spec) for s in state.list_segments(row.id)]
            segments.sort(key=lambda s: s.positions.start)
            spec = dict(row.spec)
            owner = str(spec.pop("owner", ""))
            context = StoredContext(row.id, ContextSpec(**spec), segments, owner=owner)
            self._contexts[row.name] = context
            self._recall(context)
        self._tokens = sum(context.tokens for context in self._contexts.values())
        self._gauge()

    def _recall(self, context: StoredContext) -> None:
        """Count a context that was there before: also where bounds have become smaller than what there is."""
        size = SEGMENT_BYTES + sum(segment.nbytes for segment in context.segments)
        whose = context.owner or None
        context.leases = (
            self._budgets[CONTEXTS].keep(whose),
            self._budgets[CONTEXT_BYTES].keep(whose, size),
        )

    async def create(self, spec: ContextSpec, owner: str = "") -> StoredContext:
        """A new, empty context, counted for `owner`: in the state first, by a thread, then here.

        Let nothing cancel this (`engine.endings`): what is in the state is there after a restart.

        Raises:
            InvalidArgument: there can be no such context.
            AlreadyExists: the name is taken.
            ResourceExhausted: there are too many, or the owner has.
        """
        spec.check()
        if spec.name in self._contexts or spec.name in self._creating:
            there = f"there is a context {spec.name!r} already"
            raise AlreadyExists(
                f"{there}; use it (in Python: exist_ok=True), drop it, or choose another name"
            )
        context = StoredContext(f"{self._state.id}-{secrets.token_hex(4)}", spec, owner=owner)
        with contextlib.ExitStack() as stack:
            whose = owner or None
            context.leases = (
                stack.enter_context(self._budgets.take(CONTEXTS, whose)),
                stack.enter_context(self._budgets.take(CONTEXT_BYTES, whose, SEGMENT_BYTES)),
            )
            self._creating.add(spec.name)
            stack.callback(self._creating.discard, spec.name)
            row = (context.id, spec.name, time.time(), {**asdict(spec), "owner": owner})
            await asyncio.to_thread(self._state.put_context, *row)
            stack.pop_all()
        self._creating.discard(spec.name)
        self._contexts[spec.name] = context
        self._gauge()
        return context

    def get(self, name: str) -> StoredContext:
        """The context `name`.

        Raises:
            NotFound: there is none.
        """
        context = self._contexts.get(name)
        if context is None:
            known = ", ".join(sorted(self._contexts)[:20]) or "none"
            raise NotFound(f"no context {name[:80]!r}; contexts here: {known}")
        return context

    def require_current(self, context: StoredContext) -> None:
        """Refuse a context that was dropped while its lock was waited for."""
        if self._contexts.get(context.spec.name) is not context:
            raise NotFound(f"context {context.spec.name!r} was dropped meanwhile")

    async def commit(
        self,
        context: StoredContext,
        segments: Sequence[StoredSegment],
        request_id: str = "",
        tokens: range = range(0),
        sessions: Mapping[str, str] | None = None,
        removed: Collection[str] = (),
    ) -> None:
        """Make grown and new segments part of the context: in the state first, by a thread, then here.

        Those with the ids `removed` are no longer part of it.

        With the `request_id` of the append the state remembers that these `tokens` are its answer. The caller
        holds the context's lock, and lets nothing cancel this (`engine.endings`).

        `sessions`: of each holder the one in which it has stored its tokens; what it has in a later one it
        said when that began. None: each holder's present one.

        Raises:
            ResourceExhausted: too much would have to be known of the owner's contexts; nothing has changed.
        """
        before = {segment.id: segment.nbytes for segment in context.segments}
        new = sum(segment.nbytes - before.get(segment.id, 0) for segment in segments)
        new -= sum(before.get(id, 0) for id in removed)
        context.leases[1].grow(max(new, 0))
        try:
            await asyncio.to_thread(self._write, context, segments, request_id, tokens, removed)
        except BaseException:
            context.leases[1].shrink(max(new, 0))
            raise
        context.leases[1].shrink(max(-new, 0))
        self._tokens -= context.tokens
        by_id = {s.id: s for s in context.segments if s.id not in removed} | {s.id: s for s in segments}
        context.segments = sorted(by_id.values(), key=lambda s: s.positions.start)
        context.revision += 1
        self._tokens += context.tokens
        for segment in segments:
            for name in segment.holders:
                member = self._membership.get(name)
                if member is not None and (sessions is None or sessions.get(name) == member.session):
                    for sequence in (context.keys(segment.id), context.values(segment.id)):
                        member.sequences[sequence] = segment.positions.count
        self._gauge()

    def _write(
        self,
        context: StoredContext,
        segments: Sequence[StoredSegment],
        request_id: str,
        tokens: range,
        removed: Collection[str],
    ) -> None:
        with self._state.transaction():
            for id in removed:
                self._state.delete_segment(context.id, id)
            for segment in segments:
                self._state.put_segment(context.id, segment.id, segment.to_json())
            if request_id:
                ids = [segment.id for segment in segments]
                answer = {"tokens": [tokens.start, tokens.stop], "segments": ids}
                self._state.put_append(context.id, request_id, answer, ANSWERS)

    async def answered(self, context: StoredContext, request_id: str) -> AppendResponse | None:
        """The answer of an append of that id, if it was made and is remembered.

        Raises:
            AlreadyExists: it was given up.
        """
        if not request_id:
            return None
        answer = await asyncio.to_thread(self._state.get_append, context.id, request_id)
        if answer is None:
            return None
        if not answer:
            raise AlreadyExists(
                f"append {request_id!r}: who asked was told that it was not made; append under another id"
            )
        segments = tuple(self.segment(context, s) for s in context.segments if s.id in answer["segments"])
        return AppendResponse(range(*answer["tokens"]), segments)

    def give_up(self, context: StoredContext, request_id: str) -> None:
        """Never make the append of that id, should it come yet. Blocks."""
        self._state.put_append(context.id, request_id, {}, ANSWERS)

    async def drop(self, context: StoredContext) -> None:
        """Forget a context: in the state first, by a thread, then here.

        The caller holds the context's lock, and lets nothing cancel this (`engine.endings`).

        Raises:
            NotFound: it was dropped before.
        """
        self.require_current(context)
        await asyncio.to_thread(self._state.delete_context, context.id)
        del self._contexts[context.spec.name]
        self._tokens -= context.tokens
        for lease in context.leases:
            lease.give_back()
        self._gauge()

    def _alone(self, context: StoredContext, segment: StoredSegment, node: str) -> bool:
        """Whether `node` is named for the segment, and nobody else who is has its tokens."""
        return node in segment.holders and not set(self.serving(context, segment)) - {node}

    def only_on(self, node: str) -> tuple[str, ...]:
        """What no other node has a copy of, a sentence a context."""
        found = []
        for context in self.list():
            tokens = sum(s.positions.count for s in context.segments if self._alone(context, s, node))
            if tokens:
                found.append(f"{tokens:,} tokens of context {context.spec.name!r}")
        return tuple(found)

    async def forget_node(self, node: str) -> None:
        """Have no segment name `node` of which others have copies. Let nothing cancel this.

        Where it alone has the tokens it stays named: should it come back, they are there again.
        """
        for context in self.list():
            async with context.lock:
                if self._contexts.get(context.spec.name) is not context:
                    continue  # it was dropped meanwhile
                changed = [
                    replace(s, holders=tuple(name for name in s.holders if name != node))
                    for s in context.segments
                    if node in s.holders and not self._alone(context, s, node)
                ]
                if changed:
                    await self.commit(context, changed, sessions={})

    def held(self, context: StoredContext, node: str) -> int:
        """Tokens of `context` that `node` holds."""
        return sum(s.positions.count for s in context.segments if node in s.holders)

    def serving(self, context: StoredContext, segment: StoredSegment) -> tuple[str, ...]:
        """The segment's holders that have its tokens, as far as they have said; live or not."""
        count, get = segment.positions.count, self._membership.get
        keys, values = context.keys(segment.id), context.values(segment.id)
        found = []
        for name in segment.holders:
            member = get(name)
            # Not seen since this aggregator started: it may come with the tokens.
            if member is None or (
                member.sequences.get(keys, 0) >= count and member.sequences.get(values, 0) >= count
            ):
                found.append(name)
        return tuple(found)

    def unknown(self, member: Member) -> tuple[str, ...]:
        """Of the sequences a node has reported, those of contexts made here that no longer are.

        Those of another state's contexts are left alone: an aggregator started with a wrong --state, or
        without one, must not have every node forget what it stores.
        """
        known = {
            sequence
            for context in self._contexts.values()
            for segment in context.segments
            if member.name in segment.holders
            for sequence in (context.keys(segment.id), context.values(segment.id))
        } | {
            sequence
            for context in self._contexts.values()
            for segment_id in context.appending
            for sequence in (context.keys(segment_id), context.values(segment_id))
        }
        held = [name for name in member.sequences if name.startswith("context/")]
        ours = [name for name in held if name.startswith(f"context/{self._state.id}-")]
        if len(ours) < len(held):
            log.warning(
                "node %s keeps %d sequences of contexts made by another aggregator, or with another --state; "
                "they take memory there until it is started without them",
                member.name,
                len(held) - len(ours),
            )
        return tuple(name for name in ours if name not in known)

    def describe(self, context: StoredContext, *, whole: bool = False) -> attention.Context:
        """The context as clients see it; with `whole` every stretch of its segments' positions."""
        segments = tuple(self.segment(context, segment, whole=whole) for segment in context.segments)
        return attention.Context(context.spec, context.tokens, segments)

    def segment(
        self, context: StoredContext, segment: StoredSegment, *, whole: bool = False
    ) -> attention.Segment:
        """A segment as clients see it; with `whole` every stretch of its positions."""
        serving = self.serving(context, segment)
        live = tuple(n for n in serving if (m := self._membership.get(n)) is not None and m.live)
        positions = segment.positions
        bounds = positions.bounds if whole and positions.number > 1 else ()
        return attention.Segment(segment.id, positions.hull, segment.holders, live, positions.count, bounds)

    def list(self) -> tuple[StoredContext, ...]:
        return tuple(self._contexts[name] for name in sorted(self._contexts))

    def _gauge(self) -> None:
        self._metrics.contexts.set(len(self._contexts))
        self._metrics.tokens.set(self._tokens)
