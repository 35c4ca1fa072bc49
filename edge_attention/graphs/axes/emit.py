"""Segments: the graphs of what a part does between two meetings, and the schedule of all.

A graph is known by the digest of its bytes: layers alike share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.core.schedule.schedule import Schedule, Step, TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.emission import Emission
from edge_attention.graphs.axes.forms import Partition
from edge_attention.graphs.axes.segment_graph import SegmentGraph
from edge_attention.graphs.axes.ways import Dims

__all__ = ["Emitted", "emit"]


@dataclass(frozen=True, eq=False)
class Emitted:
    """A schedule, and the files it speaks of, by digest.

    Attributes:
        kept: of a training schedule, by part: bytes that its node keeps of one request between its segments.
    """

    schedule: Schedule
    graphs: Mapping[str, bytes]
    constants: Mapping[str, Array]
    kept: Mapping[int, int] = field(default_factory=dict)


def emit(
    partition: Partition,
    bound: BoundGraph,
    specs: Mapping[str, TensorForm],
    literals: Mapping[str, Array],
    derived: Mapping[str, Array],
    dims: Mapping[str, Dims],
) -> Emitted:
    """The schedule of `partition`, with its graphs.

    Args:
        specs, literals, derived, dims: of all tensors, those that the cut has made included.

    Raises:
        InvalidGraph: the model is of a later opset than ONNX Runtime reads.
    """
    shared = Emission(partition, bound, specs, literals, derived, dims)
    levels = sorted({level for needs in shared.needs.values() for level in needs.levels.values()})
    steps = []
    for level in levels:
        segments = []
        for part, needs in sorted(shared.needs.items()):
            operations = [o for o in shared.partition.operations if needs.levels.get(o) == level]
            if operations:
                segments.append(SegmentGraph(shared, part, needs, level).built(operations))
        steps.append(Step(tuple(segments)))
    schedule = Schedule(
        1 + max(part for stage in shared.partition.stages for part in stage.parts),
        {name: shared.bound.specs[name] for name in shared.bound.inputs},
        {name: shared.boundary(form) for name, form in shared.partition.results.items()},
        shared.all_boundaries(),
        tuple(steps),
        {name: digest for digest, name in shared.graph_names.items()},
        {name: spec for spec, name in shared.constant_names.items()},
    )
    return Emitted(schedule, shared.graphs, shared.constants)
