"""Reads a plan off the annotation of a model's nodes, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from onnx import ModelProto, NodeDeviceConfigurationProto, NodeProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Ranges, Stage
from edge_attention.core.schedule.saved_plan import PLAN_PARTS
from edge_attention.core.schedule.shares import shared_ranges
from edge_attention.graphs.axes.file_view import FAMILIES, OPEN_AXES, FileView
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.narrow import from_inputs
from edge_attention.graphs.axes.sharding import NOBODY, Sharding, ranges_of, read_spec

__all__ = ["AnnotationReader", "said_of"]

_FINEST = 1 << 20
"""Blocks into which two divisions of an axis are divided to see whether they are the same."""


def said_of(node: NodeProto, name: str) -> Iterator[NodeDeviceConfigurationProto]:
    """What the configuration `name` says of a node."""
    return (one for one in node.device_configurations if one.configuration_id == name)


@dataclass(eq=False)
class _Heard:
    """What is said of one stage."""

    layers: list[int] = field(default_factory=list)
    owners: dict[str, tuple[int, ...]] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """Axis -> where it was said."""
    devices: dict[int, None] = field(default_factory=dict)
    crossing: Crossing | None = None


class AnnotationReader:
    """Another's annotation, or ours that somebody has changed."""

    def __init__(self, model: ModelProto, axes: Axes, name: str) -> None:
        self._view = FileView(axes)
        self._axes = axes
        self._nodes = [(node, one) for node in model.graph.node for one in said_of(node, name)]
        self._free = from_inputs(axes)
        if not self._nodes:
            raise InvalidArgument(f"no node has an annotation of {shown(name, 60)}")

    def plan(self) -> CutPlan:
        stages = self._stages()
        for node, said in self._nodes:
            place = self._view.place(node)
            if place is not None:
                self._hear(node, place, said, stages[self._view.layer(place)])
        heard = list(dict.fromkeys(stages))
        used = sorted({device for one in heard for device in one.devices})
        numbers = {device: part for part, device in enumerate(used)}
        found = []
        for one in heard:
            if not one.devices:  # a stage of which only the number is said
                numbers[-len(numbers) - 2] = part = len(numbers)
                found.append(Stage(range(one.layers[0], one.layers[-1] + 1), (part,)))
            else:
                found.append(self._stage(one, numbers))
        if len(numbers) > PLAN_PARTS:
            raise InvalidArgument(f"the annotation is for {len(numbers)} devices; {PLAN_PARTS} are the most")
        return CutPlan(tuple(found))

    def _stages(self) -> list[_Heard]:
        """By layer, its stage."""
        said: dict[int, tuple[int, str]] = {}
        for node, one in self._nodes:
            place = self._view.place(node)
            if place is None or not one.HasField("pipeline_stage") or set(node.output) <= self._free:
                continue
            layer, stage = self._view.layer(place), one.pipeline_stage
            before = said.setdefault(layer, (stage, _label(node)))
            if before[0] != stage:
                raise InvalidArgument(
                    f"the pipeline's stage changes from {before[0]} to {stage} within layer {layer}, at "
                    f"{_label(node)}: more than one activation is alive there; let it change where one is"
                )
        by_layer: list[_Heard] = []
        now = _Heard()
        current: int | None = None
        for layer in range(self._view.layers):
            number, where = said.get(layer, (current, ""))
            if number != current and by_layer:
                if current is not None and number is not None and number < current:
                    raise InvalidArgument(
                        f"stage {number} comes after stage {stage} at {where}; stages go up"
                    )
                now = _Heard()
            current = number
            now.layers.append(layer)
            by_layer.append(now)
        return by_layer

    def _hear(self, node: NodeProto, place: int, said: NodeDeviceConfigurationProto, stage: _Heard) -> None:
        rows, columns = self._view.sides(node, place)
        for spec in said.sharding_spec:
            name = spec.tensor_name
            where = f"{_label(node)}, {shown(name, 80)!r},"
            if name not in node.input and name not in node.output:
                raise InvalidArgument(
                    f"the sharding annotation cannot be run: {where} is no tensor of the node"
                )
            found = read_spec(where, spec, self._view.dims(name, node, place))
            stage.devices.update(dict.fromkeys(one for one in found.owners if one != NOBODY))
            if not found.axis:
                continue
            before = stage.owners.setdefault(found.axis, found.owners)
            if not _alike(before, found.owners):
                first = stage.first[found.axis]
                _refuse(
                    where,
                    f"has {found.axis} otherwise than {first} has it: a stage shares an axis in one way",
                )
            stage.first.setdefault(found.axis, where)
            if columns:
                self._cross(where, found, rows.get(name, ()), columns.get(name, ()), stage)

    def _cross(
        self, where: str, found: Sharding, rows: Iterable[int], columns: Iterable[int], stage: _Heard
    ) -> None:
        kind = found.axis.partition(".")[0]
        if kind not in ("tokens", "heads"):
            return
        crossing: Crossing | None = Crossing.SWITCH
        if kind == "tokens":
            by_keys = Crossing.MERGE if found.dim in columns else None
            crossing = Crossing.GATHER if found.dim in rows else by_keys
        if stage.crossing not in (None, crossing):
            words = [one.value if one else "nothing" for one in (crossing, stage.crossing)]
            _refuse(where, f"is crossed by {words[0]}, and its stage by {words[1]} elsewhere")
        stage.crossing = crossing

    def _stage(self, heard: _Heard, numbers: Mapping[int, int]) -> Stage:
        layers = range(heard.layers[0], heard.layers[-1] + 1)
        families = {name.partition(".")[0] for name in heard.owners}
        cut = self._cut(heard, families)
        if len(heard.devices) == 1 and not any(NOBODY in owners for owners in heard.owners.values()):
            cut = Cut.NONE
        if cut is Cut.NONE:
            return Stage(layers, tuple(numbers[device] for device in heard.devices))
        # The parts' order is that of their ranges of the axis that is shared first.
        first = next(name for name in heard.owners if name.partition(".")[0] in FAMILIES[cut])
        order = dict.fromkeys(device for device in heard.owners[first] if device != NOBODY)
        devices = tuple(order | dict.fromkeys(heard.devices))
        shares: tuple[float, ...] = ()
        ranges: dict[str, Ranges] = {}
        shared = False
        for name, owners in sorted(heard.owners.items(), key=lambda one: not _is_open(one[0])):
            size = len(owners) if _is_open(name) else self._axes.size(name)
            found = ranges_of(devices, owners, size)
            if found is None:
                _refuse(
                    heard.first[name],
                    f"gives a device several ranges of {name}, or has {len(owners)} shards of its {size}",
                )
            if _is_open(name) and sum(stop - start for start, stop in found) < size:
                _refuse(heard.first[name], f"leaves some of {name} to no device")
            lengths = [stop - start for start, stop in found]
            counts = tuple(length / math.gcd(*lengths) for length in lengths)
            if _is_open(name) and not shared:
                shared, shares = True, () if len(set(counts)) == 1 else counts
            elif found != shared_ranges(size, shares or (1.0,) * len(devices)):
                own = ranges_of(devices, owners, self._axes.size(name))
                if own is None:
                    _refuse(heard.first[name], f"has {name} in {len(owners)} shards, and its size is another")
                ranges[name] = own
        crossing = (heard.crossing or Crossing.GATHER) if cut is Cut.TOKENS else Crossing.GATHER
        return Stage(layers, tuple(numbers[one] for one in devices), cut, crossing, shares, ranges)

    def _cut(self, heard: _Heard, families: set[str]) -> Cut:
        if not families:
            if len(heard.devices) > 1:
                raise InvalidArgument(
                    f"layers {heard.layers[0]} to {heard.layers[-1]} are whole on each of "
                    f"{len(heard.devices)} devices: that is replication, which is said at deployment"
                )
            return Cut.NONE
        if families <= {"heads", "feedforward"}:
            return Cut.HEADS
        if families == {"batch"}:
            return Cut.BATCH
        if families == {"tokens"} or (families == {"tokens", "heads"} and heard.crossing is Crossing.SWITCH):
            return Cut.TOKENS
        one, other = list(heard.owners)[:2] if len(heard.owners) > 1 else (*heard.owners, *heard.owners)
        _refuse(
            heard.first[one],
            f"has {one} shared, and {heard.first[other]} {other}: a stage shares one kind",
        )


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether blocks of one axis say the same, the one perhaps in finer blocks."""
    whole = math.lcm(len(one), len(other))
    if whole > _FINEST:
        return False
    return all(one[n * len(one) // whole] == other[n * len(other) // whole] for n in range(whole))


def _is_open(name: str) -> bool:
    return name.partition(".")[0] in OPEN_AXES


def _label(node: NodeProto) -> str:
    return f"{shown(node.op_type, 40)} {shown(node.name or (node.output[0] if node.output else ''), 80)!r}"


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidArgument(f"the sharding annotation cannot be run: {where} {what}")
