"""The consensus losses of a round (DESIGN section 4), and alpha: global attention weights on the probe."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aggregator.store.state import State
from aggregator.store.tensor_file import TensorFile
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.federated.probe import attention
from aggregator.training.federated.updates import Update
from edge_attention.core.messages.training import FederatedJob
from edge_attention.core.rounds.consensus import consensus_losses
from edge_attention.core.tensors import Array


class Consensus:
    """The consensus losses of one run. Without a probe `wanted` is False: there is nothing to compute."""

    def __init__(self, job: FederatedJob, plan: FederatedPlan, state: State) -> None:
        self._probe = job.consensus.probe if job.consensus.attention else {}
        self._plan = plan
        self._state = state
        self._alpha: Array | None = None

    @property
    def wanted(self) -> bool:
        return bool(self._probe)

    async def alpha(self, parameters: TensorFile) -> Array:
        """The attention weights of these parameters on the probe batch, which there is if it is `wanted`.

        Raises:
            InvalidGraph: they cannot be computed.
        """
        graph = self._plan.graphs["attention"]
        probe = {name: array for name, array in self._probe.items() if name in graph.inputs}
        file = await asyncio.to_thread(self._state.blob_path, graph.digest)
        self._alpha = await attention(file, parameters.path, self._plan.shapes, probe)
        return self._alpha

    def losses(self, updates: Sequence[Update], distances: Mapping[str, float]) -> dict[str, float]:
        """The losses by name, for the round's record and the metrics; empty without a probe."""
        attention = {u.node: u.attention for u in updates if u.attention is not None}
        if self._alpha is None or attention.keys() != distances.keys():
            return {}
        return consensus_losses(attention, self._alpha, distances)
