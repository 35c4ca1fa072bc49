"""The client for programs without an event loop: `AsyncClient` on a thread of its own.

    with Client("127.0.0.1:50051") as client:
        context = client.create_context("memory", query_heads=8, key_heads=2, key_dim=64, value_dim=64)
        context.append(keys, values)
        answer = context.attend(queries, causal=True, deadline=2.0)

Shapes, defaults and errors are those of the methods of the same names in `edge_attention.client.aio`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from numpy.typing import ArrayLike

from edge_attention.client.aio import AsyncClient
from edge_attention.client.background import BACKGROUND
from edge_attention.client.contexts import AsyncContext, OnProgress
from edge_attention.client.ensembles import AsyncEnsemble, EnsembleResult
from edge_attention.client.generation import AsyncGeneration, GeneratedPiece
from edge_attention.client.gradients import Gradients
from edge_attention.client.layouts import Layout
from edge_attention.client.models import AsyncServedModel, ModelResult, OnDeploy
from edge_attention.client.plans import JobPlan
from edge_attention.client.predictions import Prediction, Rows
from edge_attention.client.results import Answer, Appended
from edge_attention.client.runs import AsyncRun, Event, TrainedModel, WhichVersion
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages import attention as wire
from edge_attention.core.messages.ensembles import DeployedEnsemble
from edge_attention.core.messages.fleet import DescribeAggregatorResponse, Node, ProbeNodeResponse
from edge_attention.core.messages.inference import DeployedModel, GenerateReport, ToldToken
from edge_attention.core.messages.training import TrainingRound, TrainingRun
from edge_attention.jobs.columns import Columns, Inputs, WhereMissing
from edge_attention.jobs.federated_job import FederatedJob
from edge_attention.jobs.job import FusionJob, ModelFile
from edge_attention.jobs.parameters import Parameters
from edge_attention.jobs.split_job import SplitJob

__all__ = ["Client", "Context", "Generation", "Run"]

T = TypeVar("T")


class Client:
    """A client of one aggregator, for any number of threads. Close it, or use it in a `with`.

    Args:
        address: `HOST:PORT`.
        timeout: seconds a call may take that has no deadline of its own.
        patience: seconds a run's iteration goes on trying to reach an aggregator that is away.
        token: an access token (`eat_...`), for an aggregator with TLS.
        authority: the authority's certificate, or several, a PEM file; a token finds it by itself.
        identity: a folder with a client certificate (`edge-attention enrol`), instead of a token.
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
        self._client = AsyncClient(
            address,
            timeout=timeout,
            patience=patience,
            retry=retry,
            token=token,
            authority=authority,
            identity=identity,
        )
        self._key = BACKGROUND.acquire(self._client.close)
        # When the client is forgotten; what is open when the program ends BACKGROUND closes by itself.
        self._forgotten = weakref.finalize(self, BACKGROUND.forget, self._key)
        self._forgotten.atexit = False

    @property
    def address(self) -> str:
        return self._client.address

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    def close(self) -> None:
        """End calls under way, the connection and, with the last client, the thread."""
        self._forgotten.detach()
        BACKGROUND.close(self._key)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _open(self) -> bool:
        return self._forgotten.alive and not self._client.connection.inherited

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, from the loop that all clients share."""
        try:
            self._client.connection.check()
        except EdgeAttentionError:
            coroutine.close()
            BACKGROUND.stand_still()
            raise
        try:
            return BACKGROUND.run(coroutine)
        except EdgeAttentionError as error:
            # What it passed through on the other thread says nothing to who reads it: the sentence does.
            raise error.with_traceback(None) from None

    def _each(self, events: AsyncGenerator[T]) -> Iterator[T]:
        """What `events` gives, from the loop; it is closed when who reads it leaves."""
        turn = asyncio.Lock()  # after Ctrl-C the closing waits for the step that was interrupted

        async def following() -> T | None:
            async with turn:
                return await anext(events, None)

        async def close() -> None:
            async with turn:
                await events.aclose()

        try:
            while (event := self._wait(following())) is not None:
                yield event
        finally:
            if self._open:
                BACKGROUND.soon(close)

    def nodes(self) -> list[Node]:
        """The fleet's nodes: name, state, provider, threads, memory (bytes), datasets."""
        return self._wait(self._client.nodes())

    def aggregator(self, *, timeout: float | None = None) -> DescribeAggregatorResponse:
        """The aggregator's software, clock, machine and terms."""
        return self._wait(self._client.aggregator(timeout=timeout))

    def probe(
        self, node: str, *, round_trips: int = 10, size: int = 0, deadline: float = 30.0
    ) -> ProbeNodeResponse:
        """Have the aggregator time round trips to a node and, with a `size`, so many bytes there and back."""
        probe = self._client.probe(node, round_trips=round_trips, size=size, deadline=deadline)
        return self._wait(probe)

    def create_context(
        self,
        name: str,
        *,
        query_heads: int,
        key_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        replicas: int = 1,
        exist_ok: bool = False,
    ) -> Context:
        """A new, empty context, each segment of which `replicas` nodes will hold; see
        AsyncClient.create_context."""
        made = self._client.create_context(
            name,
            query_heads=query_heads,
            key_heads=key_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            replicas=replicas,
            exist_ok=exist_ok,
        )
        return Context(self, self._wait(made))

    def context(self, name: str, *, timeout: float | None = None) -> Context:
        """The context of that name; NotFound if there is none. `timeout`: seconds; None: the client's."""
        return Context(self, self._wait(self._client.context(name, timeout=timeout)))

    def contexts(self) -> list[Context]:
        """All contexts, each with its spec, its number of tokens and its segments, to be used as they are."""
        return [Context(self, context) for context in self._wait(self._client.contexts())]

    def import_context(
        self,
        file: str | Path,
        name: str | None = None,
        *,
        replicas: int | None = None,
        progress: OnProgress | None = None,
    ) -> Context:
        """A new context with the tokens of an exported file; see AsyncClient.import_context.

        `progress` is called on the client's thread: it must not call the client.
        """
        made = self._client.import_context(file, name, replicas=replicas, progress=progress)
        return Context(self, self._wait(made))

    def forget_node(self, node: str, *, even_alone: bool = False) -> tuple[str, ...]:
        """Forget a node that is lost; see AsyncClient.forget_node."""
        return self._wait(self._client.forget_node(node, even_alone=even_alone))

    def train(self, job: FusionJob | FederatedJob | SplitJob) -> Run:
        """Start a run of `job`; iterate over what is returned to follow it."""
        return Run(self, self._wait(self._client.train(job)))

    def plan(self, job: FusionJob | FederatedJob | SplitJob) -> JobPlan:
        """What `job` would run on each node and what releases that needs, without starting it."""
        return self._wait(self._client.plan(job))

    def run(self, run: str) -> Run:
        """The run of that id or name; NotFound if there is none."""
        return Run(self, self._wait(self._client.run(run)))

    def runs(self) -> list[TrainingRun]:
        """All runs the aggregator knows."""
        return self._wait(self._client.runs())

    def deploy(
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
    ) -> ServedModel:
        """Cut an ONNX model, bring its parts to nodes, and have it serve as `name`; see AsyncClient.deploy.

        `progress` is called on the client's thread: it must not call the client.
        """
        made = self._client.deploy(
            model,
            name,
            plan=plan,
            nodes=nodes,
            replicas=replicas,
            dimensions=dimensions,
            halves=halves,
            max_batch=max_batch,
            max_queue_delay=max_queue_delay,
            tokenizer=tokenizer,
            decoder=decoder,
            progress=progress,
        )
        return ServedModel(self, self._wait(made))

    def models(self) -> list[DeployedModel]:
        """All deployed models, those that are coming or going included."""
        return self._wait(self._client.models())

    def model(self, name: str) -> ServedModel:
        """The deployed model of that name; NotFound if there is none."""
        return ServedModel(self, self._wait(self._client.model(name)))

    def deploy_ensemble(self, file: str | Path, name: str) -> Ensemble:
        """Have an ensemble of deployed models serve as `name`; see AsyncClient.deploy_ensemble."""
        return Ensemble(self, self._wait(self._client.deploy_ensemble(file, name)))

    def ensembles(self) -> list[DeployedEnsemble]:
        """All ensembles."""
        return self._wait(self._client.ensembles())

    def ensemble(self, name: str) -> Ensemble:
        """The ensemble of that name; NotFound if there is none."""
        return Ensemble(self, self._wait(self._client.ensemble(name)))


class Ensemble:
    """An ensemble on the aggregator."""

    def __init__(self, client: Client, ensemble: AsyncEnsemble) -> None:
        self._client = client
        self._ensemble = ensemble

    @property
    def name(self) -> str:
        return self._ensemble.name

    @property
    def info(self) -> DeployedEnsemble:
        """What it is, as last heard."""
        return self._ensemble.info

    def __repr__(self) -> str:
        return repr(self._ensemble).replace("AsyncEnsemble", "Ensemble")

    def infer(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        deadline: float | None = None,
        outputs: Sequence[str] = (),
    ) -> EnsembleResult:
        """The ensemble's answer to `inputs`, name -> array; see AsyncEnsemble.infer."""
        return self._client._wait(self._ensemble.infer(inputs, deadline=deadline, outputs=outputs))

    def undeploy(self) -> DeployedEnsemble:
        """End it; its members stay."""
        return self._client._wait(self._ensemble.undeploy())


class ServedModel:
    """A deployed model on the aggregator."""

    def __init__(self, client: Client, model: AsyncServedModel) -> None:
        self._client = client
        self._model = model

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def info(self) -> DeployedModel:
        """What it is, as last heard: its inputs and outputs, its plan, who holds what."""
        return self._model.info

    def __repr__(self) -> str:
        return repr(self._model).replace("AsyncServedModel", "ServedModel")

    def infer(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        deadline: float | None = None,
        outputs: Sequence[str] = (),
        partial: bool = False,
        priority: int = 0,
    ) -> ModelResult:
        """The model's answer to `inputs`, name -> array, by name; see AsyncServedModel.infer."""
        return self._client._wait(
            self._model.infer(inputs, deadline=deadline, outputs=outputs, partial=partial, priority=priority)
        )

    def generate(
        self,
        prompt: str | Iterable[int] = "",
        *,
        inputs: Mapping[str, ArrayLike] | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        deadline: float | None = None,
        speculate: bool = True,
        priority: int = 0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> Generation:
        """What comes after `prompt`, of a decoder: iterate over it for pieces as they come; see
        AsyncServedModel.generate."""
        generation = self._model.generate(
            prompt,
            inputs=inputs,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            deadline=deadline,
            speculate=speculate,
            priority=priority,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            logit_bias=logit_bias,
            logprobs=logprobs,
            echo=echo,
        )
        return Generation(self._client, generation)

    def describe(self) -> DeployedModel:
        """What it is now."""
        return self._client._wait(self._model.describe())

    def undeploy(self) -> DeployedModel:
        """End the deployment: requests under way end, then nodes and the aggregator forget its weights."""
        return self._client._wait(self._model.undeploy())


class Generation:
    """What comes after a prompt. Iterate over it once, for pieces as they come; leaving ends it at once."""

    def __init__(self, client: Client, generation: AsyncGeneration) -> None:
        self._client = client
        self._generation = generation

    @property
    def text(self) -> str:
        """All that is sure so far."""
        return self._generation.text

    @property
    def tokens(self) -> list[int]:
        """All that came so far."""
        return self._generation.tokens

    @property
    def told(self) -> list[ToldToken]:
        """Tokens with their log probabilities, so far."""
        return self._generation.told

    @property
    def report(self) -> GenerateReport | None:
        """Why it ended and what it took, once it has."""
        return self._generation.report

    def __iter__(self) -> Iterator[GeneratedPiece]:
        return self._client._each(self._generation.pieces())

    def rest(self) -> str:
        """All of the text, once it has come."""
        for _ in self:
            pass
        return self.text


class Context:
    """A context on the aggregator, whether it was created, asked for by name, or listed."""

    def __init__(self, client: Client, context: AsyncContext) -> None:
        self._client = client  # keeps the connection open while the handle lives
        self._context = context

    @property
    def info(self) -> wire.Context:
        """What it was when it was last heard of: made, described or listed."""
        return self._context.info

    @property
    def spec(self) -> wire.ContextSpec:
        """Its name, heads and dimensions, which never change."""
        return self._context.spec

    @property
    def name(self) -> str:
        return self._context.name

    @property
    def tokens(self) -> int:
        """How many tokens it had when it was last heard of; `describe` asks anew."""
        return self._context.tokens

    @property
    def segments(self) -> tuple[wire.Segment, ...]:
        """Its segments and their holders, as last heard of."""
        return self._context.segments

    def __repr__(self) -> str:
        return repr(self._context).replace("AsyncContext", "Context", 1)

    def append(
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

        Calls of at most 64 MiB, each stored whole or not at all. `progress` is called after each, with
        tokens done and in all, on the client's thread: it must not call the client. Called again with the
        same `request_id` it appends nothing twice; see AsyncContext.append.
        """
        stored = total = 0

        def told(done: int, all_: int) -> None:
            nonlocal stored, total
            stored, total = done, all_
            if progress is not None:
                progress(done, all_)

        follow = told if progress is None or callable(progress) else progress
        append = self._context.append(
            keys, values, node=node, progress=follow, request_id=request_id, layout=layout
        )
        try:
            return self._client._wait(append)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(
                f"the first {stored:,} tokens were stored in context {self.name!r}"
                + (f", of {total:,}" if total else "")
                + "; what was under way may be, too: describe() says how many there are"
            )
            raise

    def append_dataset(
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
        """Append what `node` computes from its own dataset through an ONNX model, a token a row.

        The model's outputs are `keys` [rows, key_heads, key_dim] and `values` [rows, key_heads, value_dim];
        see AsyncContext.append_dataset.
        """
        appended = self._context.append_dataset(
            node,
            dataset,
            model,
            inputs,
            rows,
            columns=columns,
            missing_values=missing_values,
            timeout=timeout,
            request_id=request_id,
        )
        return self._client._wait(appended)

    def attend(
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
        """Exact attention of queries [queries, query_heads, key_dim]; see AsyncContext.attend."""
        attended = self._context.attend(
            queries,
            causal=causal,
            positions=positions,
            window=window,
            scale=scale,
            deadline=deadline,
            weights=weights,
            encoding=encoding,
            until=until,
            require_exact=require_exact,
            layout=layout,
        )
        return self._client._wait(attended)

    def gradients(
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
        """The gradients of a loss by what was attended; see AsyncContext.gradients."""
        found = self._context.gradients(
            queries,
            out,
            lse,
            dout,
            causal=causal,
            positions=positions,
            window=window,
            scale=scale,
            deadline=deadline,
            until=until,
            tokens=tokens,
            coverage=coverage,
        )
        return self._client._wait(found)

    def describe(self, *, timeout: float | None = None) -> wire.Context:
        """The context's spec, tokens and segments, with their holders. `timeout`: seconds."""
        return self._client._wait(self._context.describe(timeout=timeout))

    def trim(self, positions: range, *, timeout: float | None = None) -> wire.TrimContextResponse:
        """Forget the tokens at `positions`; the others keep theirs. See AsyncContext.trim."""
        return self._client._wait(self._context.trim(positions, timeout=timeout))

    def repair(self, *, timeout: float = 600.0) -> wire.RepairContextResponse:
        """Copy segments that have fewer holders than the context has replicas; see AsyncContext.repair."""
        return self._client._wait(self._context.repair(timeout=timeout))

    def export(self, file: str | Path, *, progress: OnProgress | None = None) -> int:
        """Write the context's tokens to a safetensors file; how many they are. See AsyncContext.export.

        `progress` is called on the client's thread: it must not call the client.
        """
        return self._client._wait(self._context.export(file, progress=progress))

    def drop(self) -> None:
        """Forget the context on the aggregator and its tokens on the nodes."""
        self._client._wait(self._context.drop())


class Run:
    """A training run. Iterating yields every round from the first on and ends with the run."""

    def __init__(self, client: Client, run: AsyncRun) -> None:
        self._client = client
        self._run = run

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def info(self) -> TrainingRun:
        """The run's state as last heard."""
        return self._run.info

    @property
    def waiting(self) -> str:
        """What the run waits for and until when, as last heard; empty if it does not wait."""
        return self._run.waiting

    def __repr__(self) -> str:
        return repr(self._run).replace("AsyncRun", "Run")

    def __iter__(self) -> Iterator[TrainingRound]:
        return (event for event in self.events() if isinstance(event, TrainingRound))

    def events(self, after: int = 0) -> Iterator[Event]:
        """Rounds after number `after`, and the run's changes of state between them; see AsyncRun.events."""
        return self._client._each(self._run.events(after))

    def describe(self) -> TrainingRun:
        """The run's state now."""
        return self._client._wait(self._run.describe())

    def stop(self) -> TrainingRun:
        """End the run. What it committed stays; a round under way is dropped."""
        return self._client._wait(self._run.stop())

    def delete(self) -> TrainingRun:
        """Forget the run, which has ended; FailedPrecondition if it goes on. Its deployments serve on."""
        return self._client._wait(self._run.delete())

    def resume(self) -> TrainingRun:
        """Let a run that was stopped, or failed, go on; FailedPrecondition if it is neither."""
        return self._client._wait(self._run.resume())

    def parameters(self, version: WhichVersion = None) -> Parameters:
        """The parameters of `version` (None: the latest; 0: the initial ones; "best": of those evaluated the
        one with the lowest loss): name -> array, `.version`."""
        return self._client._wait(self._run.parameters(version))

    def save_parameters(self, file: str | Path, version: WhichVersion = None) -> int:
        """Write the parameters of `version` as a safetensors file; returns the version written."""
        return self._client._wait(self._run.save_parameters(file, version))

    def onnx(self, version: WhichVersion = None) -> bytes:
        """The run's model with the parameters of `version` in it: an ONNX file, ready to serve; see
        AsyncRun.onnx."""
        return self._client._wait(self._run.onnx(version))

    def trained(self, version: WhichVersion = None) -> TrainedModel:
        """As `onnx`, with its version and how rows of tables become its inputs."""
        return self._client._wait(self._run.trained(version))

    def save_onnx(self, file: str | Path, version: WhichVersion = None) -> int:
        """Write what `onnx` gives to a file; returns the version written."""
        return self._client._wait(self._run.save_onnx(file, version))

    def predict(self, rows: Rows | Sequence[str], version: WhichVersion = None) -> Prediction:
        """What the trained model says of `rows`: arrays by input, which stay here, or of a fusion run the ids
        of samples on the nodes; see AsyncRun.predict."""
        return self._client._wait(self._run.predict(rows, version))
