"""InferenceService: what clients call about deployed models. Each method is a few lines over the recipe."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from aggregator.bounds.bounds import INFERENCE_BYTES, INFERENCES, WATCHES
from aggregator.bounds.budget import Budgets, Lease
from aggregator.bounds.turns import Turns
from aggregator.engine.listed import listed
from aggregator.engine.waiting import each_within
from aggregator.inference.activity import InferenceActivity
from aggregator.inference.deployed import Deployed, described_bytes
from aggregator.inference.deployments import Deployments
from aggregator.inference.feeds import Feeds, pieces
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.model_answer import ModelAnswer
from aggregator.trust.callers import caller_of, owner_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.messages import inference
from edge_attention.core.messages.inference import (
    INFER_BYTES,
    PIECE_BYTES,
    DeployedModel,
    DeployProgress,
    InferReport,
    ModelTensor,
    TensorPiece,
)
from edge_attention.core.tensors import Array, DataType
from edge_attention.wire import services

DEPLOYED = AuditLine("model_deployed", lambda q, r: {"model": q.name, "digest": q.model, "plan": q.plan})
UNDEPLOYED = AuditLine("model_undeployed", lambda q, r: {"model": q.name})

LISTED_BYTES = 1 << 20
"""Of the names of inputs, outputs and shapes in one list of models: it is one message."""
INFER_SECONDS, MAX_INFER_SECONDS = 60.0, 3600.0
"""What a request has that names no deadline, and at most."""
INFER_IDLE_SECONDS, INFER_COMING_SECONDS = 30.0, 600.0
"""Until a request's next message, and its last."""


class InferenceApi:
    def __init__(
        self,
        deployments: Deployments,
        metrics: InferenceMetrics,
        activity: InferenceActivity,
        budgets: Budgets | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._deployments = deployments
        self._metrics = metrics
        self._activity = activity
        self._budgets = budgets or Budgets()
        self._turns = turns or Turns()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.DEPLOY, self.deploy, "operator", DEPLOYED),
            Endpoint(services.UNDEPLOY, self.undeploy, "operator", UNDEPLOYED),
            Endpoint(services.LIST_MODELS, self.list, "viewer"),
            Endpoint(services.DESCRIBE_MODEL, self.describe, "viewer"),
            Endpoint(services.WATCH_MODEL, self.watch, "viewer"),
            Endpoint(services.INFER, self.infer, "user"),
        )

    async def deploy(
        self, request: inference.DeployRequest, call: Any
    ) -> AsyncGenerator[DeployProgress | DeployedModel]:
        events = self._deployments.deploy(request, owner_of(call), caller_of(call))
        async with aclosing(events):
            async for event in events:
                yield event

    async def undeploy(self, request: inference.UndeployRequest, call: Any) -> inference.UndeployResponse:
        return inference.UndeployResponse(await self._deployments.undeploy(request.name))

    async def list(
        self, request: inference.ListModelsRequest, call: Any
    ) -> inference.ListModelsResponse | bytes:
        models = _in_a_message(self._deployments.list())
        return await listed(
            services.LIST_MODELS, call, len(models), lambda: inference.ListModelsResponse(models), self._turns
        )

    async def describe(
        self, request: inference.DescribeModelRequest, call: Any
    ) -> inference.DescribeModelResponse:
        deployed = self._deployments.require(request.name)
        return inference.DescribeModelResponse(self._deployments.described(deployed))

    async def watch(
        self, request: inference.WatchModelRequest, call: Any
    ) -> AsyncIterator[inference.WatchModelResponse]:
        with self._budgets.take(WATCHES, caller_of(call)):
            async for model in self._deployments.watch(request.name):
                yield inference.WatchModelResponse(model)

    async def infer(
        self, requests: AsyncIterator[inference.InferRequest], call: Any
    ) -> AsyncIterator[inference.InferResponse]:
        caller = caller_of(call)
        with self._budgets.take(INFERENCES, caller), self._budgets.take(INFERENCE_BYTES, caller, 0) as room:
            report, results = await self._infer(requests, room, call)
            # What is sent has no deployment to wait for any more: it may go meanwhile.
            first: InferReport | None = report
            for group in _grouped(pieces(results)):
                yield inference.InferResponse(first, group)
                first = None

    async def _infer(
        self, requests: AsyncIterator[inference.InferRequest], room: Lease, call: Any
    ) -> tuple[InferReport, Mapping[str, Array]]:
        begun, answered = time.monotonic(), False
        deployed: Deployed | None = None
        feeds: Feeds | None = None
        try:
            coming = each_within(
                requests, INFER_IDLE_SECONDS, "the next message of the request", INFER_COMING_SECONDS
            )
            seconds, partial = INFER_SECONDS, False
            outputs: tuple[str, ...] = ()
            async with aclosing(coming):
                async for request in coming:
                    if deployed is None or feeds is None:
                        found = self._deployments.require(request.model)
                        found.life.begin()
                        deployed = found
                        assert found.planned is not None
                        feeds = Feeds(found.planned.inputs, room)
                        seconds = _seconds(request.deadline_seconds)
                        outputs, partial = _outputs(found, request.outputs), request.partial
                    elif request.model not in ("", deployed.name):
                        raise InvalidArgument("one request goes to one model")
                    for piece in request.pieces:
                        feeds.take(piece)
                    del request
            if deployed is None or feeds is None:
                raise InvalidArgument("a request without a message; name the model and send its inputs")
            left = call.time_remaining()
            seconds = min(seconds, MAX_INFER_SECONDS if left is None else max(float(left), 0.0))
            arrays = feeds.arrays()
            answer = await self._deployments.infer(
                deployed, arrays, seconds, caller_of(call), partial=partial
            )
            results = {name: answer.results[name] for name in outputs if name in answer.results}
            room.grow(sum(array.nbytes for array in results.values()))
            report = _report(deployed, answer, results, time.monotonic() - begun)
            self._metrics.answered(deployed.name, report)
            self._activity.answered(deployed.name, arrays, report)
            answered = True
            return report, results
        except EdgeAttentionError as error:
            self._metrics.failed()
            if deployed is not None:
                self._activity.failed(deployed.name, time.monotonic() - begun, error)
            raise
        finally:
            if deployed is not None:
                self._deployments.ended(deployed, answered)


def _in_a_message(models: Iterable[DeployedModel]) -> tuple[DeployedModel, ...]:
    """The models; of those past LISTED_BYTES what is long of them is left out, and DescribeModel has it."""
    found, size = [], 0
    for model in models:
        more = described_bytes((*model.inputs, *model.outputs)) + sum(map(len, model.shapes))
        size += more
        short = size > LISTED_BYTES
        found.append(
            replace(model, inputs=(), outputs=(), shapes=(), considered=(), notes=()) if short else model
        )
        size -= more if short else 0
    return tuple(found)


def _seconds(deadline: float | None) -> float:
    if deadline is None:
        return INFER_SECONDS
    if not 0 < deadline <= MAX_INFER_SECONDS:
        raise InvalidArgument(
            f"deadline_seconds is {deadline:g}; it must be above 0 and at most {MAX_INFER_SECONDS:g}"
        )
    return deadline


def _outputs(deployed: Deployed, names: tuple[str, ...]) -> tuple[str, ...]:
    assert deployed.planned is not None
    known = [one.name for one in deployed.planned.outputs]
    for name in names:
        if name not in known:
            raise InvalidArgument(
                f"the model has no output {name[:80]!r}; its outputs: {', '.join(known) or 'none'}"
            )
    return tuple(dict.fromkeys(names)) or tuple(known)


_ROUNDED = "what passes between parts is rounded to float16, as it was deployed with halves"


def _report(
    deployed: Deployed, answer: ModelAnswer, results: Mapping[str, Array], seconds: float
) -> InferReport:
    size = sum(array.nbytes for array in results.values())
    if size > INFER_BYTES:
        raise InvalidArgument(
            f"bound infer-bytes: the answer has {size:,} bytes, and one has {INFER_BYTES:,} at most: ask for "
            "fewer outputs, or send fewer rows"
        )
    parts = {name.removeprefix("part "): s for name, s in answer.seconds.items() if name.startswith("part ")}
    stages = {name: s for name, s in answer.seconds.items() if not name.startswith("part ")}
    ready = max(seconds - stages.get("all", 0.0), 0.0)
    rounded = deployed.request.halves and len(parts) > 1
    return InferReport(
        deployed.version,
        answer.exact and not rounded,
        answer.coverage,
        answer.lacking or (_ROUNDED if rounded else ""),
        {**stages, "ready": ready, "all": seconds},
        parts,
        bytes_down=sum(answer.sent.values()),
        bytes_up=sum(answer.received.values()),
        again=answer.moves,
        outputs=tuple(
            ModelTensor(name, DataType.of(array.dtype, name), tuple(map(str, array.shape)))
            for name, array in results.items()
        ),
    )


def _grouped(found: Iterable[TensorPiece]) -> Iterator[tuple[TensorPiece, ...]]:
    """Pieces in groups of about PIECE_BYTES; one group at least."""
    group: list[TensorPiece] = []
    size = 0
    for piece in found:
        if group and size + len(piece.data) > PIECE_BYTES:
            yield tuple(group)
            group, size = [], 0
        group.append(piece)
        size += len(piece.data)
    yield tuple(group)
