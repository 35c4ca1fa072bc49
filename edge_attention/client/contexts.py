"""`AsyncContext`: append to a context, attend to it, describe and drop it. What is large is divided here."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from edge_attention.client.appending import Attempt, appended
from edge_attention.client.connection import (
    DEADLINE_MARGIN,
    MAX_SECONDS,
    MIB,
    SLOWEST,
    ClientConnection,
)
from edge_attention.client.context_files import ContextWriter
from edge_attention.client.gradients import Gradients, find_gradients
from edge_attention.client.layouts import Layout, arranged_queries, arranged_tokens
from edge_attention.client.results import Answer, Appended, InexactAnswer, join, lacking
from edge_attention.core.arrays import as_float32, as_int64
from edge_attention.core.errors import (
    AlreadyExists,
    EdgeAttentionError,
    EmptyContext,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
)
from edge_attention.core.fold import join as joined
from edge_attention.core.messages import attention as wire
from edge_attention.core.tensors import Encoding, Float32, Int64, require, require_name
from edge_attention.jobs import values as values_of
from edge_attention.jobs.checks import require_number, require_whole
from edge_attention.jobs.columns import Columns, Inputs, WhereMissing, prepared
from edge_attention.jobs.job import ModelFile, model_bytes
from edge_attention.wire import services

APPEND_CALL = 64 * MIB  # bytes of one all-or-nothing append
APPEND_MESSAGE = MIB * 15 // 16  # room for a message's other fields within 1 MiB
ATTEND_REPLY = 3 * MIB  # bytes of arrays planned for one reply, of the 4 MiB a message may have
WEIGHTS_REPLY = 2 * MIB * 15 // 16  # of them for weights, which may have half a message
ATTEND_PARTS = 4  # groups of queries under way at once
MAX_DEADLINE = 3600.0  # seconds, the server's limit
MAX_POSITION = 2**63 - 1
MAX_SCALE = float(np.finfo(np.float32).max)

OnProgress = Callable[[int, int], None]
"""Called with tokens done and tokens in all."""


class AsyncContext:
    """A context on the aggregator, whether it was created, asked for by name, or listed.

    Attributes:
        info: what it was when it was last heard of: made, appended to, described or listed. `spec`, `tokens`
            and `segments` are read from it; `describe` asks anew, also of what others append.
    """

    def __init__(self, connection: ClientConnection, info: wire.Context) -> None:
        self._connection = connection
        self.info = info

    @property
    def spec(self) -> wire.ContextSpec:
        """Its name, heads and dimensions, which never change."""
        return self.info.spec

    @property
    def name(self) -> str:
        return self.info.spec.name

    @property
    def tokens(self) -> int:
        """How many tokens it had when it was last heard of, trimmed ones included."""
        return self.info.tokens

    @property
    def segments(self) -> tuple[wire.Segment, ...]:
        """Its segments and their holders, as last heard of."""
        return self.info.segments

    def __repr__(self) -> str:
        spec, count = self.spec, len(self.segments)
        return (
            f"<{type(self).__name__} {self.name!r}: {self.tokens:,} tokens in {count:,} "
            f"segment{'' if count == 1 else 's'}, {spec.query_heads} query heads on {spec.key_heads} of "
            f"{spec.key_dim} and {spec.value_dim}, at {self._connection.address}>"
        )

    async def append(
        self,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        node: str | None = None,
        progress: OnProgress | None = None,
        request_id: str | None = None,
        layout: Layout = "tokens",
    ) -> Appended:
        """Append tokens: keys [tokens, key_heads, key_dim], values [tokens, key_heads, value_dim].

        Both travel as float32: arrays, tensors and lists of other numbers are converted (core/arrays.py).
        Long appends are cut into calls of at most 64 MiB. Each call is stored whole or not at all; if one
        fails, the error says how many tokens the calls before it stored.

        Args:
            node: where to keep the tokens; None: the aggregator places them.
            progress: called in the event loop after each call.
            request_id: what this append is called, 1 to 48 letters, digits, '.', '_' and '-', unlike any
                other of the context: called again with it and the same arrays, nothing is appended twice.
                None: one is made up.
            layout: "torch": keys and values are [heads, tokens, dim] (see layouts.py).

        Where the connection breaks after all was sent the aggregator is asked what became of the append. The
        error says that it was not appended, or that this is not known and how to learn it.

        Raises:
            InvalidTensor: no numbers, a wrong shape, NaN or infinity.
        """
        spec = self.spec
        values_of.choice(layout, "layout", ("tokens", "torch"))
        keys = arranged_tokens(keys, "keys", layout, (spec.key_heads, spec.key_dim))
        values = arranged_tokens(values, "values", layout, (spec.key_heads, spec.value_dim))
        keys = _float32(keys, "keys", ("tokens", spec.key_heads, spec.key_dim))
        if layout == "torch" and len(values) != len(keys):
            raise InvalidTensor(f"values has {len(values)} tokens, keys {len(keys)}; give as many of both")
        values = _float32(values, "values", (len(keys), spec.key_heads, spec.value_dim))
        if not len(keys):
            raise InvalidTensor("keys has no tokens; append at least one")
        step = max(1, APPEND_CALL // spec.token_bytes)
        request_id = _request_id(request_id)
        node = None if node is None else values_of.text(node, "node")
        progress = values_of.called(progress, "progress")
        done: list[wire.AppendResponse] = []
        for at in range(0, len(keys), step):
            stop = min(at + step, len(keys))
            timeout = self._connection.timeout + (stop - at) * spec.token_bytes / SLOWEST
            part = Attempt(self.name, request_id, f".{at // step}" if len(keys) > step else "", timeout)

            def call(of: Attempt, span: slice = slice(at, stop)) -> Coroutine[Any, Any, wire.AppendResponse]:
                messages = partial(self._messages, keys[span], values[span], node or "", of)
                again = lambda: self._connection.caller.send(services.APPEND, messages, of.left)  # noqa: E731
                return self._connection.patiently(again, time.monotonic() + of.left)

            try:
                done.append(await appended(call, self._connection.caller, part))
                self._heard(done[-1])
            except EdgeAttentionError as error:
                if not at:
                    raise
                raise type(error)(
                    f"{error.message} (the first {at:,} of {len(keys):,} tokens were stored before, as "
                    f"positions {_appended(done).ranges}; append the others again)"
                ) from error
            if progress:
                progress(stop, len(keys))
        return _appended(done)

    def _heard(self, reply: wire.AppendResponse) -> None:
        """What an append tells of the context: how long it is now, and the segments that took the tokens."""
        segments = {segment.id: segment for segment in (*self.segments, *reply.segments)}
        self.info = dataclasses.replace(
            self.info,
            tokens=max(self.tokens, reply.tokens.stop),
            segments=tuple(sorted(segments.values(), key=lambda one: one.tokens.start)),
        )

    async def _messages(
        self, keys: Float32, values: Float32, node: str, attempt: Attempt
    ) -> AsyncIterator[wire.AppendRequest]:
        step = max(1, APPEND_MESSAGE // self.spec.token_bytes)
        for at in range(0, len(keys), step):
            part = slice(at, at + step)
            yield wire.AppendRequest(self.name, node, keys[part], values[part], attempt.id)
        attempt.sent = True

    async def append_dataset(
        self,
        node: str,
        dataset: str,
        model: ModelFile,
        inputs: Inputs,
        rows: range | None = None,
        *,
        columns: Columns | None = None,
        missing_values: WhereMissing | None = None,
        timeout: float = 600.0,
        request_id: str | None = None,
    ) -> Appended:
        """Append what `node` computes from its own dataset: the tokens never leave it.

        Args:
            model: an ONNX model from columns to `keys` [rows, key_heads, key_dim] and `values`
                [rows, key_heads, value_dim], float32, a token a row: a path, bytes or an onnx.ModelProto.
            inputs: graph input -> column of the dataset, or a list of columns; `columns` and `missing_values`
                say how these are read: see jobs/columns.py.
            rows: which rows; None: all.
            request_id: as in `append`.

        Raises:
            InvalidGraph: the node cannot use the model; GraphDied: running it ends the process it runs in.
            PrivateTensor: the node needs `--allow-release attention`.
        """
        if rows is not None and (not isinstance(rows, range) or rows.step != 1 or rows.start < 0):
            raise InvalidArgument(
                f"rows is {values_of.said(rows)}; give a range of consecutive rows, as range(0, 1000)"
            )
        if rows is not None and max(rows.start, rows.stop) > MAX_POSITION:
            raise InvalidArgument(f"rows is {rows}; a dataset has no row past {MAX_POSITION:,}")
        node = values_of.text(node, "node")
        dataset = values_of.text(dataset, "dataset")
        bound, table = prepared(inputs, {} if columns is None else columns, missing_values, "inputs")
        seconds = values_of.above(timeout, "timeout", MAX_SECONDS)
        graph = await self._connection.upload(await asyncio.to_thread(model_bytes, model))
        request_id = _request_id(request_id)
        caller = self._connection.caller

        def call(of: Attempt) -> Coroutine[Any, Any, wire.AppendResponse]:
            request = wire.AppendDatasetRequest(self.name, node, dataset, graph, bound, rows, of.id, table)
            of.sent = True
            return caller.unary(services.APPEND_DATASET, request, of.left)

        try:
            reply = await appended(call, caller, Attempt(self.name, request_id, "", seconds))
            self._heard(reply)
            return _appended([reply])
        except InvalidGraph as error:
            name = model if isinstance(model, str | Path) else "the model"
            raise type(error)(f"{name}: {error.message}") from None

    async def attend(
        self,
        queries: ArrayLike,
        *,
        causal: bool = False,
        positions: ArrayLike | None = None,
        window: int | None = None,
        scale: float | None = None,
        deadline: float | None = None,
        weights: bool = False,
        encoding: Literal["float32", "float16"] = "float32",
        until: int | None = None,
        require_exact: bool = False,
        layout: Layout = "tokens",
    ) -> Answer:
        """Exact attention of `queries` over the context, or what the deadline left of it, labelled.

        Many queries travel in several calls, all of which see the context as it was at the first.

        Args:
            queries: [queries, query_heads, key_dim], or with a batch before them, whose rows all attend to
                this context; float32, or what core/arrays.py converts to it.
            causal: a query sees positions up to and with its own.
            positions: whole numbers [queries], each query's own position, for causal and window; None: the
                last positions of the context. Of a batch for all rows alike, or [batch, queries].
            window: a query sees only so many last positions up to and with its own.
            scale: multiplies the scores; None: 1 / sqrt(key_dim).
            deadline: seconds after which the answer is given with what arrived; None: the server's default.
            weights: also return every token's global attention weight.
            encoding: how `out` travels; float16 halves the bytes for an error of about 2e-4.
            until: attend to positions below this one only; None: all there are now.
            require_exact: raise `InexactAnswer` where the answer does not stand on every token that the
                queries may see, instead of giving it labelled; its `answer` has it all the same.
            layout: "torch": queries are [heads, queries, dim] or [batch, heads, queries, dim], and so is
                what comes back (see layouts.py).

        Raises:
            InvalidTensor: no numbers, a wrong shape, NaN or infinity.
            InvalidArgument: a window under 1, a deadline that is not positive, ...
            EmptyContext: there is nothing to attend to.
            MessageTooLarge: one query's weights do not fit a message.
            Overloaded: the aggregator cannot answer it in time, also when asked again (see `AsyncClient`).
        """
        began = time.monotonic()
        values_of.choice(layout, "layout", ("tokens", "torch"))
        flat, form = arranged_queries(queries, layout, (self.spec.query_heads, self.spec.key_dim))
        queries = _float32(flat, "queries", ("queries", self.spec.query_heads, self.spec.key_dim))
        count = len(queries)
        if positions is not None:
            positions = form.positions(positions)
            require(positions, "positions", shape=(count,), dtype=np.int64)
        if deadline is not None:
            require_number(deadline, "deadline", 0, MAX_DEADLINE)
        if scale is not None:
            require_number(scale, "scale", -MAX_SCALE, MAX_SCALE)
        for what, whole, low in (("window", window, 1), ("until", until, 1)):
            if whole is not None:
                require_whole(whole, what, low, MAX_POSITION)
        values_of.choice(encoding, "encoding", ("float32", "float16"))
        causal, weights = values_of.switch(causal, "causal"), values_of.switch(weights, "weights")
        require_exact = values_of.switch(require_exact, "require_exact")
        step = max(count, 1)
        if positions is None and form.batch is not None and (causal or window is not None):
            # Each row's queries sit on the last positions, not all rows' one after another.
            tokens = (await self.describe(timeout=deadline)).tokens
            until = tokens if until is None else min(until, tokens)
            positions = form.repeated(last_positions(form.count, until))
        # What a small call's reply cannot exceed needs no plan; a larger one is planned by a description.
        if weights or self._reply_bytes(count, segments=256) > ATTEND_REPLY:
            context = await self.describe(timeout=deadline)
            step = self._fitting(context, weights)
            if step < count:
                until = context.tokens if until is None else min(until, context.tokens)
                if positions is None and (causal or window is not None):
                    positions = last_positions(count, until)
        gate = asyncio.Semaphore(ATTEND_PARTS)
        transfer = self._reply_bytes(min(step, count), segments=0) / SLOWEST

        async def part(at: int) -> wire.AttendResponse:
            async with gate:
                left = None if deadline is None else max(1e-3, deadline - (time.monotonic() - began))
                request = wire.AttendRequest(
                    context=self.name,
                    queries=queries[at : at + step],
                    positions=None if positions is None else positions[at : at + step],
                    causal=causal,
                    window=window,
                    scale=scale,
                    deadline_seconds=left,
                    encoding=Encoding.FLOAT16 if encoding == "float16" else Encoding.RAW,
                    weights=weights,
                    until=until,
                )
                timeout = self._connection.timeout if left is None else left + DEADLINE_MARGIN + transfer
                return await self._connection.caller.unary(services.ATTEND, request, timeout)

        async def patient(at: int) -> wire.AttendResponse:
            most = self._connection.timeout if deadline is None else deadline
            return await self._connection.patiently(lambda: part(at), began + most)

        parts = await _all([patient(at) for at in range(0, max(count, 1), step)])
        answer = form.answer(join(parts, time.monotonic() - began))
        if require_exact and not answer.exact:
            raise InexactAnswer(lacking(answer, self.name), answer)
        return answer

    async def gradients(
        self,
        queries: ArrayLike,
        out: ArrayLike,
        lse: ArrayLike,
        dout: ArrayLike,
        *,
        causal: bool = False,
        positions: ArrayLike | None = None,
        window: int | None = None,
        scale: float | None = None,
        deadline: float | None = None,
        until: int | None = None,
        tokens: bool = True,
        coverage: Sequence[range] = (),
    ) -> Gradients:
        """The gradients of a loss by what was attended: the way back through `attend`.

        Args:
            queries: as they were attended, [queries, query_heads, key_dim].
            out, lse: of the answer, which was exact.
            dout: the loss's gradient by `out`, of its shape.
            causal, positions, window, scale, until: as of the attend; with a mask the positions too.
            deadline: seconds for all of it; None: the client's timeout.
            tokens: whether the gradients by keys and values are wanted, too, by position from 0 on.
            coverage: of the answer: tokens that came later are left out then, and where one of those that it
                stands on has been trimmed since, there are no gradients. Without it who asks has to know that
                the context is what it was.

        Raises:
            FailedPrecondition: tokens of `coverage` have been trimmed since: attend again.
            Unavailable: a node that holds tokens is away: gradients are whole or none.
            PrivateTensor: a node has computed tokens from its own data: their gradients stay there; ask
                with `tokens=False`.
        """
        spec = self.spec
        queries = _float32(queries, "queries", ("queries", spec.query_heads, spec.key_dim))
        if not len(queries):
            raise InvalidTensor("queries holds no queries; give at least one")
        rows = (len(queries), spec.query_heads, spec.value_dim)
        out, dout = _float32(out, "out", rows), _float32(dout, "dout", rows)
        lse = as_float32(lse, "lse")
        if lse.shape != rows[:2]:
            raise InvalidTensor(f"lse has shape {list(lse.shape)}; it must be {list(rows[:2])}")
        if positions is not None:
            positions = as_int64(positions, "positions")
            require(positions, "positions", shape=(len(queries),), dtype=np.int64)
        if deadline is not None:
            require_number(deadline, "deadline", 0, MAX_DEADLINE)
        if scale is not None:
            require_number(scale, "scale", -MAX_SCALE, MAX_SCALE)
        for what, whole, low in (("window", window, 1), ("until", until, 1)):
            if whole is not None:
                require_whole(whole, what, low, MAX_POSITION)
        causal, tokens = values_of.switch(causal, "causal"), values_of.switch(tokens, "tokens")
        if not isinstance(coverage, Sequence) or not all(isinstance(part, range) for part in coverage):
            raise InvalidArgument("coverage is an answer's: ranges of positions")
        seconds = self._connection.timeout if deadline is None else deadline
        began = time.monotonic()
        there = await self.describe(timeout=deadline)
        stored = there.tokens
        if not stored:
            raise EmptyContext(f"context {self.name!r} has no tokens yet; append some first")
        stood = max((part.stop for part in coverage), default=stored)
        request = wire.AttendGradientsRequest(
            self.name,
            queries,
            lse,
            dout,
            np.einsum("qhd,qhd->qh", dout, out),
            positions,
            causal,
            window,
            scale,
            until=min(stored if until is None else until, stored, stood),
            tokens=tokens,
            coverage=tuple(coverage),
        )
        left = max(1e-3, seconds - (time.monotonic() - began))
        return await find_gradients(self._connection, spec, request, left, len(there.segments))

    def _reply_bytes(self, queries: int, segments: int) -> int:
        """At most so many bytes in the larger of request and reply, weights apart."""
        spec = self.spec
        floats = max(spec.key_dim, 2 * spec.value_dim + 1 + segments)
        return queries * spec.query_heads * 4 * floats + segments * 256

    def _fitting(self, context: wire.Context, weights: bool) -> int:
        """How many queries one call can carry."""
        fixed = self._reply_bytes(0, len(context.segments))
        each = self._reply_bytes(1, len(context.segments)) - fixed
        fit = (ATTEND_REPLY - fixed) // each
        # What the aggregator may have in memory for one call, of which every segment takes its part.
        fit = min(fit, wire.ATTEND_QUERIES)
        fit = min(fit, wire.ATTEND_BYTES // wire.attend_bytes(self.spec, 1, len(context.segments)))
        if weights:
            fit = min(fit, WEIGHTS_REPLY // max(1, self.spec.query_heads * 4 * context.tokens))
        return max(1, fit)

    async def describe(self, *, timeout: float | None = None) -> wire.Context:
        """The context's spec, tokens and segments, with their holders. `timeout`: seconds."""
        request = wire.DescribeContextRequest(self.name)
        reply = await self._connection.caller.unary(
            services.DESCRIBE_CONTEXT, request, self._connection.seconds(timeout)
        )
        self.info = reply.context
        return reply.context

    async def trim(self, positions: range, *, timeout: float | None = None) -> wire.TrimContextResponse:
        """Forget the tokens at `positions`, on the nodes, too; the others keep theirs.

        `timeout`: seconds; segments of which some tokens stay are stored anew.

        Raises:
            FailedPrecondition: a segment of a node's own data would be trimmed in part.
            Unavailable: nobody is there who has a segment that is to be trimmed in part.
        """
        if not isinstance(positions, range) or positions.step != 1 or positions.start < 0 or not positions:
            raise InvalidArgument(
                f"positions is {values_of.said(positions)}; give consecutive ones, as range(0, 1000)"
            )
        if positions.stop > MAX_POSITION:
            raise InvalidArgument(
                f"positions end with {positions.stop - 1:,}; no context has one past {MAX_POSITION:,}"
            )
        seconds = self._connection.seconds(timeout)
        request = wire.TrimContextRequest(self.name, positions)
        reply = await self._connection.caller.unary(services.TRIM_CONTEXT, request, seconds)
        self.info = reply.context
        return reply

    async def repair(self, *, timeout: float = 600.0) -> wire.RepairContextResponse:
        """Copy segments that have fewer holders than the context has replicas to other nodes.

        What `timeout` seconds are too short for is named among what is missing: repair again.
        """
        seconds = values_of.above(timeout, "timeout", MAX_SECONDS)
        request = wire.RepairContextRequest(self.name)
        reply = await self._connection.caller.unary(services.REPAIR_CONTEXT, request, seconds)
        self.info = reply.context
        return reply

    async def export(self, file: str | Path, *, progress: OnProgress | None = None) -> int:
        """Write the context's tokens to a safetensors file; how many they are.

        Raises:
            PrivateTensor: some are of a node's own data, and do not leave it.
            Unavailable: nobody is there who has some of them.
        """
        progress = values_of.called(progress, "progress")
        writer = ContextWriter(values_of.path(file, "file"))
        request = wire.ExportContextRequest(self.name)
        done = total = 0
        try:
            pieces = self._connection.caller.receive(
                services.EXPORT_CONTEXT, request, silence=self._connection.timeout
            )
            async for piece in pieces:
                await asyncio.to_thread(writer.add, piece)
                total = total or piece.count
                done += len(piece.positions)
                if progress is not None:
                    progress(done, total)
            return await asyncio.to_thread(writer.finish)
        finally:
            await asyncio.to_thread(writer.close)

    async def drop(self) -> None:
        """Forget the context on the aggregator and its tokens on the nodes."""
        request = wire.DropContextRequest(self.name)
        await self._connection.caller.unary(services.DROP_CONTEXT, request, self._connection.timeout)


async def _all(calls: Sequence[Coroutine[Any, Any, wire.AttendResponse]]) -> list[wire.AttendResponse]:
    """All results in order; the first failure cancels the others."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def require_alike(there: wire.ContextSpec, wanted: wire.ContextSpec) -> None:
    """AlreadyExists where a context that is there has other sizes than the one that is wanted."""
    pairs = [
        (field.name, getattr(there, field.name), getattr(wanted, field.name))
        for field in dataclasses.fields(wire.ContextSpec)
    ]
    other = [f"{name} is {has}, not {wants}" for name, has, wants in pairs if has != wants]
    if other:
        raise AlreadyExists(
            f"context {there.name!r} is there with other sizes: {'; '.join(other)}. Use it as it is "
            "(client.context), drop it, or choose another name"
        )


def last_positions(count: int, tokens: int) -> Int64:
    """Where queries without positions sit: the last query on the last token."""
    if count > tokens:
        raise InvalidArgument(
            f"{count} queries do not fit at the end of {tokens} tokens; give their positions"
        )
    return np.arange(tokens - count, tokens)


def _appended(replies: Sequence[wire.AppendResponse]) -> Appended:
    return Appended(
        joined(reply.tokens for reply in replies),
        tuple(segment for reply in replies for segment in reply.segments),
    )


def _request_id(given: str | None) -> str:
    if given is None:
        return secrets.token_hex(8)
    if len(values_of.text(given, "request_id")) > 48:  # a divided append adds to it
        raise InvalidArgument(f"request_id has {len(given)} characters; the limit is 48")
    return require_name(given, "request_id")


def _float32(array: Any, what: str, shape: Sequence[int | str]) -> Float32:
    """`array` as float32 of that shape, all of it finite; see core/arrays.py for what is converted."""
    found = as_float32(array, what)
    if found.ndim == len(shape) - 1 and found.shape == tuple(shape[1:]):
        raise InvalidTensor(
            f"{what} has shape {list(found.shape)}, as one of {shape[0]}; give {what}[None], a list of one"
        )
    if found.ndim == 3 and found.shape[1] != shape[1] == found.shape[0] and found.shape[2] == shape[2]:
        raise InvalidTensor(
            f"{what} has shape {list(found.shape)}; it must be [{', '.join(map(str, shape))}]. Heads before "
            f'{shape[0]} are PyTorch\'s order: layout="torch" takes it'
        )
    require(found, what, shape=shape)
    return found
