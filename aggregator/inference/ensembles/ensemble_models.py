"""Ensembles as models that the protocol serves."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping

from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.inference.ensembles.asking_members import MemberAnswers, answer, ask_members
from aggregator.inference.ensembles.kept_ensembles import KeptEnsemble, KeptEnsembles
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.served import CheckedRequest, ModelAnswered
from aggregator.inference.protocol.statistics import InferenceCounts
from edge_attention.core.datatypes import NUMPY
from edge_attention.core.ensembles.ensemble import EnsembleSpec, How
from edge_attention.core.errors import FailedPrecondition, NotFound
from edge_attention.core.messages.inference import InferReport
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    ModelConfig,
    ModelConfigParameter,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ModelVersionPolicy,
    Parameter,
    RepositoryParameter,
)

__all__ = ["EnsembleModels", "ServedEnsemble"]

MEETINGS = 2
"""Requests whose members' outputs meet at a time: by threads, of which others need some, too."""
PLATFORM = "ensemble"
"""What serving tools know such models by."""


class ServedEnsemble:
    """One ensemble that takes requests."""

    def __init__(
        self, kept: KeptEnsemble, plane: DataPlane, counts: InferenceCounts, turns: CallersInTurn
    ) -> None:
        self._kept = kept
        self._plane = plane
        self._counts = counts
        self._turns = turns

    @property
    def name(self) -> str:
        return self._kept.name

    @property
    def version(self) -> str:
        return str(self._kept.version)

    @property
    def ready(self) -> bool:
        """Whether the members that it needs, and one at least, could answer now."""
        ensemble = self._kept.ensemble
        there = {one.name for one in ensemble.members if self._plane.model_ready(one.model, one.version)}
        head = not ensemble.head or self._plane.model_ready(ensemble.head)
        return bool(there) and ensemble.needed <= there and head

    @property
    def joined(self) -> Mapping[str, int]:
        return {}

    def metadata(self) -> ModelMetadata:
        tensors = self._kept.tensors
        return ModelMetadata(self.name, (self.version,), PLATFORM, tensors.inputs, tensors.outputs)

    def config(self) -> ModelConfig:
        tensors = self._kept.tensors
        return ModelConfig(
            self.name,
            PLATFORM,
            ModelVersionPolicy(),
            0,
            tuple(ConfiguredInput(one.name, Datatype(one.datatype), one.shape) for one in tensors.inputs),
            tuple(ConfiguredOutput(one.name, Datatype(one.datatype), one.shape) for one in tensors.outputs),
            parameters={"how": ModelConfigParameter(self._kept.ensemble.how.value)},
        )

    async def infer(self, request: CheckedRequest) -> ModelAnswered:
        kept, began = self._kept, time.monotonic()
        try:
            answers = await ask_members(kept.ensemble, self._plane, request)
            left = max(request.seconds - (time.monotonic() - began), 1e-3)
            shapes = kept.tensors.shapes
            results = await answer(kept.ensemble, self._plane, request, answers, shapes, left, self._turns)
            for one in kept.tensors.outputs:
                if one.name not in results or results[one.name].dtype != NUMPY[Datatype(one.datatype)]:
                    raise FailedPrecondition(
                        f"output '{one.name}' is not {one.datatype} any more: a model of the ensemble was "
                        "deployed anew; deploy the ensemble again"
                    )
        except BaseException:
            self._counts.failed(kept.name, kept.version, time.monotonic() - began)
            raise
        request.room.grow(sum(array.nbytes for array in results.values()))
        coverage, said = coverage_of(kept.ensemble, answers), answers.said
        report = InferReport(kept.version, not said, coverage, said, {"all": time.monotonic() - began}, {})
        self._counts.answered(kept.name, kept.version, request.rows, report)
        labels: dict[str, Parameter] = {}
        if said:
            labels = {"exact": False, "coverage": coverage, "lacking": said}
        return ModelAnswered(
            {name: array for name, array in results.items() if name in request.outputs}, labels
        )

    async def stream(self, request: CheckedRequest) -> AsyncGenerator[ModelAnswered]:
        yield await self.infer(request)


def coverage_of(ensemble: EnsembleSpec, answers: MemberAnswers) -> float:
    """The share of the members that an answer stands on, by their weights where these are averaged."""
    weights = {one.name: one.weight if ensemble.how is How.MEAN else 1.0 for one in ensemble.members}
    return sum(weights[name] for name in answers.outputs) / sum(weights.values())


class EnsembleModels:
    """All ensembles, as a source of models. To unload one is to undeploy it, which the protocol does not."""

    def __init__(self, kept: KeptEnsembles, plane: DataPlane, counts: InferenceCounts) -> None:
        self._kept = kept
        self._plane = plane
        self._counts = counts
        self._turns = CallersInTurn(MEETINGS)

    def find(self, name: str, version: str) -> ServedEnsemble | None:
        kept = self._kept.find(name)
        if kept is None or version not in ("", str(kept.version)):
            return None
        return ServedEnsemble(kept, self._plane, self._counts, self._turns)

    def index(self) -> Iterator[ModelIndex]:
        for kept in self._kept:
            ready = ServedEnsemble(kept, self._plane, self._counts, self._turns).ready
            state, reason = ("READY", "") if ready else ("UNAVAILABLE", lacking_of(kept, self._plane))
            yield ModelIndex(kept.name, str(kept.version), state, reason)

    def statistics(self, name: str, version: str) -> Iterator[ModelStatistics]:
        for kept in self._kept:
            if name in ("", kept.name) and version in ("", str(kept.version)):
                yield self._counts.of(kept.name, kept.version)

    async def load(self, name: str, parameters: Mapping[str, RepositoryParameter], caller: str) -> bool:
        if self._kept.find(name) is None:
            return False
        if parameters:
            raise FailedPrecondition(
                f"failed to load '{name[:80]}': a load with parameters would change the ensemble; deploy it "
                "again with edge-attention ensemble deploy"
            )
        return True

    async def unload(self, name: str) -> bool:
        if self._kept.find(name) is None:
            return False
        raise FailedPrecondition(
            f"failed to unload '{name[:80]}': it is an ensemble, which holds nothing; end it with "
            "edge-attention ensemble undeploy"
        )


def lacking_of(kept: KeptEnsemble, plane: DataPlane) -> str:
    """In words, members that could not be asked now; empty: all could."""
    ensemble = kept.ensemble
    asked = [(f"member {one.name}", one.model, one.version) for one in ensemble.members]
    if ensemble.head:
        asked.append(("the head", ensemble.head, ""))
    found = []
    for who, model, version in asked:
        try:
            plane.require(model, version)
        except NotFound:
            found.append(f"{who}: model {model} is not deployed")
        else:
            if not plane.model_ready(model, version):
                found.append(f"{who}: model {model} waits for nodes")
    return "; ".join(found)
