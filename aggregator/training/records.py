"""Round records: one JSON object a round, in the state and beside the run's parameters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_attention.core.messages.training import Evaluation, NodeRound, TrainingRound


def to_json(record: TrainingRound) -> dict[str, Any]:
    """The record as a JSON object; `record_from` reads it."""
    return dataclasses.asdict(record)


def record_from(data: Mapping[str, Any]) -> TrainingRound:
    evaluation = data.get("evaluation")
    return TrainingRound(
        **{
            **data,
            "samples": tuple(data["samples"]),
            "evaluation": Evaluation(**evaluation) if evaluation else None,
            "nodes": {node: NodeRound(**part) for node, part in data.get("nodes", {}).items()},
        }
    )


def write_lines(path: Path, records: Iterable[TrainingRound], *, append: bool) -> None:
    """Write records as JSON lines, for people and scripts; the state's own copy is what counts."""
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_json(record)) + "\n")
