"""`AsyncServedModel`: a deployed model asked from afar; and how a model is brought there."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edge_attention.client.arriving_outputs import ArrivingOutputs
from edge_attention.client.connection import DEADLINE_MARGIN, SLOWEST, ClientConnection
from edge_attention.client.generation import AsyncGeneration, generate_request
from edge_attention.client.results import form, milliseconds
from edge_attention.core.arrays import as_dtype
from edge_attention.core.errors import (
    Damaged,
    DataLoss,
    InvalidArgument,
    InvalidGraph,
    InvalidTensor,
)
from edge_attention.core.keywords import hint
from edge_attention.core.messages import inference as wire
from edge_attention.core.messages.inference import DeployedModel, DeployProgress
from edge_attention.core.tensors import Array, DataType, require_name
from edge_attention.jobs import values
from edge_attention.jobs.checks import require_whole
from edge_attention.jobs.external_data import external_files
from edge_attention.jobs.job import ModelFile, model_bytes
from edge_attention.wire import services

MAX_DEADLINE = 3600.0  # seconds, the server's limit
SILENCE = 120.0
"""Seconds without a word, after which a deployment's call is given up: every few the aggregator says one."""

OnDeploy = Callable[[DeployProgress], None]
"""Called with how far a deployment is: stages uploading (here), planning, delivering."""


@dataclass(frozen=True, eq=False)
class ModelResult(Mapping[str, Array]):
    """What a model answers: `result["last_hidden_state"]`, and what that stands on.

    Attributes:
        outputs: by name, read-only.
        exact: it is the whole model's answer, to rounding in its own types: not of a deployment with halves,
            nor of a file that itself rounds what a plan's parts add up; `lacking` says why.
        coverage: the share of the model that it stands on, with `lacking` saying in words what is not in it.
        version: of the deployment that answered.
        seconds: by stage at the aggregator, and the whole call seen from here as `client`.
        part_seconds: in its graphs, by part.
        bytes_down, bytes_up: of activations, from the aggregator to nodes and back.
        again: segments that were done again, as their node was gone.
        rows: of the batch that it ran in with others; 0: it ran alone.
    """

    outputs: Mapping[str, Array]
    exact: bool
    coverage: float
    lacking: str
    version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    part_seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    again: int = 0
    rows: int = 0

    def __repr__(self) -> str:
        """A few lines; no numbers of arrays, but their forms."""
        outputs = ", ".join(f"{name} {form(array)}" for name, array in self.outputs.items())
        said = "exact" if self.exact else f"not exact: {self.lacking}"
        if self.coverage < 1:
            said = f"stands on {self.coverage:.1%} of the model, lacks {self.lacking}"
        lines = [f"ModelResult: {outputs}", f"  {said}; version {self.version}"]
        if self.seconds:
            lines.append(
                f"  {milliseconds(self.seconds)}; {self.bytes_down:,} bytes down, {self.bytes_up:,} up"
            )
        return "\n".join(lines)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


class AsyncServedModel:
    """A deployed model. `info`: what it is, as last heard: inputs and outputs, its plan, who holds what."""

    def __init__(self, connection: ClientConnection, info: DeployedModel) -> None:
        self._connection = connection
        self.info = info

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: version {self.info.version}, {self.info.state.value}>"

    async def infer(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        deadline: float | None = None,
        outputs: Sequence[str] = (),
        partial: bool = False,
        priority: int = 0,
    ) -> ModelResult:
        """The model's answer to `inputs`, by name: arrays of the shapes that `info.inputs` says.

        Args:
            deadline: seconds; None: the client's timeout. Then the call ends with an error that says what was
                waited for.
            outputs: names of those to return; none: all.
            partial: an answer that lacks parts will do at the deadline, labelled, where the plan allows it.
            priority: among requests of the model that wait: 1 goes first, 16 last; 0 is 8.

        Raises:
            InvalidTensor: no inputs of this model.
            NotFound: it is not deployed any more.
            DeadlineExceeded: says what was waited for.
        """
        if not isinstance(inputs, Mapping):
            raise InvalidArgument(
                f"inputs is {values.said(inputs)}; give arrays by input, as "
                f"{{{next((one.name for one in self.info.inputs), 'x')!r}: array}}"
            )
        seconds = self._connection.timeout if deadline is None else deadline
        seconds = min(values.above(seconds, "deadline", MAX_DEADLINE), MAX_DEADLINE)
        arrays = {
            values.text(name, "a name in inputs"): self._converted(name, value)
            for name, value in inputs.items()
        }
        wanted = values.several(outputs, "outputs")
        level = require_whole(priority, "priority", 0, 16)
        lacking = values.switch(partial, "partial")
        begun = time.monotonic()
        size = sum(array.nbytes for array in arrays.values())
        until = begun + seconds + DEADLINE_MARGIN + size / SLOWEST
        for attempt in range(3):
            try:
                return await self._connection.patiently(
                    lambda: self._infer(arrays, seconds, wanted, lacking, level, begun, until),
                    begun + seconds,
                )
            except Damaged:  # on its way back: nothing is changed by asking again
                if attempt == 2:
                    raise
        raise AssertionError

    async def _infer(
        self,
        arrays: Mapping[str, Array],
        seconds: float,
        outputs: tuple[str, ...],
        partial: bool,
        priority: int,
        begun: float,
        until: float,
    ) -> ModelResult:
        async def requests() -> AsyncIterator[wire.InferRequest]:
            first = True
            for group in _groups(arrays):
                if first:
                    yield wire.InferRequest(self.name, seconds, outputs, partial, group, priority)
                else:
                    yield wire.InferRequest("", pieces=group)
                first = False

        report: wire.InferReport | None = None
        found = ArrivingOutputs(self.name)
        timeout = max(until - time.monotonic(), 0.1)
        async for response in self._connection.caller.receive(services.INFER, requests(), timeout):
            if response.report is not None:
                report = response.report
                found.begin(report.outputs)
            for piece in response.pieces:
                found.take(piece)
        if report is None:
            raise DataLoss(f"the answer of model {self.name!r} did not come whole; ask again")
        taken = found.arrays()
        return ModelResult(
            taken,
            report.exact,
            report.coverage,
            report.lacking,
            report.version,
            {**report.seconds, "client": time.monotonic() - begun},
            report.part_seconds,
            report.bytes_down,
            report.bytes_up,
            report.again,
            report.rows,
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
    ) -> AsyncGeneration:
        """What comes after `prompt`, of a decoder: iterate over it for pieces as they come.

        Args:
            prompt: a text, where the deployment has a tokenizer; or token ids. Of an encoder with a decoder
                it is the encoder's; with `inputs` it is what the decoder begins with, if that is not said in
                the deployment's generation_config.json.
            inputs: of an encoder, by name, one row of each: {"input_features": array}, say.
            temperature: logits are divided by it; 0: always the likeliest token.
            top_k, top_p, min_p: leave out unlikely tokens: all but so many of the likeliest, all but those
                that together have this share, those less likely than this share of the likeliest.
            repetition_penalty: above 1, tokens that were there before are less likely.
            seed: the same seed, prompt and model give the same tokens; None: one is chosen.
            stop: texts that end it.
            deadline: seconds for all of it; None: the server's default.
            speculate: whether tokens that the text suggests may be verified several a trip.
            priority: among generations of the model that wait for a trip: 1 goes first, 16 last; 0 is 8.
            frequency_penalty, presence_penalty: -2 to 2; subtracted from a token's logit as often as it has
                come, and once if it has. What the prompt has does not count.
            logit_bias: by token id what is added to its logit, -100 to 100, after all penalties.
            logprobs: 0 to 20: how many of the likeliest tokens of each place are told with their log
                probabilities, besides the one that came. None: nothing is told.
            echo: whether the prompt's text, and what is told of its tokens, comes first. `max_tokens` may be
                0 then: how likely a text is.

        Raises:
            InvalidArgument: names what is of a wrong type. What the server refuses the iteration raises.
        """
        if inputs is not None and not isinstance(inputs, Mapping):
            raise InvalidArgument(
                f"inputs is {values.said(inputs)}; give arrays by input, as {{'input_ids': array}}"
            )
        arrays = {
            values.text(name, "a name in inputs"): self._converted(name, value)
            for name, value in (inputs or {}).items()
        }
        request = generate_request(
            self.name, prompt, max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop,
            deadline, speculate, priority, arrays, frequency_penalty, presence_penalty,
            {} if logit_bias is None else logit_bias, logprobs, echo,
        )  # fmt: skip
        return AsyncGeneration(self._connection, request)

    async def describe(self) -> DeployedModel:
        """What it is now."""
        request = wire.DescribeModelRequest(self.name)
        reply = await self._connection.caller.unary(
            services.DESCRIBE_MODEL, request, self._connection.timeout
        )
        self.info = reply.model
        return self.info

    async def undeploy(self) -> DeployedModel:
        """End the deployment: requests under way end, then nodes and the aggregator forget its weights."""
        request = wire.UndeployRequest(self.name)
        timeout = max(self._connection.timeout, 60.0)
        self.info = (await self._connection.caller.unary(services.UNDEPLOY, request, timeout)).model
        return self.info

    async def watch(self) -> AsyncIterator[DeployedModel]:
        """What it is, now and whenever that changes, until it is gone."""
        request = wire.WatchModelRequest(self.name)
        async for response in self._connection.caller.receive(services.WATCH_MODEL, request):
            self.info = response.model
            yield self.info

    def _converted(self, name: str, value: Any) -> Array:
        what = f"input {name!r} of model {self.name!r}"
        wanted = next((one for one in self.info.inputs if one.name == name), None)
        if wanted is None:
            known = ", ".join(one.name for one in self.info.inputs) or "none"
            raise InvalidTensor(f"{what}: the model has no such input; its inputs: {known}")
        return as_dtype(value, np.dtype(wanted.data_type.value), what)


async def deploy(
    connection: ClientConnection,
    model: ModelFile,
    request: wire.DeployRequest,
    progress: OnDeploy,
    tokenizer: str | Path | None = None,
    decoder: str | Path | Sequence[str | Path] = (),
) -> AsyncServedModel:
    """Bring the model's files to the aggregator, and have it deployed as `request` says."""
    texts = {} if tokenizer is None else await asyncio.to_thread(text_files, tokenizer)
    decoders = await asyncio.to_thread(_decoders, decoder)
    digest, files = await _send(connection, model, progress)
    for name, one in zip(wire.DECODER_FILES, decoders, strict=False):
        own, weights = await _send(connection, one, progress)
        for location, sent in {name: own, **weights}.items():
            if files.setdefault(location, sent) != sent:
                raise InvalidArgument(
                    f"two of the files keep weights in {location}: export encoder and decoder into one folder"
                )
    for name, data in texts.items():
        if name in files:
            raise InvalidArgument(f"the model keeps weights in a file called {name}, as its tokenizer's is")
        files[name] = await connection.upload(data)
    asked = wire.DeployRequest(**{**vars(request), "model": digest, "files": files})
    found: DeployedModel | None = None
    try:
        async for event in connection.caller.receive(services.DEPLOY, asked, silence=SILENCE):
            if isinstance(event, DeployedModel):
                found = event
            else:
                progress(event)
    except InvalidGraph as error:
        # The aggregator calls the files by names of its own.
        named = [str(one) for one in (model, *decoders) if isinstance(one, str | Path)]
        raise type(error)(f"{', '.join(named) or 'the model'}: {error.message}") from None
    if found is None:
        raise DataLoss(f"the aggregator at {connection.address} did not say what became of {request.name!r}")
    return AsyncServedModel(connection, found)


def request_of(
    name: str,
    plan: str | Path | bytes,
    nodes: Sequence[str],
    replicas: int | None,
    dimensions: Mapping[str, int] | None,
    halves: bool,
    max_batch: int | None,
    max_queue_delay: float | None,
) -> wire.DeployRequest:
    """The request, without the model.

    Raises:
        InvalidArgument: names what is wrong.
    """
    word, file = "", b""
    if isinstance(plan, bytes):
        file = plan
    elif isinstance(plan, str) and plan.partition(":")[0] in wire.WORDS_OF_PLANS:
        word = plan
    else:
        path = values.path(plan, "plan")
        try:
            file = path.read_bytes()
        except OSError as error:
            known = ", ".join(wire.WORDS_OF_PLANS)
            raise InvalidArgument(
                f"plan {str(plan)[:80]!r} is none of {known}, and no file that can be read: {error.strerror}"
                + hint(str(plan)[:80], wire.WORDS_OF_PLANS)
            ) from None
    if dimensions is not None and not isinstance(dimensions, Mapping):
        raise InvalidArgument(f"dimensions is {values.said(dimensions)}; give a mapping of names to sizes")
    sizes = {
        values.text(key, "dimensions: a name"): require_whole(size, f"dimensions[{key!r}]", 1)
        for key, size in (dimensions or {}).items()
    }
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        raise InvalidArgument(f"nodes is {values.said(nodes)}; give a list of names, as ['a', 'b']")
    return wire.DeployRequest(
        require_name(values.text(name, "name"), "model"),
        "",
        {},
        word,
        file,
        values.texts(tuple(nodes), "nodes"),
        0 if replicas is None else require_whole(replicas, "replicas", 1, 64),
        sizes,
        values.switch(halves, "halves"),
        0 if max_batch is None else require_whole(max_batch, "max_batch", 1, wire.MAX_BATCH),
        _delay(max_queue_delay),
    )


def _decoders(decoder: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of an encoder's decoder. Raises InvalidArgument where they are none."""
    several = [decoder] if isinstance(decoder, str | os.PathLike) else decoder
    if not isinstance(several, list | tuple):
        raise InvalidArgument(f"decoder is {values.said(decoder)}; give the path of a file, or of two")
    found = [values.path(one, "decoder") for one in several]
    if lacking := [path for path in found if not path.is_file()]:
        raise InvalidArgument(f"the decoder's file {str(lacking[0])!r} is not there; give its path, or two")
    if len(found) > len(wire.DECODER_FILES):
        raise InvalidArgument(f"decoder names {len(found)} files; give one, or two: without and with a past")
    return found


def _delay(seconds: float | None) -> float:
    delay = 0.0 if seconds is None else values.number(seconds, "max_queue_delay")
    return values.above(delay, "max_queue_delay", wire.MAX_QUEUE_DELAY) if delay else 0.0


BYTES = "bytes"
"""A tokenizer of which a token is a byte of UTF-8."""


def text_files(tokenizer: str | Path) -> dict[str, bytes]:
    """The files that say what a model's tokens are in words, by their names beside it.

    `tokenizer`: the path of a `tokenizer.json`, or of its folder; what `transformers` keeps beside it
    (special tokens, tokens that end a text, a chat template) goes with it. Or BYTES.

    Raises:
        InvalidArgument: it cannot be read.
    """
    first, *others = wire.TEXT_FILES
    if isinstance(tokenizer, str) and tokenizer == BYTES:
        return {first: json.dumps({"edge_attention": BYTES}).encode()}
    path = values.path(tokenizer, "tokenizer")
    path = path / first if path.is_dir() else path
    try:
        found = {first: path.read_bytes()}
        found |= {
            name: (path.parent / name).read_bytes() for name in others if (path.parent / name).is_file()
        }
    except OSError as error:
        raise InvalidArgument(
            f"the tokenizer {str(path)!r} cannot be read: {error.strerror or error}; give a tokenizer.json, "
            f"its folder, or {BYTES!r} where a token is a byte"
        ) from None
    return found


async def _send(
    connection: ClientConnection, model: ModelFile, progress: OnDeploy
) -> tuple[str, dict[str, str]]:
    """The digests of the model and of its files of weights, which are there then."""
    if not isinstance(model, str | os.PathLike):
        data = await asyncio.to_thread(model_bytes, model)
        if external_files(data, "the model", None):
            raise InvalidGraph("the model keeps its weights in other files; give the path of the .onnx file")
        return await connection.upload(data), {}
    path = values.path(model, "a model")
    beside = await asyncio.to_thread(_beside, path)

    async def send(file: Path) -> str:
        return await connection.upload_file(
            file, lambda done, total: progress(DeployProgress("uploading", file.name, done, total))
        )

    digest = await send(path)
    return digest, {location: await send(file) for location, file in beside.items()}


def _beside(path: Path) -> dict[str, Path]:
    """The files of the model's weights, as it names them."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InvalidGraph(f"the model {str(path)!r} is empty")
            # It is not closed here: an error has views of it in its frames.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return external_files(data, f"the model {str(path)!r}", path.parent)
    except OSError as error:
        raise InvalidGraph(f"the model {str(path)!r} cannot be read: {error.strerror or error}") from None


def _groups(arrays: Mapping[str, Array]) -> Iterator[tuple[wire.TensorPiece, ...]]:
    """The arrays as pieces, in groups of about a MiB; one group at least."""
    group: list[wire.TensorPiece] = []
    size = 0
    for name, array in arrays.items():
        data_type = DataType.of(array.dtype, name)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for at in range(0, max(flat.nbytes, 1), wire.PIECE_BYTES):
            piece = flat[at : at + wire.PIECE_BYTES]
            if group and size + piece.nbytes > wire.PIECE_BYTES:
                yield tuple(group)
                group, size = [], 0
            group.append(wire.TensorPiece(name, data_type, array.shape, at, piece.tobytes()))
            size += piece.nbytes
    yield tuple(group)


__all__ = ["AsyncServedModel", "ModelResult", "OnDeploy", "deploy", "request_of", "text_files"]
