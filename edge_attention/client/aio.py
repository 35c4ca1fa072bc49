"""The asyncio client. `edge_attention.client.sync` is the same for programs without an event loop.

async with AsyncClient("127.0.0.1:50051") as client:
    context = await client.context("memory")
    answer = await context.attend(queries)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypedDict

from edge_attention.client.connection import DEADLINE_MARGIN, MAX_SECONDS, ClientConnection
from edge_attention.client.context_files import read_context
from edge_attention.client.contexts import AsyncContext, OnProgress, require_alike
from edge_attention.client.ensembles import AsyncEnsemble, ensemble_text
from edge_attention.client.models import AsyncServedModel, OnDeploy, deploy, request_of
from edge_attention.client.plans import JobPlan
from edge_attention.client.runs import AsyncRun
from edge_attention.core.errors import AlreadyExists, EdgeAttentionError, InvalidArgument, NotFound
from edge_attention.core.messages import attention as wire
from edge_attention.core.messages import ensembles
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.ensembles import DeployedEnsemble
from edge_attention.core.messages.fleet import (
    DescribeAggregatorRequest,
    DescribeAggregatorResponse,
    ForgetNodeRequest,
    ListNodesRequest,
    Node,
    ProbeNodeRequest,
    ProbeNodeResponse,
)
from edge_attention.core.messages.inference import DeployedModel, DescribeModelRequest, ListModelsRequest
from edge_attention.jobs import values
from edge_attention.jobs.checks import require_whole
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.job import FusionJob, ModelFile
from edge_attention.jobs.split_job import SplitJob
from edge_attention.wire import services
from edge_attention.wire.caller import Caller

__all__ = ["AsyncClient", "AsyncContext", "AsyncEnsemble", "AsyncRun", "AsyncServedModel"]

PLANNING = 1000.0
"""Seconds a job's planning may take: its models are differentiated and tried."""


class _Prepared(TypedDict, total=False):
    job: jobs.FusionJob
    federated: jobs.FederatedJob
    split: jobs.SplitJob


class AsyncClient:
    """A client of one aggregator.

    Args:
        address: `HOST:PORT`.
        timeout: seconds a call may take that has no deadline of its own; bulk calls get more by size.
        patience: seconds `AsyncRun` goes on trying to reach an aggregator that is away.
        retry: ask again, as long as the call's own deadline or timeout allows, when the aggregator is
            overloaded and says when to come back; False: raise `Overloaded` at once.
        token: an access token (`eat_...`), for an aggregator with TLS; it also says which authority to trust.
        authority: the authority's certificate, or several, a PEM file, instead of the token's pin.
        identity: a folder with a client certificate (`edge-attention enrol`), instead of a token.

    Without the last three it speaks plaintext, as on loopback.

    Every method raises the error the server named (edge_attention.core.errors), `Unavailable` if it
    cannot be reached, `DeadlineExceeded` if it does not answer in time.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 60.0,
        patience: float = 60.0,
        retry: bool = True,
        token: str | None = None,
        authority: str | Path | None = None,
        identity: str | Path | None = None,
    ) -> None:
        self.connection = ClientConnection(
            address,
            timeout=timeout,
            patience=patience,
            retry=retry,
            token=token,
            authority=authority,
            identity=identity,
        )

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.address}>"

    @property
    def address(self) -> str:
        return self.connection.address

    @property
    def timeout(self) -> float:
        return self.connection.timeout

    @property
    def caller(self) -> Caller:
        """The channel, for calls that this class has no method for, as of the health service."""
        return self.connection.caller

    async def close(self) -> None:
        """End all calls under way and the connection."""
        await self.connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def nodes(self) -> list[Node]:
        """The fleet's nodes: name, state, provider, threads, memory (bytes), datasets."""
        reply = await self.caller.unary(services.LIST_NODES, ListNodesRequest(), self.timeout)
        return list(reply.nodes)

    async def aggregator(self, *, timeout: float | None = None) -> DescribeAggregatorResponse:
        """The aggregator's software, clock, machine and terms. `timeout`: seconds; None: the client's."""
        request = DescribeAggregatorRequest()
        return await self.caller.unary(
            services.DESCRIBE_AGGREGATOR, request, self.connection.seconds(timeout)
        )

    async def probe(
        self, node: str, *, round_trips: int = 10, size: int = 0, deadline: float = 30.0
    ) -> ProbeNodeResponse:
        """Have the aggregator time round trips to a node and, given a `size`, so many bytes there and back.

        Raises:
            NotFound, FailedPrecondition, Unavailable, DeadlineExceeded: the node did not answer.
            ResourceExhausted: too many bytes were probed with a moment ago; it says when to try again.
        """
        request = ProbeNodeRequest(
            values.text(node, "node"),
            require_whole(round_trips, "round_trips"),
            require_whole(size, "size"),
            values.above(deadline, "deadline", MAX_SECONDS),
        )
        return await self.caller.unary(services.PROBE_NODE, request, deadline + DEADLINE_MARGIN)

    async def create_context(
        self,
        name: str,
        *,
        query_heads: int,
        key_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        replicas: int = 1,
        exist_ok: bool = False,
    ) -> AsyncContext:
        """A new, empty context. Query head h uses key head h // (query_heads // key_heads).

        Args:
            value_dim: None: as key_dim.
            exist_ok: where there is one of that name, of the same sizes, that one, with what it holds.

        Raises:
            InvalidArgument: a bad name or size, or heads that do not divide.
            AlreadyExists: the name is taken; with `exist_ok`, by one of other sizes, which it names.
        """
        sizes = {
            "query_heads": query_heads,
            "key_heads": key_heads,
            "key_dim": key_dim,
            "value_dim": key_dim if value_dim is None else value_dim,
            "replicas": replicas,
        }
        whole = {
            what: require_whole(size, f"context {values.said(name)}: {what}", 1, wire.CONTEXT_LIMITS[what])
            for what, size in sizes.items()
        }
        spec = wire.ContextSpec(values.text(name, "name"), **whole).check()
        exist_ok = values.switch(exist_ok, "exist_ok")
        try:
            reply = await self.caller.unary(
                services.CREATE_CONTEXT, wire.CreateContextRequest(spec), self.timeout
            )
        except AlreadyExists:
            if not exist_ok:
                raise
            there = await self.context(name)
            require_alike(there.spec, spec)
            return there
        return AsyncContext(self.connection, reply.context)

    async def context(self, name: str, *, timeout: float | None = None) -> AsyncContext:
        """The context of that name; NotFound if there is none. `timeout`: seconds; None: the client's."""
        request = wire.DescribeContextRequest(values.text(name, "name"))
        seconds = self.connection.seconds(timeout)
        reply = await self.caller.unary(services.DESCRIBE_CONTEXT, request, seconds)
        return AsyncContext(self.connection, reply.context)

    async def contexts(self) -> list[AsyncContext]:
        """All contexts, each with its spec, its number of tokens and its segments, to be used as they are."""
        reply = await self.caller.unary(services.LIST_CONTEXTS, wire.ListContextsRequest(), self.timeout)
        return [AsyncContext(self.connection, context) for context in reply.contexts]

    async def import_context(
        self,
        file: str | Path,
        name: str | None = None,
        *,
        replicas: int | None = None,
        progress: OnProgress | None = None,
    ) -> AsyncContext:
        """A new context with the tokens of a file that `AsyncContext.export` has written.

        All of it is there, or nothing is; of who may not drop contexts the error says what is left. Positions
        are given anew, without gaps.

        Args:
            name: what it is called; None: as it was.
            replicas: nodes that hold each segment; None: as many as it had.

        Raises:
            InvalidArgument: it is no such file.
            AlreadyExists: the name is taken.
        """
        progress = values.called(progress, "progress")
        found = await asyncio.to_thread(read_context, values.path(file, "file"))
        spec = found.spec
        context = await self.create_context(
            spec.name if name is None else name,
            query_heads=spec.query_heads,
            key_heads=spec.key_heads,
            key_dim=spec.key_dim,
            value_dim=spec.value_dim,
            replicas=spec.replicas if replicas is None else replicas,
        )
        try:
            if len(found.positions):
                await context.append(found.keys, found.values, progress=progress)
        except BaseException as error:
            try:
                await context.drop()
            except EdgeAttentionError as left:
                if isinstance(error, EdgeAttentionError):
                    raise type(error)(
                        f"{error.message}; context {context.name!r} is there with a part of the tokens, and "
                        f"could not be dropped: {left.message}"
                    ) from None
            raise
        return context

    async def forget_node(self, node: str, *, even_alone: bool = False) -> tuple[str, ...]:
        """Forget a node that is lost: it is listed no more, and is named for nothing that others have, too.

        Args:
            even_alone: also where no other node has what it had, which is returned, a few words each, and
                stays missing.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition: it is connected, or only it has what is needed.
        """
        request = ForgetNodeRequest(values.text(node, "node"), values.switch(even_alone, "even_alone"))
        return (await self.caller.unary(services.FORGET_NODE, request, self.timeout)).lost

    async def train(self, job: FusionJob | FederatedJob | SplitJob) -> AsyncRun:
        """Start a run of `job`; iterate over what is returned to follow it."""
        request = jobs.StartRunRequest(**await self._prepare(job))
        return AsyncRun(
            self.connection, (await self.caller.unary(services.START_RUN, request, self._planning)).run
        )

    async def plan(self, job: FusionJob | FederatedJob | SplitJob) -> JobPlan:
        """What `job` would run on each node, what releases that needs, what it makes of its models, and what
        a run of it would be refused for by what nodes have."""
        request = jobs.PlanRunRequest(**await self._prepare(job))
        reply = await self.caller.unary(services.PLAN_RUN, request, self._planning)
        return JobPlan(reply)

    async def run(self, run: str) -> AsyncRun:
        """The run of that id or name; NotFound if there is none."""
        request = jobs.DescribeRunRequest(values.text(run, "run"))
        return AsyncRun(
            self.connection, (await self.caller.unary(services.DESCRIBE_RUN, request, self.timeout)).run
        )

    async def runs(self) -> list[jobs.TrainingRun]:
        """All runs the aggregator knows."""
        reply = await self.caller.unary(services.LIST_RUNS, jobs.ListRunsRequest(), self.timeout)
        return list(reply.runs)

    async def deploy(
        self,
        model: ModelFile,
        name: str,
        *,
        plan: str | Path | bytes = "auto",
        nodes: Sequence[str] = (),
        replicas: int | None = None,
        dimensions: Mapping[str, int] | None = None,
        halves: bool = False,
        max_batch: int | None = None,
        max_queue_delay: float | None = None,
        tokenizer: str | Path | None = None,
        decoder: str | Path | Sequence[str | Path] = (),
        progress: OnDeploy | None = None,
    ) -> AsyncServedModel:
        """Cut an ONNX model, bring its parts to nodes, and have it serve as `name`.

        Whoever cancels this has undone it. A version that serves under that name does so until this one does.

        Args:
            model: the path of an ONNX file, whose files of weights lie beside it, or its bytes.
            plan: auto, tokens, heads, layers, batch or replicate; of tokens also how they cross an attention
                (tokens:gather, tokens:switch, tokens:merge); or the path, or the bytes, of a plan's file.
            nodes: that parts are planned for; none: all that are there. Where one has gone, any other that
                has room is given its part.
            replicas: nodes that hold each part; None: one, of a model that is not cut all.
            dimensions: sizes of the model's open dimensions, by name, of the requests it is made for.
            halves: activations pass in float16, so that the answer has the error of their rounding.
            max_batch: rows of requests that run together at most, where the model's rows do not meet; 1: each
                request by itself; None: of a model that is not cut those that wait while others run.
            max_queue_delay: seconds that one waits for others to run with, while others are under way.
            tokenizer: of a decoder that is asked for text: the path of a tokenizer.json, or of its folder,
                from which special tokens and a chat template are taken, too; or "bytes", where a token is
                a byte.
            decoder: of an encoder, the file of its decoder: a merged one, or two, without and with a past.
                Then what is generated comes of that, and `infer` asks the encoder.
            progress: told how far it is.

        Raises:
            InvalidGraph: the model cannot be cut so; says why.
            ResourceExhausted: it does not fit; says where and by how much.
        """
        request = request_of(name, plan, nodes, replicas, dimensions, halves, max_batch, max_queue_delay)
        told = values.called(progress, "progress") or (lambda _: None)
        return await deploy(self.connection, model, request, told, tokenizer, decoder)

    async def models(self) -> list[DeployedModel]:
        """All deployed models, those that are coming or going included."""
        reply = await self.caller.unary(services.LIST_MODELS, ListModelsRequest(), self.timeout)
        return list(reply.models)

    async def model(self, name: str) -> AsyncServedModel:
        """The deployed model of that name; NotFound if there is none."""
        request = DescribeModelRequest(values.text(name, "name"))
        reply = await self.caller.unary(services.DESCRIBE_MODEL, request, self.timeout)
        return AsyncServedModel(self.connection, reply.model)

    async def deploy_ensemble(self, file: str | Path, name: str) -> AsyncEnsemble:
        """Have an ensemble of deployed models serve as `name`.

        Args:
            file: in TOML, as a path, or the text itself (docs/ensembles.md).

        Raises:
            InvalidArgument: it says what cannot be, or its members do not fit together.
            FailedPrecondition: a member's model is not deployed.
        """
        called = values.text(name, "name")
        text = await asyncio.to_thread(ensemble_text, file)
        request = ensembles.DeployEnsembleRequest(called, text)
        reply = await self.caller.unary(services.DEPLOY_ENSEMBLE, request, self.timeout)
        return AsyncEnsemble(self.connection, reply.ensemble)

    async def ensembles(self) -> list[DeployedEnsemble]:
        """All ensembles."""
        reply = await self.caller.unary(
            services.LIST_ENSEMBLES, ensembles.ListEnsemblesRequest(), self.timeout
        )
        return list(reply.ensembles)

    async def ensemble(self, name: str) -> AsyncEnsemble:
        """The ensemble of that name; NotFound if there is none."""
        values.text(name, "name")
        found = {one.name: one for one in await self.ensembles()}
        if name not in found:
            raise NotFound(f"there is no ensemble {name!r}; there are: {', '.join(found) or 'none'}")
        return AsyncEnsemble(self.connection, found[name])

    @property
    def _planning(self) -> float:
        return max(self.timeout, PLANNING)

    async def _prepare(self, job: FusionJob | FederatedJob | SplitJob) -> _Prepared:
        """The request's field for this kind of job; its files are sent."""
        if not isinstance(job, FusionJob | FederatedJob | SplitJob):
            raise InvalidArgument(
                f"the job is {type(job).__name__}; give a FusionJob, a FederatedJob or a SplitJob, or read a "
                "file of one with edge_attention.read_job('job.toml')"
            )
        prepare: Callable[[], tuple[jobs.FusionJob | jobs.FederatedJob | jobs.SplitJob, dict[str, bytes]]] = (
            job.prepare
        )
        prepared, files = await asyncio.to_thread(prepare)
        for data in files.values():
            await self.connection.upload(data)
        if isinstance(prepared, jobs.FusionJob):
            return {"job": prepared}
        return {"split": prepared} if isinstance(prepared, jobs.SplitJob) else {"federated": prepared}
