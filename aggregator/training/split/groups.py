"""Groups of nodes that each hold the whole model: what of a job is each one's.

A job without groups is one of a single group, of all of its nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from edge_attention.core.messages.training import SplitData, SplitJob, StrategySpec

__all__ = ["deployment_of", "group_jobs", "together"]

T = TypeVar("T")


def group_jobs(job: SplitJob) -> tuple[SplitJob, ...]:
    """The job of each group alone: its nodes, and its own data."""
    if not job.groups:
        return (job,)
    return tuple(
        replace(
            job,
            nodes=group.nodes,
            data=SplitData(group.file) if group.file else job.data,
            groups=(),
            local_steps=1,
            strategy=StrategySpec("fedavg"),
        )
        for group in job.groups
    )


def deployment_of(run: str, job: SplitJob, group: int) -> str:
    """What names on the nodes of a group begin with."""
    return f"{run}.g{group}" if job.groups else run


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return, in their order. The first that fails ends the others, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
