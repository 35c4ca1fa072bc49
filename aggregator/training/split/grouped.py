"""Rounds of groups: each trains the whole model, cut over its own nodes, on its own data for some steps; then
what they have come to is folded as in federated rounds, by the samples of each."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aggregator.engine.endings import to_the_end
from aggregator.inference.model_answer import MakesNaN
from aggregator.store.tensor_file import TensorFile
from aggregator.training.divergence import NotANumber
from aggregator.training.split.groups import together
from aggregator.training.split.local_steps import LocalSteps
from aggregator.training.split.pass_results import MadeRound, round_record
from aggregator.training.split.passes import PartsVersion, SplitPasses
from aggregator.training.split.plan import CUT, SplitPlan
from aggregator.training.split.samples import SampleTurns
from aggregator.training.split.versions import SplitVersion, SplitVersions
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.training import NodeRound, SplitJob

__all__ = ["GroupRounds"]


@dataclass(frozen=True, eq=False)
class _Trained:
    """What one group has made of a version.

    Attributes:
        samples: what it counts in the mean: those it trains on, by what their labels counted.
        loss: the mean of its steps'.
    """

    parameters: TensorFile
    samples: float
    loss: float
    nodes: dict[str, NodeRound]
    seconds: dict[str, float]


class GroupRounds:
    """The rounds of a run's groups. `folder`: of what they have trained, none of it durable."""

    def __init__(
        self,
        job: SplitJob,
        plans: Sequence[SplitPlan],
        passes: Sequence[SplitPasses],
        versions: SplitVersions,
        folder: Path,
    ) -> None:
        self._job = job
        self._plans = plans
        self._passes = passes
        self._versions = versions
        self._folder = folder

    async def trained(self, current: SplitVersion, turns: Sequence[SampleTurns]) -> MadeRound:
        """The next round, up to its commit.

        Raises:
            EdgeAttentionError: a group cannot go on, or did not within the run's patience; names it.
        """
        found = await together(self._named(group, current, own) for group, own in enumerate(turns))
        weights = [one.samples for one in found]
        whole = sum(weights)
        loss = sum(
            one.loss * (w / whole if whole else 1 / len(found)) for one, w in zip(found, weights, strict=True)
        )
        seconds: dict[str, float] = defaultdict(float)
        for one in found:
            for stage, spent in one.seconds.items():
                seconds[stage] += spent
        nodes = {node: round_ for one in found for node, round_ in one.nodes.items()}
        record = round_record(current.number + 1, loss, None, seconds, nodes)
        trained = [one.parameters for one in found]
        return MadeRound(record, lambda recorded: self._versions.merge(current, trained, weights, recorded))

    async def _named(self, group: int, current: SplitVersion, turns: SampleTurns) -> _Trained:
        try:
            return await self._of_group(group, current, turns)
        except NotANumber as error:
            raise NotANumber(f"group {group}: {error.what}") from error
        except MakesNaN as error:
            raise MakesNaN(f"group {group}: {error.where}") from error
        except EdgeAttentionError as error:
            raise type(error)(f"group {group}: {error.message}") from error

    async def _of_group(self, group: int, current: SplitVersion, turns: SampleTurns) -> _Trained:
        job, passes = self._job, self._passes[group]
        began, proximal = current.parameters, self._versions.strategy.proximal
        folder = self._folder / str(group)
        local = await asyncio.to_thread(LocalSteps, folder, job, self._plans[group], began, proximal)
        losses, counted = 0.0, 0.0
        nodes: dict[str, NodeRound] = {}
        seconds: dict[str, float] = defaultdict(float)
        for step in range(job.local_steps):
            # Of all steps before it: by this number parts know what they have.
            number = current.number * job.local_steps + step
            positions = await asyncio.to_thread(turns.of_step, number + 1)
            version = PartsVersion(number, local.parameters)
            done = await passes.run(version, positions, CUT, gradients=True)
            loss, gradients, norm = await asyncio.to_thread(done.sum.mean, job.clip)
            await to_the_end(asyncio.to_thread(local.step, number + 1, gradients))
            losses += loss
            counted += done.count / job.micro_batches
            for node, one in done.nodes_of(job.batch, 1, loss, norm).items():
                before = nodes.get(node, NodeRound(0, 0, 0.0, 0.0))
                nodes[node] = replace(
                    one,
                    samples=before.samples + one.samples,
                    steps=before.steps + 1,
                    loss=before.loss + one.loss,
                    seconds=before.seconds + one.seconds,
                )
            for stage, spent in done.seconds.items():
                seconds[stage] += spent
        steps = job.local_steps
        nodes = {node: replace(one, loss=one.loss / one.steps) for node, one in nodes.items()}
        return _Trained(
            local.parameters, turns.samples.train * counted / steps, losses / steps, nodes, dict(seconds)
        )
