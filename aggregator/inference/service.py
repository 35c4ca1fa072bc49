"""InferenceService: what clients call about deployed models. Each method is a few lines over the recipe."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from aggregator.bounds.bounds import INFERENCE_BYTES, INFERENCES, WATCHES
from aggregator.bounds.budget import Budgets, Lease
from aggregator.bounds.turns import Turns
from aggregator.engine.listed import listed
from aggregator.engine.waiting import each_within
from aggregator.inference.asking import ModelAsker
from aggregator.inference.deployed import Deployed, described_bytes
from aggregator.inference.deployments import Deployments
from aggregator.inference.feeds import Feeds, pieces
from aggregator.trust.callers import caller_of, owner_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages import inference
from edge_attention.core.messages.inference import (
    INFER_BYTES,
    PIECE_BYTES,
    DeployedModel,
    DeployProgress,
    InferReport,
    TensorPiece,
)
from edge_attention.core.tensors import Array
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
        asker: ModelAsker,
        budgets: Budgets | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._asker = asker
        self._budgets = budgets or Budgets()
        self._turns = turns or Turns()

    @property
    def _deployments(self) -> Deployments:
        return self._asker.deployments

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
        feeds: Feeds | None = None
        with self._asker.begin() as asking:
            coming = each_within(
                requests, INFER_IDLE_SECONDS, "the next message of the request", INFER_COMING_SECONDS
            )
            seconds, partial, priority = INFER_SECONDS, False, 0
            outputs: tuple[str, ...] = ()
            async with aclosing(coming):
                async for request in coming:
                    if asking.deployed is None or feeds is None:
                        found = self._deployments.require(request.model)
                        asking.to(found)
                        assert found.planned is not None
                        feeds = Feeds(found.planned.inputs, room, found.planned.joined)
                        seconds = _seconds(request.deadline_seconds)
                        outputs, partial = _outputs(found, request.outputs), request.partial
                        priority = request.priority
                    elif request.model not in ("", asking.deployed.name):
                        raise InvalidArgument("one request goes to one model")
                    for piece in request.pieces:
                        feeds.take(piece)
                    del request
            if feeds is None:
                raise InvalidArgument("a request without a message; name the model and send its inputs")
            left = call.time_remaining()
            seconds = min(seconds, MAX_INFER_SECONDS if left is None else max(float(left), 0.0))
            return await asking.answer(
                feeds.arrays(),
                outputs,
                seconds,
                caller_of(call),
                room,
                most=INFER_BYTES,
                partial=partial,
                priority=priority,
            )


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
