"""Decoders as models of the Open Inference Protocol that answer token by token: `NAME.generate`.

Beside the decoder NAME itself, with its own inputs and outputs, a decoupled model for ModelStreamInfer:

    inputs    text_input BYTES [1], of a deployment with a tokenizer; else input_ids INT64 [-1]. Of a decoder
              beside an encoder these are the encoder's; where that takes arrays, they are its own inputs
    outputs   text_output BYTES [1], output_ids INT64 [-1]: what has come since the answer before
    parameters of the request: max_tokens (128), temperature, top_k, top_p, min_p, repetition_penalty, seed,
              stop (one text), speculate, priority, as of Generate; decoder_input_ids, "1,2", that a decoder
              beside an encoder of arrays begins with
    parameters of the last answer: finish_reason, prompt_tokens, completion_tokens, seed; where the logits are
              not the whole model's `exact`, false, and `lacking`, why
    of each answer as Triton has it `triton_final_response`, whether it is the last; a request that says
              `triton_enable_empty_final_response` has that last one beside its tokens, empty
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.request import PROMPT_TOKENS, GenerationEvent, GenerationRequest
from aggregator.inference.protocol.served import CheckedRequest, ModelAnswered
from aggregator.inference.protocol.statistics import InferenceCounts
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, Unimplemented
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    Parameter,
    RepositoryParameter,
    TensorMetadata,
)
from edge_attention.core.tensors import Array

__all__ = ["SUFFIX", "ServedDecoder", "StreamedDecoder", "StreamedDecoders", "require_no_stream"]

SUFFIX = ".generate"
PLATFORM = "edge_attention_generate"
DEFAULT_TOKENS = 128
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_WHOLE = ("max_tokens", "top_k", "seed")
_KINDS = {
    **dict.fromkeys(_WHOLE, "a whole number"),
    **dict.fromkeys(_NUMBERS, "a number"),
    "stop": "a text",
    "speculate": "true or false",
}
"""What a parameter must be that is passed on."""
_OWN = ("timeout", "priority")
"""Parameters that the data plane has read."""
_FINAL, _EMPTY_FINAL = "triton_final_response", "triton_enable_empty_final_response"
_ASIDE = frozenset({"sequence_id", "sequence_start", "sequence_end", _EMPTY_FINAL})
"""Parameters that say nothing of a text; clients of Triton's send them."""


def require_no_stream(name: str) -> None:
    """Refuse a name that a decoder's stream has, or will have.

    Raises:
        InvalidArgument: says so.
    """
    if name.endswith(SUFFIX):
        raise InvalidArgument(
            f"{name!r} ends in {SUFFIX!r}, as the streams of decoders do by the Open Inference Protocol "
            "(docs/decoders.md); give it another name"
        )


@dataclass(frozen=True)
class ServedDecoder:
    """A deployment that serves.

    Attributes:
        text: whether it has a tokenizer.
        arrays: inputs of its encoder, where that takes no tokens.
    """

    version: str
    text: bool
    arrays: tuple[TensorMetadata, ...] = ()


ServesDecoder = Callable[[str], ServedDecoder | None]
"""Of a deployment's name what serves by the protocol; None: it does not."""


class StreamedDecoder:
    """One decoder, as it is `served`."""

    def __init__(self, generator: Generator[Any], decoder: str, served: ServedDecoder) -> None:
        self._generator = generator
        self._decoder = decoder
        self._served = served
        self._deployment = generator.deployment(decoder)

    @property
    def name(self) -> str:
        return self._decoder + SUFFIX

    @property
    def version(self) -> str:
        return self._served.version

    @property
    def ready(self) -> bool:
        return True

    @property
    def joined(self) -> Mapping[str, int]:
        return {}

    def metadata(self) -> ModelMetadata:
        inputs, outputs = self._tensors()
        return ModelMetadata(self.name, (self.version,), PLATFORM, inputs, outputs)

    def config(self) -> ModelConfig:
        inputs, outputs = self._tensors()
        return ModelConfig(
            self.name,
            PLATFORM,
            ModelVersionPolicy(),
            0,
            tuple(ConfiguredInput(one.name, Datatype(one.datatype), one.shape) for one in inputs),
            tuple(ConfiguredOutput(one.name, Datatype(one.datatype), one.shape) for one in outputs),
            backend="edge_attention",
            model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        )

    def _tensors(self) -> tuple[tuple[TensorMetadata, ...], tuple[TensorMetadata, ...]]:
        text, ids = Datatype.BYTES.value, Datatype.INT64.value
        given: tuple[TensorMetadata, ...] = (TensorMetadata("text_input", text, (1,)),)
        if self._served.arrays:
            given = self._served.arrays
        elif not self._served.text:
            given = (TensorMetadata("input_ids", ids, (-1,)),)
        return given, (TensorMetadata("text_output", text, (1,)), TensorMetadata("output_ids", ids, (-1,)))

    async def infer(self, request: CheckedRequest) -> ModelAnswered:
        raise Unimplemented(f"model '{self.name}' answers token by token; ask it with ModelStreamInfer")

    async def stream(self, request: CheckedRequest) -> AsyncGenerator[ModelAnswered]:
        # Of the version that is asked, and that answers say: not of one that has come to serve meanwhile.
        asked = _generation(self._decoder, request, bool(self._served.arrays))
        asked = replace(asked, deployment=self._deployment)
        apart = request.parameters.get(_EMPTY_FINAL) is True
        async with aclosing(self._generator.generate(asked, request.caller, request.seconds)) as events:
            async for event in events:
                results = _results(event)
                last = event.usage is not None and not apart
                yield ModelAnswered(
                    {name: results[name] for name in request.outputs}, {**_said(event), _FINAL: last}
                )
        if apart:
            yield ModelAnswered({}, {_FINAL: True})


class StreamedDecoders:
    """All deployed decoders, as a source of such models."""

    def __init__(
        self, generator: Generator[Any], version: ServesDecoder, counts: InferenceCounts | None = None
    ) -> None:
        """`counts`: of what is called `NAME.generate`, too."""
        self._generator = generator
        self._version = version
        self._counts = counts or InferenceCounts()

    def find(self, name: str, version: str) -> StreamedDecoder | None:
        if (decoder := self._decoder_of(name)) is None:
            return None
        found = self._version(decoder)
        if found is None or version not in ("", found.version):
            return None
        return StreamedDecoder(self._generator, decoder, found)

    def index(self) -> Iterator[ModelIndex]:
        for decoder in self._generator.models():
            if (found := self._version(decoder)) is not None:
                yield ModelIndex(decoder + SUFFIX, found.version, "READY")

    def statistics(self, name: str, version: str) -> Iterator[ModelStatistics]:
        for one in self.index():
            if name in ("", one.name) and version in ("", one.version):
                yield self._counts.of(one.name, int(one.version))

    async def load(self, name: str, parameters: Mapping[str, RepositoryParameter], caller: str) -> bool:
        if (decoder := self._decoder_of(name)) is None:
            return False
        if parameters or self.find(name, "") is None:
            raise FailedPrecondition(
                f"failed to load '{name[:80]}': it goes with its decoder; load '{decoder}', without "
                "parameters"
            )
        return True

    async def unload(self, name: str) -> bool:
        if (decoder := self._decoder_of(name)) is None:
            return False
        raise FailedPrecondition(
            f"failed to unload '{name[:80]}': it goes with its decoder; unload '{decoder}'"
        )

    def _decoder_of(self, name: str) -> str | None:
        decoder = name.removesuffix(SUFFIX)
        return decoder if decoder != name and decoder in self._generator.models() else None


def _generation(decoder: str, request: CheckedRequest, arrays: bool) -> GenerationRequest:
    """Raises InvalidArgument: names the parameter."""
    settings: dict[str, Any] = {"max_tokens": DEFAULT_TOKENS}
    begins: tuple[int, ...] = ()
    for name, value in request.parameters.items():
        if name in _WHOLE and type(value) is int:
            settings[name] = value
        elif name in _NUMBERS and type(value) in (int, float):
            settings[name] = float(value)
        elif name == "speculate" and isinstance(value, bool):
            settings[name] = value
        elif name == "stop" and isinstance(value, str):
            settings[name] = (value,)
        elif name == "decoder_input_ids" and isinstance(value, str) and arrays:
            begins = _ids(value)
        elif name in _KINDS:
            raise InvalidArgument(f"parameter '{name}' is {str(value)[:80]!r}; it must be {_KINDS[name]}")
        elif name not in _OWN and name not in _ASIDE:
            raise InvalidArgument(f"parameter '{name[:80]}' is none of {', '.join((*_KINDS, *_OWN))}")
    settings["priority"] = request.priority
    if arrays:
        return GenerationRequest(decoder, begins, **settings, inputs=request.feeds)
    return GenerationRequest(decoder, _prompt(request.feeds), **settings)


def _ids(text: str) -> tuple[int, ...]:
    if text.count(",") >= PROMPT_TOKENS:
        raise InvalidArgument(
            f"bound prompt-tokens: parameter 'decoder_input_ids' has {text.count(',') + 1:,} tokens, and has "
            f"{PROMPT_TOKENS:,} at most"
        )
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument("parameter 'decoder_input_ids' is no list of token ids, as '1,2'") from None


def _prompt(feeds: Mapping[str, Array]) -> str | tuple[int, ...]:
    if "input_ids" in feeds:
        return tuple(feeds["input_ids"].tolist())
    try:
        return bytes(feeds["text_input"][0]).decode()
    except UnicodeDecodeError:
        raise InvalidArgument("input 'text_input' is not UTF-8") from None


def _results(event: GenerationEvent) -> dict[str, Array]:
    text = np.empty(1, object)
    text[0] = event.text.encode()
    return {"text_output": text, "output_ids": np.array(event.tokens, np.int64)}


def _said(event: GenerationEvent) -> dict[str, Parameter]:
    if event.usage is None:
        return {}
    said: dict[str, Parameter] = {
        "finish_reason": event.finish,
        "prompt_tokens": event.usage.prompt_tokens,
        "completion_tokens": event.usage.completion_tokens,
        "seed": event.usage.seed,
    }
    if event.usage.lacking:
        said |= {"exact": False, "lacking": event.usage.lacking}
    return said
