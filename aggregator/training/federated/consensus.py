"""The consensus losses of a round (DESIGN section 4), and alpha: global attention weights on the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aggregator.state import State
from aggregator.tensor_file import TensorFile
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.federated.updates import Update
from edge_attention.core.consensus import consensus_losses
from edge_attention.core.jobs import FederatedJob
from edge_attention.core.tensors import Array


class Consensus:
    """Of one run. Without a probe there is nothing to compute."""

    def __init__(self, job: FederatedJob, plan: FederatedPlan, state: State) -> None:
        self._probe = job.consensus.probe if job.consensus.attention else {}
        self._plan, self._state = plan, state
        self._session: Any = None
        self._alpha: Array | None = None

    @property
    def wanted(self) -> bool:
        return bool(self._probe)

    def alpha(self, parameters: TensorFile) -> Array:
        """The attention weights of these parameters on the probe batch, which there is if it is `wanted`."""
        import onnxruntime  # only a run with a probe needs it here

        graph = self._plan.graphs["attention"]
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            data = self._state.get_blob(graph.digest)
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        feeds = {
            f"x/{i}": parameters.read(f"p/{i}").reshape(shape)
            for i, shape in enumerate(self._plan.shapes)
            if f"x/{i}" in graph.inputs
        }
        probe = {name: array for name, array in self._probe.items() if name in graph.inputs}
        self._alpha = np.asarray(self._session.run(["attention"], {**feeds, **probe})[0])
        return self._alpha

    def losses(self, updates: Sequence[Update], distances: Mapping[str, float]) -> dict[str, float]:
        """By name, for the round's record and the metrics; nothing without a probe."""
        attention = {u.node: u.attention for u in updates if u.attention is not None}
        if self._alpha is None or attention.keys() != distances.keys():
            return {}
        return consensus_losses(attention, self._alpha, distances)
