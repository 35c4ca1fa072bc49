"""An aggregator of one process and no nodes, by the definitions, for tests of the client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc.aio
import numpy as np

from aggregator.serving.rpc import service_handlers
from edge_attention.core import errors
from edge_attention.core.messages import attention as a
from edge_attention.core.messages import fleet
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.link import Uploaded
from edge_attention.wire import services as s
from edge_attention.wire.methods import CHANNEL_OPTIONS


def attention(queries, keys, values, visible, scale):
    """out, lse and weights in float64; `visible` is bool [queries, tokens]."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (keys, values))
    scores = scale * np.einsum("qhd,thd->qht", queries.astype(np.float64), keys)
    scores = np.where(visible[:, None, :], scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    lse = (top + np.log(np.exp(scores - top).sum(-1, keepdims=True)))[..., 0]
    weights = np.exp(scores - lse[..., None])
    return np.einsum("qht,thd->qhd", weights, values), lse, weights


def safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    header, at = {}, 0
    for name, array in arrays.items():
        span = [at, at + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
        at = span[1]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in arrays.values())


class Fake:
    """`calls` records what came; `cut` makes the watch streams end after so many rounds, once each.

    `broken` says what becomes of the next calls of Append: "before" or "after" the tokens are stored the
    connection breaks. `endless` keeps a run from ending. `federated` makes the rounds those of a federated
    run; `lost` bytes of the trained model never come, whose inputs are read by `reads`.
    """

    def __init__(self) -> None:
        self.contexts: dict[str, tuple[a.ContextSpec, list, list]] = {}
        self.blobs: dict[str, bytearray] = {}
        self.calls: list[tuple] = []
        self.cut: list[int] = []
        self.missing = range(0)
        self.fail_append_after = 10**9
        self.answers: dict[str, a.AppendResponse | None] = {}
        self.broken: list[str] = []
        self.federated = False
        self.endless = False
        self.trained, self.lost = b"an ONNX file" * 50, 0
        self.reads: tuple[jobs.RowsRead, ...] = (jobs.RowsRead(),)
        self.end = jobs.TrainingRun("r1", "job", jobs.RunState.FINISHED, "", 5, 5, 5, 0.0)
        self.arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}
        self.handlers = {
            s.LIST_NODES: self.nodes,
            s.BULK_UPLOAD: self.upload,
            s.CREATE_CONTEXT: self.create,
            s.DESCRIBE_CONTEXT: self.describe,
            s.LIST_CONTEXTS: self.list_contexts,
            s.DROP_CONTEXT: self.drop,
            s.APPEND: self.append,
            s.APPEND_DATASET: self.append_dataset,
            s.ATTEND: self.attend,
            s.START_RUN: self.start,
            s.PLAN_RUN: self.plan,
            s.WATCH_RUN: self.watch,
            s.DESCRIBE_RUN: self.describe_run,
            s.STOP_RUN: self.stop_run,
            s.LIST_RUNS: self.list_runs,
            s.RESUME_RUN: self.resume_run,
            s.GET_PARAMETERS: self.parameters,
            s.GET_MODEL: self.model,
            s.INFER: self.infer,
        }

    async def nodes(self, request, context):
        node = fleet.Node(
            "a", fleet.NodeState.READY, "CPUExecutionProvider", 2, 2**30, 0, (), 0.1, "0.1.0", 0, ()
        )
        return fleet.ListNodesResponse((node,))

    async def upload(self, chunks, context):
        async for chunk in chunks:
            blob = self.blobs.setdefault(chunk.digest, bytearray())
            self.calls.append(("upload", len(chunk.data)))
            if chunk.data:
                assert chunk.offset == len(blob)
                blob += chunk.data
                if len(blob) == chunk.size:
                    assert hashlib.sha256(blob).hexdigest() == chunk.digest
        return Uploaded(len(blob))

    def found(self, name: str) -> tuple[a.ContextSpec, list, list]:
        if name not in self.contexts:
            raise errors.NotFound(f"there is no context {name!r}")
        return self.contexts[name]

    def told(self, name: str) -> a.Context:
        spec, keys, _ = self.found(name)
        tokens = sum(map(len, keys))
        return a.Context(spec, tokens, (a.Segment("s0", range(tokens), ("a",), ("a",)),))

    async def create(self, request, context):
        if request.spec.name in self.contexts:
            raise errors.AlreadyExists(
                f"there is a context {request.spec.name!r} already; use it (in Python: "
                "exist_ok=True), drop it, or choose another name"
            )
        self.contexts[request.spec.name] = (request.spec, [], [])
        return a.CreateContextResponse(self.told(request.spec.name))

    async def describe(self, request, context):
        self.calls.append(("describe",))
        return a.DescribeContextResponse(self.told(request.context))

    async def list_contexts(self, request, context):
        return a.ListContextsResponse(tuple(map(self.told, self.contexts)))

    async def drop(self, request, context):
        self.found(request.context)
        del self.contexts[request.context]
        return a.DropContextResponse()

    async def append(self, messages, context):
        parts = [message async for message in messages]
        _, keys, values = self.found(parts[0].context)
        start = sum(map(len, keys))
        broken = self.broken.pop(0) if self.broken else ""
        if broken == "before":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        name = parts[0].request_id
        if parts[0].keys is None:
            if self.answers.setdefault(name, None) is None:
                raise errors.NotFound(f"append {name!r} was not made")
            return self.answers[name]
        if name in self.answers:
            if self.answers[name] is None:
                raise errors.AlreadyExists(f"append {name!r} was given up")
            return self.answers[name]
        if start >= self.fail_append_after:
            raise errors.Unavailable("node 'a' is lost")
        self.calls.append(("append", parts[0].node, len(parts)))
        keys += [part.keys for part in parts]
        values += [part.values for part in parts]
        tokens = range(start, sum(map(len, keys)))
        answer = a.AppendResponse(tokens, (a.Segment(f"s{start}", tokens, ("a",), ("a",)),))
        self.answers[name] = answer
        if broken == "after":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return answer

    async def append_dataset(self, request, context):
        assert request.graph in self.blobs
        self.calls.append(("append_dataset", request))
        return a.AppendResponse(range(3), ())

    async def attend(self, request, context):
        spec, keys, values = self.found(request.context)
        if not keys:
            raise errors.EmptyContext(f"context {request.context!r} is empty; append to it first")
        keys, values = np.concatenate(keys), np.concatenate(values)
        self.calls.append(("attend", len(request.queries), request.until, request.deadline_seconds))
        tokens = len(keys) if request.until is None else request.until
        keys, values = keys[:tokens], values[:tokens]
        n = len(request.queries)
        positions = np.arange(tokens - n, tokens) if request.positions is None else request.positions
        at = np.arange(tokens)
        seen = at <= positions[:, None] if request.causal else np.ones((n, tokens), bool)
        scale = request.scale or spec.key_dim**-0.5
        # Two shards, and of them what is not missing.
        half, mass = tokens // 2, []
        there = seen & ~((at >= self.missing.start) & (at < self.missing.stop))
        out, lse, weights = attention(request.queries, keys, values, there, scale)
        for shard, span in (("s0", range(half)), ("s1", range(half, tokens))):
            if there[:, span.start : span.stop].any():
                share = weights[..., span.start : span.stop].sum(-1)
                mass.append(a.ShardMass(shard, "ab"[shard == "s1"], span, share.astype(np.float32)))
        lost = seen[:, self.missing.start : self.missing.stop].any()
        return a.AttendResponse(
            out=out.astype(np.float32),
            lse=lse.astype(np.float32),
            exact=not lost,
            coverage=tuple(m.tokens for m in mass),
            mass=tuple(mass),
            tokens=tokens,
            weights=weights.astype(np.float32) if request.weights else None,
            bound=a.Bound(np.ones(out.shape, np.float32), True) if lost else None,
            missing=(a.Missing("s1", self.missing, ("b",), "node 'b' is lost"),) if lost else (),
            seconds={"all": 0.5},
        )

    def round(self, number: int) -> jobs.TrainingRound:
        made = jobs.TrainingRound(number, number, 1 / number, (0,), {"all": 0.1}, {}, {}, {"a": 1.0})
        if not self.federated:
            return made
        nodes = {
            name: jobs.NodeRound(64, 2, 1 / number, 0.05, i, 1.5, 4096, 8192) for i, name in enumerate("ab")
        }
        left = {"b": "the deadline of 2 s passed"} if number == self.end.round else {}
        evaluation = jobs.Evaluation(50, 0.25, {"correct": 43.0}) if number % 2 else None
        return replace(
            made,
            mass={},
            samples=(),
            nodes={name: part for name, part in nodes.items() if name not in left},
            left_out=left,
            evaluation=evaluation,
            consensus={"global": 0.125},
        )

    def run(self, state=jobs.RunState.RUNNING) -> jobs.TrainingRun:
        return replace(self.end, state=state, round=0, version=0)

    async def start(self, request, context):
        if request.federated is not None:
            model = request.federated.model
            assert {model.graph, model.initial} - {""} <= self.blobs.keys()
        else:
            assert all(e.graph in self.blobs for e in (*request.job.encoders, request.job.head))
        self.calls.append(("start", request.federated or request.job))
        return jobs.StartRunResponse(self.run())

    async def plan(self, request, context):
        planned = (
            jobs.PlannedGraph("a", "encoder", "d1", ("keys",), "fusion"),
            jobs.PlannedGraph("a", "head", "d2", (), ""),
            jobs.PlannedGraph("b", "encoder_gradient", "d3", ("dw",), "sha256:d3"),
        )
        return jobs.PlanRunResponse(planned)

    async def watch(self, request, context):
        self.calls.append(("watch", request.after_round))
        cut = self.cut.pop(0) if self.cut else 10**9
        for number in range(request.after_round + 1, self.end.round + 1):
            if cut == 0:
                raise errors.Unavailable("going down")
            cut -= 1
            if number == 2:
                doing = {"a": "done", "b": "12 of 40 chunks"}
                yield replace(self.run(), waiting="node 'b', until 12:00:00", nodes=doing)
            yield self.round(number)
        if self.endless:
            await asyncio.sleep(3600)
        yield self.end

    async def describe_run(self, request, context):
        if request.run not in ("r1", "job"):
            raise errors.NotFound(f"there is no run {request.run!r}")
        return jobs.DescribeRunResponse(self.end)

    async def stop_run(self, request, context):
        return jobs.StopRunResponse(self.run(jobs.RunState.STOPPED))

    async def resume_run(self, request, context):
        self.calls.append(("resume", request.run))
        if self.end.state is not jobs.RunState.STOPPED:
            raise errors.FailedPrecondition(f"run {request.run} is {self.end.state.value}")
        self.end = replace(self.end, state=jobs.RunState.FINISHED)
        return jobs.ResumeRunResponse(replace(self.end, state=jobs.RunState.RUNNING, round=3, version=3))

    async def list_runs(self, request, context):
        return jobs.ListRunsResponse((self.end,))

    async def parameters(self, request, context):
        data = safetensors(self.arrays)
        version = 5 if request.version is None else request.version
        for at in range(0, len(data), 100):
            yield jobs.ParametersChunk(version, len(data), data[at : at + 100])

    async def model(self, request, context):
        version = 5 if request.version is None else request.version
        size = len(self.trained) + self.lost
        yield jobs.ModelChunk(version, size, b"", self.reads)
        for at in range(0, len(self.trained), 100):
            yield jobs.ModelChunk(version, size, self.trained[at : at + 100])

    async def infer(self, messages, context):
        first, *_ = [message async for message in messages]
        raise errors.NotFound(f"there is no model {first.model!r}")
        yield


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """The fake's address, while it is served from a thread of its own."""
    ready, address, loop = threading.Event(), [], asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        server.add_generic_rpc_handlers(service_handlers(fake.handlers))
        address.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(120)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(120)
        loop.close()
