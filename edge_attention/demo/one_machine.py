"""The same model trained on one machine: the yardstick, by a path of its own (one graph, one autodiff)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.core.optimizers import AdamW
from edge_attention.core.tensors import Array, Int64
from edge_attention.demo import patients
from edge_attention.demo.patients import Patients
from edge_attention.graphs.models.one_machine import OneMachine, one_machine_model


@dataclass(frozen=True, eq=False)
class TrainedAlone:
    """Final parameters and the share of `holdout` diagnosed right."""

    parameters: Mapping[str, Array]
    accuracy: float


def train(
    data: Patients,
    labs: Sequence[str],
    batches: Sequence[Int64],
    holdout: Int64,
    initial: Mapping[str, Array] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> TrainedAlone:
    """Train on the patients of `batches`, one step each, with the measurements of `labs` only."""
    encoders = {lab: model for lab, model in patients.encoders().items() if lab in labs}
    scale = patients.DIM**-0.5
    model = one_machine_model(encoders, patients.head(), patients.queries(), scale)
    machine = OneMachine(model, patients.BATCH)
    parameters: dict[str, Array] = dict(initial or machine.parameters)
    optimizer = AdamW(lr=patients.RATE, weight_decay=patients.DECAY)
    state = optimizer.init(parameters)
    for number, rows in enumerate(batches, start=1):
        _, gradients = machine.gradients(parameters, _feeds(data, labs, rows))
        parameters, state = optimizer.step(parameters, gradients, state)
        progress(number)
    correct = sum(
        float(machine.evaluate(parameters, _feeds(data, labs, rows))["correct"]) for rows in _parts(holdout)
    )
    return TrainedAlone(parameters, correct / len(holdout))


def difference(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """The largest absolute difference of any parameter."""
    if a.keys() != b.keys():
        raise ValueError(f"different parameters: {sorted(a.keys() ^ b.keys())}")
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


def _feeds(data: Patients, labs: Sequence[str], rows: Int64) -> dict[str, Array]:
    return {f"{lab}/x": data.measurements[lab][rows] for lab in labs} | {"y": data.labels[rows]}


def _parts(rows: Int64) -> Iterator[Int64]:
    for start in range(0, len(rows), patients.BATCH):
        yield rows[start : start + patients.BATCH]
