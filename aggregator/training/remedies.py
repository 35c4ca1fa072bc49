"""What to do about a run that failed: nothing is advised that cannot work."""

from __future__ import annotations

from aggregator.training.divergence import Diverged
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.core.messages.training import RunState, TrainingRun

__all__ = ["InQuarantine", "remedy_of"]


class InQuarantine(FailedPrecondition):
    """What ends a run that lacks nodes which are in quarantine: they stay there when it is resumed."""


def remedy_of(run: TrainingRun, error: EdgeAttentionError | None) -> str:
    """What whoever looks at the run can do; empty where it has not failed.

    A resumed run goes on with its own job, and without the nodes that are in quarantine: where one of these
    was its end, it would end so again. `error`: its end; None: not known, as of an earlier process' run.

    >>> failed = TrainingRun("r-1", "r", RunState.FAILED, "the node is away", 3, 9, 3, 0.0)
    >>> remedy_of(failed, FailedPrecondition("the node is away"))
    'When that is put right: edge-attention train resume r-1. To forget it: edge-attention runs delete r-1'
    """
    if run.state is not RunState.FAILED:
        return ""
    forget = f"To forget it: edge-attention runs delete {run.id}"
    if error is None:
        return forget
    if isinstance(error, InQuarantine):
        said = (
            "Nodes in quarantine take no more part in this run, and resuming it does not bring them back. "
            "See what they return, leave them out of the job or name others, and start it anew"
        )
    elif isinstance(error, Diverged):
        said = "It would end so again: start it anew with the job mended"
    else:
        said = f"When that is put right: edge-attention train resume {run.id}"
    return f"{said}. {forget}"
