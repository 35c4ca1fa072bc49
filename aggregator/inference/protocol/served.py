"""What the data plane asks: models, wherever they come from. Deployments are one source of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aggregator.bounds.budget import Lease
from edge_attention.core.messages.open_inference import (
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    Parameter,
    RepositoryParameter,
)
from edge_attention.core.tensors import Array

__all__ = ["CheckedRequest", "ModelAnswered", "ModelSource", "OfferedModel"]


@dataclass(frozen=True, eq=False)
class CheckedRequest:
    """A request that fits its model: all inputs are there, of its datatypes and shapes.

    Attributes:
        feeds: by the model's inputs. Of BYTES an array of objects, of BF16 the bits.
        outputs: those that are wanted.
        seconds: within which the answer is wanted.
        priority: 1 first; 0: not said.
        rows: of the batch; 1 where the model has none.
        room: the caller's of INFERENCE_BYTES; grow it by what is made for the request.
    """

    id: str
    feeds: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    seconds: float
    priority: int
    rows: int
    caller: str
    room: Lease


@dataclass(frozen=True, eq=False)
class ModelAnswered:
    """What a model answers: `results` by its outputs, with what is to be said of them."""

    results: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


class OfferedModel(Protocol):
    """One version of a model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def ready(self) -> bool:
        """Whether it could answer now."""

    @property
    def joined(self) -> Mapping[str, int]:
        """By input the axis along which the model joins something to it: there it may be empty."""

    def metadata(self) -> ModelMetadata: ...

    def config(self) -> ModelConfig: ...

    async def infer(self, request: CheckedRequest) -> ModelAnswered:
        """The one answer. Raises EdgeAttentionError."""

    def stream(self, request: CheckedRequest) -> AsyncGenerator[ModelAnswered]:
        """The answers, as they come; one, of a model that is not decoupled. Close it if it is left early."""


class ModelSource(Protocol):
    """Where models come from."""

    def find(self, name: str, version: str) -> OfferedModel | None:
        """The model's version, or its newest that serves (""); None where this source has none such."""

    def index(self) -> Iterable[ModelIndex]:
        """A line for each version that there is."""

    def statistics(self, name: str, version: str) -> Iterable[ModelStatistics]:
        """Of these; "": of all."""

    async def load(self, name: str, parameters: Mapping[str, RepositoryParameter], caller: str) -> bool:
        """Have it serve; False where this source has no such model. Raises EdgeAttentionError."""

    async def unload(self, name: str) -> bool:
        """Have it serve no more; False where this source has no such model. Raises EdgeAttentionError."""
