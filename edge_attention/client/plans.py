"""`JobPlan`: what a job would run, as an aggregator plans it."""

from __future__ import annotations

from collections.abc import Iterable

from edge_attention.core.messages.training import PlannedGraph, PlannedModel

__all__ = ["JobPlan"]


class JobPlan(list[PlannedGraph]):
    """The graphs that nodes would run.

    Attributes:
        models: what the job makes of each of its files: what trains, what does not and why, what was cut off.
    """

    def __init__(self, graphs: Iterable[PlannedGraph], models: Iterable[PlannedModel] = ()) -> None:
        super().__init__(graphs)
        self.models = tuple(models)
