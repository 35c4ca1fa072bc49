"""`AsyncRun`: a training run followed from afar, its rounds as they come, over restarts of the aggregator."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_attention.client.connection import ClientConnection
from edge_attention.client.predictions import Prediction, Rows, flattened, joined, predicted
from edge_attention.core.errors import (
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.training import (
    ModelChunk,
    ParametersChunk,
    RowsRead,
    RunState,
    TrainingRound,
    TrainingRun,
)
from edge_attention.jobs import values
from edge_attention.jobs.checks import require_whole
from edge_attention.jobs.parameters import Parameters, read_safetensors
from edge_attention.wire import services

Event = TrainingRound | TrainingRun
BEST = "best"
WhichVersion = int | str | None
"""A version by its number; None: the latest; BEST: of those evaluated the one with the lowest loss."""
IDS = 1024
"""Of samples on nodes, asked about in one call."""
PREDICT_SECONDS = 180.0


@dataclass(frozen=True)
class TrainedModel:
    """What a run has trained.

    Attributes:
        onnx: an ONNX file, ready to serve.
        reads: how rows of tables become its inputs, as the run's own job says; empty: the aggregator is of an
            earlier release, and does not say.
    """

    onnx: bytes
    version: int
    reads: tuple[RowsRead, ...] = ()

    def __repr__(self) -> str:
        return f"<TrainedModel of version {self.version}: {len(self.onnx):,} bytes>"


class AsyncRun:
    """A run. Iterating yields every round from the first on and ends with the run.

    Attributes:
        info: the run's state as it was last heard.
    """

    def __init__(self, connection: ClientConnection, info: TrainingRun) -> None:
        self._connection = connection
        self._model_held: TrainedModel | None = None
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def waiting(self) -> str:
        """What the run waits for and until when, as last heard; empty if it does not wait."""
        return self.info.waiting

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}: {self.info.state.value}, round {self.info.round}>"

    async def __aiter__(self) -> AsyncIterator[TrainingRound]:
        async for event in self.events():
            if isinstance(event, TrainingRound):
                yield event

    async def events(self, after: int = 0) -> AsyncGenerator[Event]:
        """Rounds after number `after`, each once and in order, and between them the run's changes of state.

        While the aggregator is away this tries again, with backoff, for the client's `patience`; a
        TrainingRun whose `waiting` says so comes first.

        Raises:
            FailedPrecondition: the run failed; says why.
            Unavailable: the aggregator stayed away.
        """
        after = require_whole(after, "after")
        away_since: float | None = None
        delay = 0.1
        while True:
            lost: Unavailable | Cancelled
            try:
                request = jobs.WatchRunRequest(self.id, after)
                async for event in self._connection.caller.receive(services.WATCH_RUN, request):
                    if away_since is not None:
                        self.info = replace(self.info, waiting="")
                        away_since, delay = None, 0.1
                    if isinstance(event, TrainingRun):
                        self.info = event
                    elif event.number > after:
                        after = event.number
                    else:
                        continue
                    yield event
                if (await self.describe()).state is not RunState.RUNNING:
                    break
                lost = Unavailable(
                    f"the aggregator at {self._connection.address} ended the stream of {self.id}"
                )
            except (Unavailable, Cancelled) as error:
                lost = error
            now = time.monotonic()
            if away_since is None:
                away_since = now
                until = time.strftime("%H:%M:%S", time.localtime(time.time() + self._connection.patience))
                self.info = replace(
                    self.info, waiting=f"the aggregator at {self._connection.address}, until {until}"
                )
                yield self.info
            if now - away_since > self._connection.patience:
                raise Unavailable(
                    f"{lost.message} (tried for {self._connection.patience:g} s; run {self.id} goes on from "
                    "its last committed version when the aggregator is back)"
                ) from lost
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, 2.0)
        if self.info.state is RunState.FAILED:
            raise FailedPrecondition(
                f"run {self.id} failed after round {self.info.round}: {self.info.detail or 'no reason given'}"
            )

    async def delete(self) -> TrainingRun:
        """Forget the run, which has ended: job, records and versions. What was deployed from it serves on.

        Raises:
            FailedPrecondition: it goes on.
        """
        request = jobs.DeleteRunRequest(self.id)
        self.info = (
            await self._connection.caller.unary(services.DELETE_RUN, request, self._connection.timeout)
        ).run
        return self.info

    async def describe(self) -> TrainingRun:
        """The run's state now."""
        request = jobs.DescribeRunRequest(self.id)
        self.info = (
            await self._connection.caller.unary(services.DESCRIBE_RUN, request, self._connection.timeout)
        ).run
        return self.info

    async def stop(self) -> TrainingRun:
        """End the run. What it committed stays; a round under way is dropped."""
        request = jobs.StopRunRequest(self.id)
        self.info = (
            await self._connection.caller.unary(services.STOP_RUN, request, self._connection.timeout)
        ).run
        return self.info

    async def resume(self) -> TrainingRun:
        """Let a run that was stopped, or failed, go on after its last committed round.

        Raises:
            FailedPrecondition: it is neither.
        """
        request = jobs.ResumeRunRequest(self.id)
        self.info = (
            await self._connection.caller.unary(services.RESUME_RUN, request, self._connection.timeout)
        ).run
        return self.info

    async def parameters(self, version: WhichVersion = None) -> Parameters:
        """The parameters of `version` (None: the latest; 0: the initial ones; "best": of those evaluated the
        one with the lowest loss), name -> array."""
        data, version = await self._parameters(version)
        arrays = read_safetensors(data, f"version {version} of run {self.id}")
        return Parameters(arrays, version, self.id)

    async def save_parameters(self, file: str | Path, version: WhichVersion = None) -> int:
        """Write the parameters of `version` as a safetensors file; returns the version written."""
        file = values.path(file, "file")
        data, version = await self._parameters(version)
        read_safetensors(data, f"version {version} of run {self.id}")
        await asyncio.to_thread(_write, file, data)
        return version

    async def onnx(self, version: WhichVersion = None) -> bytes:
        """The run's model with the parameters of `version` in it: an ONNX file, ready to serve.

        Of a fusion run it has all encoders, the attention and the head: inputs `<node>/<input>`, outputs
        those of the head that need no labels.

        Raises:
            FailedPrecondition: the run has no such model: it is one of a step graph.
            InvalidGraph: the head says nothing without labels.
        """
        return (await self.trained(version)).onnx

    async def trained(self, version: WhichVersion = None) -> TrainedModel:
        """As `onnx`, with its version and how rows of tables become its inputs."""
        reads: list[RowsRead] = []
        request = jobs.GetModelRequest(self.id, *_checked(version))
        chunks = self._connection.caller.receive(
            services.GET_MODEL, request, silence=self._connection.timeout
        )
        data, number = await _joined(_noting(chunks, reads), f"the model of run {self.id}")
        return TrainedModel(data, number, tuple(reads))

    async def save_onnx(self, file: str | Path, version: WhichVersion = None) -> int:
        """Write what `onnx` gives to a file; returns the version written."""
        file = values.path(file, "file")
        model = await self.trained(version)
        await asyncio.to_thread(_write, file, model.onnx)
        return model.version

    async def predict(self, rows: Rows | Sequence[str], version: WhichVersion = None) -> Prediction:
        """What the trained model says of `rows`: its outputs by name, a row a sample; `.version`.

        `rows`: input -> array, a row a sample, of a fusion run node -> input -> array, or `<node>/<input>`.
        They stay here: the model comes, and is run. A node that is left out counts as one that lacks all
        samples, where the job has `missing = "attend"`. Or, of a fusion run, the ids of samples whose rows
        are on the nodes: these work on them as in training, and their rows stay there.

        Raises:
            InvalidArgument, InvalidTensor: rows that the model does not take: which, and what it takes.
            NotFound: no node has a row of an id.
            Unavailable: a node with rows is not here.
            FailedPrecondition: no version yet; or ids, and no fusion run.
        """
        if isinstance(rows, Mapping):
            arrays = flattened(rows)  # before the model comes for nothing
            model = await self._loaded(version)
            return Prediction(await asyncio.to_thread(predicted, model.onnx, arrays), model.version)
        if not isinstance(rows, tuple | list) or not all(isinstance(one, str) for one in rows):
            raise InvalidArgument(
                f"rows is {values.said(rows)}; give arrays by input, as {{'x': array}}, or a list of the ids "
                "of samples on nodes"
            )
        ids = values.texts(rows, "rows")
        if not ids:
            raise InvalidArgument("rows is empty; give ids of samples, or arrays by input")
        parts = [await self._asked(ids[:IDS], version)]
        for at in range(IDS, len(ids), IDS):
            # Of the version that has answered first, whatever is committed, or evaluated, meanwhile.
            parts.append(await self._asked(ids[at : at + IDS], parts[0][1].version))
        return joined(parts)

    async def _asked(self, ids: tuple[str, ...], version: WhichVersion) -> tuple[int, jobs.PredictResponse]:
        request = jobs.PredictRequest(self.id, *_checked(version), ids)
        reply = await self._connection.caller.unary(services.PREDICT, request, PREDICT_SECONDS)
        return len(ids), reply

    async def _loaded(self, version: WhichVersion) -> TrainedModel:
        """The model of `version`; the last one that was asked for, without asking again, where it is that."""
        number, best = _checked(version)
        if self._model_held is None or self._model_held.version != number or best:
            self._model_held = await self.trained(version)
        return self._model_held

    async def _parameters(self, version: WhichVersion) -> tuple[bytes, int]:
        request = jobs.GetParametersRequest(self.id, *_checked(version))
        chunks = self._connection.caller.receive(
            services.GET_PARAMETERS, request, silence=self._connection.timeout
        )
        return await _joined(chunks, f"the parameters of run {self.id}")


def _checked(version: WhichVersion) -> tuple[int | None, bool]:
    """Its number, None for the latest; and whether it is the best that is asked for."""
    if isinstance(version, str):  # asked first: what an array equals is an array
        if version != BEST:
            raise InvalidArgument(
                f"version is {values.said(version)}; give its number, {BEST!r}, or None for the latest"
            )
        return None, True
    return None if version is None else require_whole(version, "version"), False


async def _noting(chunks: AsyncIterator[ModelChunk], reads: list[RowsRead]) -> AsyncIterator[ModelChunk]:
    """The chunks; what they say of how rows are read is added to `reads`."""
    async for chunk in chunks:
        reads += chunk.reads
        yield chunk


async def _joined(chunks: AsyncIterator[ParametersChunk | ModelChunk], what: str) -> tuple[bytes, int]:
    """The file that `chunks` are pieces of, and its version; DataLoss if it is not whole."""
    data = bytearray()
    size = got = -1
    async for chunk in chunks:
        if size < 0:
            size, got = chunk.size, chunk.version
        data += chunk.data
        if (chunk.size, chunk.version) != (size, got) or len(data) > size:
            raise DataLoss(f"the chunks of {what} do not fit together; ask again")
    if size < 0 or len(data) != size:
        raise DataLoss(f"only {len(data):,} of {max(size, 0):,} bytes of {what} came; ask again")
    return bytes(data), got


def _write(file: Path, data: bytes) -> None:
    """All of `data` under that name, or nothing new."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidArgument(f"{file} cannot be written: {error.strerror}") from None
