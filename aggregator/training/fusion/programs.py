"""What nodes are asked in a run by fusion: instructions over the plan's graphs, the same from round to round.

The very same ones, so that they are sent once and called: what differs between rounds is in tensors, which
instructions name `task/rows`, `task/present`, `task/q`, `task/fused`, `task/lse`, `task/dout`, `task/delta`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np

from aggregator.fleet.columns import TableView
from aggregator.training.fusion.plan import FusionPlan, PlanGraph, PlannedPart
from aggregator.training.fusion.releases import TOLD
from aggregator.training.gap_reads import PRESENCE, reads
from edge_attention.core.messages.program import Batch, Instruction, Return, Run, Stored, Value
from edge_attention.core.tensors import Array
from edge_attention.graphs.attention import library

__all__ = ["FusionPrograms"]

_FORWARD = library.digest("attention_batch_forward")
_BACKWARD = library.digest("attention_batch_backward")

Instructions = tuple[Instruction, ...]


class FusionPrograms:
    """The programs of one run. `scope`: what its names on nodes begin with, as `job/<id>`.

    `views`: how each part reads its dataset, by its prefix.
    """

    def __init__(self, scope: str, plan: FusionPlan, views: Mapping[str, TableView]) -> None:
        self._views = views
        self._scope = scope
        self._plan = plan
        self._made: dict[Hashable, Instructions] = {}

    def forward(self, part: PlannedPart) -> Instructions:
        """Rows through the encoder of `part`, and the queries over what comes of them: `out` and `lse`."""
        return self._once(("forward", id(part)), lambda: self._forward(part))

    def head(self, graph: PlanGraph, wanted: tuple[str, ...]) -> Instructions:
        """`graph` over the fused output and the labels: its outputs `wanted`."""
        return self._once((graph.digest, wanted), lambda: self._head(graph, wanted))

    def backward(self, part: PlannedPart) -> Instructions:
        """From what the head and the merge give back: `dq`, and `grad/<name>` of each parameter of `part`."""
        return self._once(("backward", id(part)), lambda: self._backward(part))

    def told(self, part: PlannedPart, role: str) -> Instructions:
        """What the part's dataset lacks, by the plan's graph of that role, over all of its rows."""
        tensors = reads(self._views[part.prefix], PRESENCE)[role]
        stored = {name: f"task/told/{name}" for name in TOLD[role]}
        return (
            Batch(part.dataset, {}, None, tensors=tuple(tensors.values())),
            Run(part.gaps[role].digest, {name: Stored(t.stored) for name, t in tensors.items()}, stored),
            *(Return(at, name) for name, at in stored.items()),
        )

    def _once(self, key: Hashable, make: Callable[[], Instructions]) -> Instructions:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found

    def _data(self, part: PlannedPart, scope: str) -> tuple[Batch, dict[str, Stored]]:
        """Reads a batch; and where each input is then: two may read the same."""
        tensors, names = self._views[part.prefix].stored(scope)
        complete = self._views[part.prefix].complete
        batch = Batch(part.dataset, {}, Stored("task/rows"), tensors=tensors, complete=complete)
        return batch, {name: Stored(stored) for name, stored in names.items()}

    def _name(self, part: PlannedPart, index: int) -> str:
        return f"{self._scope}/{part.kind}/{index}"

    def _bound(self, part: PlannedPart) -> dict[str, Stored]:
        """Parameter inputs of the part's graphs. Their names are the file's; stored ones are ours."""
        return {name: Stored(self._name(part, i)) for i, name in enumerate(part.parameters)}

    def parameters(self, part: PlannedPart, parameters: Mapping[str, Array]) -> dict[str, Array]:
        return {self._name(part, i): parameters[f"{part.prefix}/{n}"] for i, n in enumerate(part.parameters)}

    def _attention(self) -> dict[str, Value]:
        scale = np.asarray(self._plan.scale, np.float32)
        return {"q": Stored("task/q"), "present": Stored("task/present"), "scale": scale}

    def _forward(self, part: PlannedPart) -> tuple[Instruction, ...]:
        batch, data = self._data(part, f"{self._scope}/data")
        keys, values = Stored(f"{self._scope}/keys"), Stored(f"{self._scope}/values")
        encode = Run(
            part.forward.digest,
            _needed(part.forward, {**data, **self._bound(part)}),
            {"keys": keys.name, "values": values.name},
        )
        attend = Run(
            _FORWARD,
            {**self._attention(), "keys": keys, "values": values},
            {"out": "task/out", "lse": "task/lse"},
        )
        return (
            batch,
            encode,
            attend,
            Return("task/out", "out"),
            Return("task/lse", "lse"),
        )

    def _head(self, graph: PlanGraph, wanted: tuple[str, ...]) -> tuple[Instruction, ...]:
        part = self._plan.head
        batch, labels = self._data(part, "task/label")
        outputs = {name: f"task/output/{i}" for i, name in enumerate(wanted)}
        inputs: dict[str, Value] = {**labels, **self._bound(part), "fused": Stored("task/fused")}
        return (
            batch,
            Run(graph.digest, _needed(graph, inputs), outputs),
            *(Return(stored, name) for name, stored in outputs.items()),
        )

    def _backward(self, part: PlannedPart) -> tuple[Instruction, ...]:
        inputs: dict[str, Value] = {
            **self._attention(),
            "keys": Stored(f"{self._scope}/keys"),
            "values": Stored(f"{self._scope}/values"),
            "lse": Stored("task/lse"),
            "dout": Stored("task/dout"),
            "delta": Stored("task/delta"),
        }
        attend = Run(_BACKWARD, inputs, {"dq": "task/dq", "dkeys": "task/dkeys", "dvalues": "task/dvalues"})
        outputs = {f"grad/{name}": f"task/grad/{i}" for i, name in enumerate(part.parameters)}
        _, data = self._data(part, f"{self._scope}/data")
        seeds = {"dkeys": Stored("task/dkeys"), "dvalues": Stored("task/dvalues")}
        bound: dict[str, Value] = {**data, **self._bound(part), **seeds}
        encode = Run(part.gradient.digest, _needed(part.gradient, bound), outputs)
        returns = (Return("task/dq", "dq"), *(Return(stored, name) for name, stored in outputs.items()))
        return (attend, encode, *returns)


def _needed(graph: PlanGraph, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Of `inputs` those the graph has: nodes refuse any other."""
    return {name: value for name, value in inputs.items() if name in graph.inputs}
