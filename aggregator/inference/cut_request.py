"""What the process apart is asked about a model: to plan it, if it has no plan, and to cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregator.inference.deployed import Shapes

__all__ = ["CutRequest", "HubTold", "NodeTold"]


@dataclass(frozen=True)
class NodeTold:
    """What a plan is made with, of a node.

    Attributes:
        memory_limit, taken: bytes it may hold, and those of other models that it holds.
        slowness: measured seconds by predicted ones.
        call_seconds: what a segment takes beside its work.
        machine, cores: of boxes of one machine, which share its cores; "" and 0: not known.
        at_once: how many of its machine's nodes that one was measured to compute for at their full speed; 0:
            it was not.
        latency: seconds one way of a small message.
        cold: seconds that a call takes more where the node computes for long.
        down, up: bytes a second; 0: not measured.
        measured: whether any of it was, lately.
    """

    name: str
    memory_limit: int
    taken: int
    threads: int
    slowness: float = 1.0
    machine: str = ""
    cores: float = 0.0
    at_once: float = 0.0
    latency: float = 0.0
    down: float = 0.0
    up: float = 0.0
    measured: bool = False
    call_seconds: float = 0.0
    cold: float = 0.0


@dataclass(frozen=True)
class HubTold:
    """What a plan is made with, of the aggregator.

    Attributes:
        request_seconds: what a request takes beside its steps.
        trip_seconds: and a step beside its calls; below 0: not measured.
        bandwidth: bytes a second of all links together; 0: not measured, or no less than of each.
        both: whether that is of both ways together.
    """

    request_seconds: float = 0.0
    trip_seconds: float = -1.0
    bandwidth: float = 0.0
    both: bool = False


@dataclass(frozen=True)
class CutRequest:
    """What is to be cut, and how.

    Attributes:
        model: path of the ONNX file.
        into: folder of the shape, made by whoever cuts.
        word: what the plan is called, if it is not said in full.
        plan: the plan as it is kept, of a model that was planned before; "" otherwise.
        plan_file: path of a plan said in full; "" otherwise.
        nodes: that may hold parts, of a model that is planned now.
        hub: how they are reached, all together.
        holders: who holds them, of one that was planned before.
        before: the plan that serves, of a model that is planned anew: it is cut where that gains enough.
        dimensions: sizes of open dimensions, by name.
        shapes: of the inputs, of a request; {}: those that `dimensions` and defaults say.
        given: as of `PlannedParts`, of a model that was planned before.
        whole: it is not to be cut, of a model that was planned before.
        rows: whether it is to be found out if rows of a batch meet.
        rows_whole: the same of a model that is not cut.
    """

    model: str
    into: str
    word: str = ""
    plan: str = ""
    plan_file: str = ""
    nodes: tuple[NodeTold, ...] = ()
    replicas: int = 0
    holders: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    halves: bool = False
    whole: bool = False
    rows: bool = False
    rows_whole: bool = False
    before: str = ""
    hub: HubTold = HubTold()
    given: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "nodes": [vars(node) for node in self.nodes],
            "hub": vars(self.hub),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CutRequest:
        return cls(
            **{
                **data,
                "nodes": tuple(NodeTold(**node) for node in data["nodes"]),
                "hub": HubTold(**data["hub"]),
                "holders": {int(part): tuple(nodes) for part, nodes in data["holders"].items()},
                "shapes": {name: tuple(shape) for name, shape in data["shapes"].items()},
            }
        )
