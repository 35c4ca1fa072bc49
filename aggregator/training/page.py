"""What the page tells of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from aggregator.observe.page import Fleet, PagePart, Trouble, number
from aggregator.training.activity import RoundLine, RunActivity, RunCurves
from aggregator.training.curve import Curve
from aggregator.training.remedies import remedy_of
from aggregator.training.runs import Runs
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.training import RunState, TrainingRun
from edge_attention.core.sentence import Sentence

RUNS = 20
NODES = 1000
"""Nodes of one run that the page is told of."""
NOTES, NOTE = 8, 400
"""Of a run's notes so many, and so much of each."""


class TrainingPage:
    """Tells the page; a run's curves are drawn anew only when they changed."""

    def __init__(self, runs: Runs, activity: RunActivity) -> None:
        self._runs = runs
        self._activity = activity
        self._curves: dict[str, tuple[int, dict[str, Any]]] = {}

    def __call__(self, fleet: Fleet) -> PagePart:
        runs = self._runs.overview(RUNS)
        return PagePart(
            sections={
                "runs": {run.id: _run(run, self._runs.error_of(run.id)) for run in runs},
                "curves": self._curves_of(runs),
                "rounds": {f"{r.run}/{r.number}": _round(r) for r in self._activity.rounds},
            },
            troubles=dict(troubles(runs, fleet.started)),
        )

    def _curves_of(self, runs: Iterable[TrainingRun]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for run in runs:
            curves = self._activity.runs.get(run.id)
            if curves is None:
                continue
            known = self._curves.get(run.id)
            if known is None or known[0] != curves.revision:
                known = self._curves[run.id] = (curves.revision, _run_curves(curves))
            found[run.id] = known[1]
        self._curves = {id: known for id, known in self._curves.items() if id in found}
        return found


def troubles(runs: Iterable[TrainingRun], started: float) -> Iterator[tuple[str, Trouble]]:
    """Runs that wait, and runs that failed since the aggregator `started` (seconds since 1970)."""
    for run in runs:
        if run.state is RunState.RUNNING and run.waiting:
            link = ": " if " waits for " in run.waiting else " waits for "
            waits = Sentence(f"Run {run.id}{link}", run.waiting, ".")
            yield f"run/{run.id}", Trouble("warn", waits)
        if run.state is RunState.RUNNING and run.detail:
            yield f"run/{run.id}/data", Trouble("warn", f"Run {run.id} {run.detail}.")
        if run.state is RunState.FAILED and run.created > started:
            # Why, and what to do, is said once: where the run is drawn.
            text = f"Run {run.id} failed after round {run.round:,} of {run.rounds:,}."
            yield f"run/{run.id}", Trouble("bad", text, over=True, more=f"run/{run.id}")


def _run(run: TrainingRun, error: EdgeAttentionError | None) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state.value,
        "detail": run.detail,
        "remedy": remedy_of(run, error),
        "round": run.round,
        "rounds": run.rounds,
        "version": run.version,
        "created": run.created,
        "waiting": run.waiting,
        "notes": [note[:NOTE] for note in run.notes[:NOTES]],
        "best": run.best_version,
        "samples": dataclasses.asdict(run.samples) if run.samples is not None else None,
        "nodes": dict(list(run.nodes.items())[:NODES]),
    }


def _run_curves(curves: RunCurves) -> dict[str, Any]:
    return {name: _curve(getattr(curves, name)) for name in ("loss", "evaluation", "mass")}


def _curve(curve: Curve) -> dict[str, Any]:
    series = {name: [number(v) for v in values] for name, values in curve.series().items()}
    return {"x": curve.x, "y": series}


def _round(done: RoundLine) -> dict[str, Any]:
    return {
        "time": done.time,
        "run": done.run,
        "number": done.number,
        "version": done.version,
        "loss": number(done.loss),
        "seconds": number(done.seconds, 3),
        "nodes": done.nodes,
        "left_out": dict(list(done.left_out.items())[:50]),
    }
