"""What to do about a run that failed: nothing is advised that cannot work."""

from __future__ import annotations

from aggregator.training.divergence import NOT_FINITE
from edge_attention.core.messages.training import RunState, TrainingRun
from edge_attention.core.rounds.synchronous import QUARANTINED

__all__ = ["remedy_of"]


def remedy_of(run: TrainingRun) -> str:
    """What whoever looks at the run can do; empty where it has not failed.

    A resumed run goes on with its own job, and without the nodes that are in quarantine: where one of these
    was its end, it would end so again.

    >>> remedy_of(TrainingRun("r-1", "r", RunState.FAILED, "the disk is full", 3, 9, 3, 0.0))
    'When that is put right: edge-attention train resume r-1. To forget it: edge-attention runs delete r-1'
    """
    if run.state is not RunState.FAILED:
        return ""
    if QUARANTINED in run.detail:
        said = (
            "Nodes in quarantine take no more part in this run, and resuming it does not bring them back. "
            "See what they return, leave them out of the job or name others, and start it anew"
        )
    elif NOT_FINITE in run.detail:
        said = "It would end so again: start it anew with the job mended"
    else:
        said = f"When that is put right: edge-attention train resume {run.id}"
    return f"{said}. To forget it: edge-attention runs delete {run.id}"
