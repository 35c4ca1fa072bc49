"""What the page tells of deployed models: who holds what of which, the plan as a picture, where time goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aggregator.inference.activity import AnswerLine, InferenceActivity, ModelTimes
from aggregator.inference.deployments import Deployments
from aggregator.observe.page import Fleet, Lack, PagePart, Trouble, number
from edge_attention.core.messages.inference import DeployedModel, DeploymentState

MODELS, PARTS = 32, 64
"""That the page is told of: deployments, and parts of each."""
NOTES, NOTE = 8, 400
"""Of a deployment's notes: the latest so many, and so much of each."""


class InferencePage:
    def __init__(self, deployments: Deployments, activity: InferenceActivity) -> None:
        self._deployments = deployments
        self._activity = activity

    def __call__(self, fleet: Fleet) -> PagePart:
        models = self._deployments.list()[:MODELS]
        holders = frozenset(name for m in models for part in m.parts for name in part.holders)
        return PagePart(
            sections={
                "models": {
                    f"{m.name}/{m.version}": _model(
                        m, self._activity.models.get(m.name), self._activity.traffic.rates(m.name)
                    )
                    for m in models
                },
                "infers": {str(line.number): _line(line) for line in self._activity.latest},
            },
            holders=holders,
            lacks=tuple(_lacks(models)),
            troubles=dict(_troubles(models)),
        )


def _lacks(models: Iterable[DeployedModel]) -> Iterator[Lack]:
    for model in models:
        for part in model.parts:
            if not part.live and model.state is DeploymentState.WAITING:
                yield Lack(frozenset(part.holders), f"part {part.part} of model {model.name}")


def _troubles(models: Iterable[DeployedModel]) -> Iterator[tuple[str, Trouble]]:
    for model in models:
        if model.state is DeploymentState.WAITING:
            text = f"Model {model.name} cannot answer now: {model.detail or 'nodes are not ready'}."
            yield (
                f"model/{model.name}",
                Trouble(
                    "bad", text, "Start the nodes it waits for, or deploy it anew over those that are here."
                ),
            )


def _model(model: DeployedModel, times: ModelTimes | None, rates: Mapping[str, float]) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "state": model.state.value,
        "detail": model.detail,
        "created": model.created,
        "bytes": model.bytes,
        "plan": model.plan,
        "notes": [note[:NOTE] for note in model.notes[-NOTES:] if note],
        "text": model.plan_text,
        "coverage": number(model.coverage, 4),
        "lacking": model.lacking,
        "layers": max((part.layers.stop for part in model.parts), default=0),
        "parts": [
            {
                "part": part.part,
                "layers": [part.layers.start, part.layers.stop],
                "share": part.share,
                "bytes": part.bytes,
                "holders": list(part.holders),
                "live": list(part.live),
            }
            for part in model.parts[:PARTS]
        ],
        "shapes": list(model.shapes[:4]),
        "requests": model.requests,
        "failed": model.failed,
        "in_flight": model.in_flight,
        "queued": model.queued,
        "batching": model.batching,
        "rates": {kind: number(rate, 3) for kind, rate in rates.items()},
        "seconds": {k: number(v, 3) for k, v in times.seconds.items()} if times else {},
        "part_seconds": {k: number(v, 3) for k, v in list(times.part_seconds.items())[:PARTS]}
        if times
        else {},
        "down": number(times.bytes_down, 3) if times else 0,
        "up": number(times.bytes_up, 3) if times else 0,
        "together": number(times.together, 3) if times else None,
        "rows": number(times.rows, 3) if times else None,
    }


def _line(line: AnswerLine) -> dict[str, Any]:
    return {
        "time": line.time,
        "model": line.model,
        "outcome": line.outcome,
        "shapes": line.shapes,
        "seconds": {k: number(v, 3) for k, v in line.seconds.items()},
        "why": line.why,
    }
