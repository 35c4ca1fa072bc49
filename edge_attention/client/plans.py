"""`JobPlan`: what a job would run, as an aggregator plans it."""

from __future__ import annotations

from edge_attention.core.messages.training import PlannedGraph, PlannedModel, PlanProblem, PlanRunResponse

__all__ = ["JobPlan"]


class JobPlan(list[PlannedGraph]):
    """The graphs that nodes would run.

    Attributes:
        job_release: what to give to `edge-node --allow-release` for all of it, `job:<fingerprint>`; empty:
            nothing private leaves.
        problems: what a run would be refused for, by node.
        unchecked: what was not looked at, and why.
        models: what the job makes of each of its files: what trains, what does not and why, what was cut off.
    """

    def __init__(self, plan: PlanRunResponse) -> None:
        super().__init__(plan.graphs)
        self.models: tuple[PlannedModel, ...] = plan.models
        self.job_release = plan.job_release
        self.problems: tuple[PlanProblem, ...] = plan.problems
        self.unchecked = plan.unchecked
