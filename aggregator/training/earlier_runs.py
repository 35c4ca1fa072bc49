"""Runs as the state has them: read from their rows and records. Everything here blocks on the disk."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aggregator.store.state import RunRow, State
from aggregator.training.active import Job, evaluation_due
from aggregator.training.activity import RunActivity
from aggregator.training.curve import POINTS
from aggregator.training.records import best_of, record_from
from edge_attention.core.messages.training import RunState, Samples, TrainingRun
from edge_attention.wire.services import START_RUN

LISTED = 6
"""Rounds of a run that are known in full after a restart; of those before, the curve."""


@dataclass(frozen=True)
class GoingRun:
    """A run of an earlier process that goes on. `evaluating`: its last round is still to be evaluated."""

    row: RunRow
    job: Job
    evaluating: bool


def job_of(stored: Mapping[str, str]) -> Job:
    """The job of a run, from what a RunRow has as its `job`."""
    job = START_RUN.request.decode(base64.b64decode(stored["job"])).any_job
    assert job is not None  # it was started
    return job


def earlier_run(state: State, row: RunRow, job: Job) -> TrainingRun:
    """The run as it was when what is in the state was written."""
    zeroth = state.record(row.id, 0)
    samples = Samples(**zeroth["samples"]) if zeroth is not None else None
    best, loss = best_of(zeroth)
    return TrainingRun(
        row.id, row.name, RunState(row.status), row.detail, row.round, job.rounds,
        row.version or 0, row.created, "", samples, notes=tuple((zeroth or {}).get("notes", ())),
        best_version=best, best_loss=loss,
    )  # fmt: skip


def going_run(state: State, row: RunRow, job: Job) -> GoingRun:
    """What is needed to go on with the run."""
    record = state.record(row.id, row.round) if evaluation_due(job, row.round) else None
    return GoingRun(row, job, record is not None and record.get("evaluation") is None)


def recall_courses(state: State, activity: RunActivity, runs: Iterable[TrainingRun]) -> None:
    """Have the curves of the runs known to `activity`, and their last rounds."""
    for run in runs:
        every = max(1, run.round // POINTS)
        for row in state.records(run.id, 0, every):
            activity.recall(run.id, record_from(row.record))
        for row in state.records(run.id, max(0, run.round - LISTED)):
            activity.earlier(run.id, record_from(row.record))
